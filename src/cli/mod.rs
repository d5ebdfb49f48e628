//! The command line: arguments, printing, exit codes. Nothing else of Restante prints, and clap's types stay here.
//!
//! One file a command. Each opens what it needs through `Context`, calls the library, and says the outcome through
//! `output::Output` as text for people or as JSON lines (`docs/json.md`).

mod again;
mod comparing;
mod completions;
mod context;
mod diff;
mod drill;
mod dump;
mod exit;
mod find;
mod forget;
mod gap;
mod guard;
mod heads;
mod hold;
mod hooks;
mod init;
mod inspect;
mod key;
mod metrics;
mod output;
mod progress;
mod prune;
mod replays;
mod restore;
mod show;
mod snapshot;
mod snapshots;
mod store;
mod units;
mod verify;
mod window;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::Config;
use context::Context;
use exit::{Exit, UsageError};

/// Backs up mail stores kept in PostgreSQL and puts lost mail back into live mailboxes.
#[derive(Parser)]
#[command(name = "restante", version, max_term_width = 110, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Debug, Clone)]
struct Global {
    /// Where snapshots are kept: a directory, or s3://bucket/prefix?endpoint=…&region=…&path_style=true
    #[arg(short, long, global = true, env = "RESTANTE_REPO", value_name = "REPO")]
    repo: Option<String>,
    /// The live store: a PostgreSQL connection string (PG* variables and ~/.pgpass count)
    #[arg(short = 'd', long, global = true, env = "RESTANTE_STORE", value_name = "DSN", hide_env_values = true)]
    store: Option<String>,
    /// A reader's identity file (age or SSH); may be repeated
    #[arg(short, long, global = true, env = "RESTANTE_IDENTITY", value_name = "FILE")]
    identity: Vec<PathBuf>,
    /// The writer key
    #[arg(short, long, global = true, env = "RESTANTE_KEY", value_name = "FILE")]
    key: Option<PathBuf>,
    /// The repository's fingerprint; anything else is refused
    #[arg(long, global = true, value_name = "FINGERPRINT")]
    expect_repository: Option<String>,
    /// Configuration file instead of ./restante.toml, ~/.config/restante/restante.toml, /etc/restante/restante.toml
    #[arg(short, long, global = true, env = "RESTANTE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Of several stores in the configuration file the one of this name
    #[arg(long, global = true, value_name = "NAME")]
    of: Option<String>,
    /// All stores of the configuration file, one after the other; the exit code is that of the worst
    #[arg(long, global = true, conflicts_with_all = ["of", "store"])]
    all: bool,
    /// Say what would be done, change nothing
    #[arg(short = 'n', long, global = true)]
    dry_run: bool,
    /// Answer yes to questions; without a terminal questions are refused
    #[arg(short, long, global = true)]
    yes: bool,
    /// Print results only
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Print more of what is done (repeat for more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Print JSON lines (docs/json.md)
    #[arg(long, global = true)]
    json: bool,
    /// Write metrics there in the end, in the OpenMetrics text format
    #[arg(long, global = true, env = "RESTANTE_METRICS", value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Refuse to run while another with this option and this writer key runs
    #[arg(long, global = true)]
    exclusive: bool,
    /// How to show progress
    #[arg(long, global = true, value_enum, default_value = "auto", value_name = "WHEN")]
    progress: progress::Style,
}

#[derive(Subcommand)]
enum Command {
    /// Make a new repository and its writer key
    Init(init::Init),
    /// Check that everything Restante needs is there
    Doctor(store::Doctor),
    /// Print the SQL that gives a role what Restante needs
    Grants(store::Grants),
    /// Take a snapshot of the whole store
    Snapshot(snapshot::Take),
    /// List snapshots
    Snapshots(snapshots::List),
    /// Show one snapshot: tables, rows, what is not covered
    Show(show::Show),
    /// Print the rows of a table from a snapshot
    Dump(dump::Dump),
    /// Draft a profile of an unknown store
    Inspect(inspect::Inspect),
    /// Show what the live store has lost since a snapshot
    Gap(gap::Gap),
    /// Find messages in a snapshot and say what became of each
    Find(find::Find),
    /// Show what changed between two snapshots, table by table
    Diff(diff::Diff),
    /// Put lost mail back into the live store; or a whole snapshot, or a table, into a database
    Restore(restore::Restore),
    /// List the replays that put mail back
    Replays(replays::Replays),
    /// Take a replay back
    Undo(replays::Undo),
    /// Check that snapshots are there and sound
    Verify(verify::Verify),
    /// Restore a snapshot aside and prove that it is what was there
    Drill(drill::Drill),
    /// Keep snapshots from being forgotten
    Hold(hold::Hold),
    /// Forget snapshots: those that no rule keeps, or those that are named
    Forget(forget::Forget),
    /// Remove what no snapshot needs any more
    Prune(prune::Prune),
    /// Run changes of the database that were approved, never without a certified snapshot
    #[command(subcommand)]
    Guard(guard::Guarded),
    /// Manage keys and readers
    #[command(subcommand)]
    Key(key::Key),
    /// Print shell completions
    Completions(completions::Completions),
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    run(std::env::args_os()).into()
}

fn run(arguments: impl Iterator<Item = OsString>) -> Exit {
    let parsed = Cli::command().try_get_matches_from(arguments).and_then(|matches| {
        let name = matches.subcommand_name().unwrap_or_default().to_owned();
        Ok((Cli::from_arg_matches(&matches)?, matches, name))
    });
    let (cli, matches, name) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => {
            // Help and version are no error.
            let exit = if e.use_stderr() { Exit::Usage } else { Exit::Done };
            let _ = e.print();
            return exit;
        }
    };
    progress::start_logging(cli.global.verbose);
    if cli.global.all { each(&cli.global, &matches, &name) } else { one(cli, &name) }
}

/// Runs a job once for each store of the configuration file. What fails with one stops none of the others.
fn each(global: &Global, matches: &ArgMatches, name: &str) -> Exit {
    let stores = || -> anyhow::Result<Vec<String>> {
        if !hooks::JOBS.contains(&name) && name != "snapshots" {
            return Err(UsageError(format!("--all: not for `{name}`; give --of NAME")).into());
        }
        let stores: Vec<String> = Config::load(global.config.as_deref())?.stores.into_keys().collect();
        if stores.is_empty() {
            return Err(UsageError("--all: the configuration file has no [stores.NAME]".into()).into());
        }
        Ok(stores)
    };
    let stores = match stores() {
        Ok(stores) => stores,
        Err(e) => return exit::report(&e, global.json),
    };
    let output = output::Output::new(global.json, global.quiet);
    let mut worst = Exit::Done;
    for store in stores {
        // A command is consumed by its run.
        let Ok(mut cli) = Cli::from_arg_matches(matches) else { return Exit::Usage };
        if let Err(e) = output.json("store", &serde_json::json!({ "name": store })) {
            return exit::report(&e, global.json);
        }
        output.line(format!("== {store}"));
        cli.global.metrics = cli.global.metrics.map(|path| metrics::of(&path, &store));
        (cli.global.all, cli.global.of) = (false, Some(store));
        let exit = one(cli, name);
        if exit == Exit::Interrupted {
            return exit;
        }
        if matches!(worst, Exit::Done) || (worst == Exit::Findings && exit != Exit::Done) {
            worst = exit;
        }
    }
    worst
}

fn one(cli: Cli, name: &str) -> Exit {
    let (json, began) = (cli.global.json, std::time::Instant::now());
    let context = match Context::new(cli.global) {
        Ok(context) => context,
        Err(e) => return exit::report(&e, json),
    };
    // Held until the process ends.
    let _lock = match context.lock() {
        Ok(lock) => lock,
        Err(e) => return exit::report(&e, json),
    };
    let around = hooks::Around::new(&context.config.hooks, name, context.global.dry_run);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return exit::report(&anyhow::Error::new(e).context("cannot start threads"), json),
    };
    let outcome =
        around.before().and_then(|()| runtime.block_on(context.until_interrupted(dispatch(cli.command, &context))));
    // Threads may still wait for a queue that nobody empties any more.
    runtime.shutdown_background();
    let mut exit = outcome.unwrap_or_else(|e| exit::report(&e, json));
    if let Err(e) = around.end(exit) {
        let failed = exit::report(&e, json);
        exit = if exit == Exit::Done { failed } else { exit };
    }
    let written = context.global.metrics.as_ref().map(|path| context.metrics.write(path, name, exit, began.elapsed()));
    match written.transpose() {
        Ok(_) => exit,
        Err(e) => exit::report(&e, json),
    }
}

async fn dispatch(command: Command, context: &Context) -> anyhow::Result<Exit> {
    match command {
        Command::Init(command) => command.run(context).await,
        Command::Doctor(command) => command.run(context).await,
        Command::Grants(command) => command.run(context).await,
        Command::Snapshot(command) => command.run(context).await,
        Command::Snapshots(command) => command.run(context).await,
        Command::Show(command) => command.run(context).await,
        Command::Dump(command) => command.run(context).await,
        Command::Inspect(command) => command.run(context).await,
        Command::Gap(command) => command.run(context).await,
        Command::Find(command) => command.run(context).await,
        Command::Diff(command) => command.run(context).await,
        Command::Replays(command) => command.run(context).await,
        Command::Undo(command) => command.run(context).await,
        Command::Restore(command) => command.run(context).await,
        Command::Verify(command) => command.run(context).await,
        Command::Drill(command) => command.run(context).await,
        Command::Hold(command) => command.run(context).await,
        Command::Forget(command) => command.run(context).await,
        Command::Prune(command) => command.run(context).await,
        Command::Guard(command) => command.run(context).await,
        Command::Key(command) => command.run(context).await,
        Command::Completions(command) => command.run(),
    }
}
