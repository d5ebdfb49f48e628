//! `restante guard run`, and what is told of a change that ended.

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::{For, Opened, Place, Saying, Taking};
use crate::cli::comparing::Comparing;
use crate::cli::context::Context;
use crate::cli::exit::Exit;
use crate::cli::output::{inert, table};
use crate::cli::snapshot::Take;
use crate::cli::{again, units};
use crate::compare::fit;
use crate::guard::change::{Change, May};
use crate::guard::comparison::TableVerdict;
use crate::guard::{GuardError, Outcome, run};
use crate::postgres::catalog;
use crate::postgres::session::{Session, SessionOptions};
use crate::postgres::sql;
use crate::profile::Profile;

/// Run a change: snapshot, applications out, server stopped and fenced, commands, comparison
///
/// Exit code 4: refused, nothing was touched. 3: done, and the comparison found something. Anything else but 0: see `guard status`.
#[derive(Args)]
pub struct Run {
    /// The change (TOML)
    change: PathBuf,
    #[command(flatten)]
    saying: Saying,
    #[command(flatten)]
    place: Place,
    #[command(flatten, next_help_heading = "Snapshots before and after")]
    take: Take,
}

impl Run {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        if context.global.dry_run {
            return Err(crate::cli::exit::UsageError("`guard plan` shows what would be done".into()).into());
        }
        let opened = Opened::new(context, &self.place, For::Writing).await?;
        let (guard, change) = (opened.guard(context), Change::read(&self.change)?);
        let snapshots = Taking { context, repository: opened.opened.as_ref(), take: &self.take };
        let _hangup = hangups(context);
        match run::run(&guard, &change, &self.saying.given(context), &snapshots).await {
            Ok(outcome) => report(context, &outcome).await,
            Err(error) => {
                if let Some(state) = opened.folder.load()? {
                    context.output.note(format!(
                        "{} stands at: {}; see `restante guard status`",
                        state.canonical.change.id, state.step
                    ));
                }
                if let GuardError::Refused(reasons) = &error {
                    context.output.json("guard_refused", &json!({ "reasons": reasons }))?;
                }
                Err(error.into())
            }
        }
    }
}

/// A terminal that goes away interrupts like Ctrl-C, unless nohup said that it does not matter.
pub fn hangups(context: &Context) -> Option<tokio::task::JoinHandle<()>> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    if ignored & 1 != 0 {
        return None;
    }
    let mut hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).ok()?;
    let cancel = context.cancel.clone();
    Some(tokio::spawn(async move {
        hangup.recv().await;
        cancel.cancel();
    }))
}

/// Tells how a change ended, and for each finding what to run.
pub async fn report(context: &Context, outcome: &Outcome) -> anyhow::Result<Exit> {
    let commands = commands(context, outcome).await;
    context.progress.finish();
    let mut value = serde_json::to_value(outcome)?;
    if let Some(object) = value.as_object_mut() {
        object.insert("commands".into(), json!(commands));
    }
    context.output.json("guard_ended", &value)?;
    let out = &context.output;
    let Some(comparison) = &outcome.comparison else {
        let why = if outcome.commands_begun { "not compared" } else { "nothing was run" };
        out.line(format!("{} ended: {why}", outcome.id));
        return Ok(if outcome.commands_begun { Exit::Findings } else { Exit::Done });
    };
    let mut lines = table(&["table", "declared", "before", "after", "lost or changed", "new", ""], &[2, 3, 4, 5]);
    let count = |number: Option<u64>| number.map(units::count).unwrap_or_default();
    let mut same = 0;
    for one in &comparison.tables {
        let TableVerdict { table, declared, rows_before, rows_after, removed, added, finding, note, .. } = one;
        if finding.is_none() && note.is_none() && *declared == May::None && *added == Some(0) {
            same += 1;
            continue;
        }
        let declared = match declared {
            May::None => "",
            May::Schema => "schema",
            May::Rows => "rows",
        };
        let said = finding.as_ref().map(|why| format!("FINDING: {why}")).or_else(|| note.clone()).unwrap_or_default();
        lines.add_row([
            inert(table),
            declared.to_owned(),
            count(*rows_before),
            count(*rows_after),
            count(*removed),
            count(*added),
            inert(&said),
        ]);
    }
    if !lines.is_empty() {
        out.table(&lines);
    }
    if same > 0 {
        out.line(format!("{same} tables are the same"));
    }
    let findings = comparison.findings().count();
    if findings == 0 {
        out.line(format!(
            "{} ended after {:.0} s; compared with the snapshot: no finding",
            outcome.id, outcome.seconds
        ));
        return Ok(Exit::Done);
    }
    out.line("");
    out.line(format!("{findings} tables are not what they should be. The snapshot of before the change is held. To see and to put back:"));
    for command in &commands {
        out.line(format!("  {command}"));
    }
    if !comparison.with_identity {
        out.line("Which columns changed, and by mailbox and hour what is lost, only a reader's identity tells (-i FILE): `restante gap` shows it.");
    }
    Ok(Exit::Findings)
}

/// What to run after findings, ready to be pasted.
async fn commands(context: &Context, outcome: &Outcome) -> Vec<String> {
    let (Some(comparison), Some(snapshot)) = (&outcome.comparison, &outcome.snapshot) else { return Vec::new() };
    let short = snapshot.to_hex()[..12].to_owned();
    let mut commands = Vec::new();
    let profile = profile(context).await;
    let findings: Vec<&TableVerdict> = comparison.findings().collect();
    // What `restore` puts back: mail with its parts and flags, and what is derived from it. Flags of living mail, which only their own rows
    // tell of, and tables that nobody described come back beside the live ones.
    let message = profile.as_ref().map(|profile| profile.qualify(&profile.message.table));
    let mail_was_hit = findings.iter().any(|table| Some(&table.table) == message.as_ref());
    let of_mail = |table: &TableVerdict| {
        profile.as_ref().is_some_and(|profile| {
            let is = |name: &str| profile.qualify(name) == table.table;
            let keywords = profile.flags.as_ref().and_then(|flags| flags.keywords.as_ref());
            let of_flags = keywords.is_some_and(|keywords| is(&keywords.table));
            let derived = profile.derived.iter().any(|derived| is(&derived.table));
            (profile.has_role(&table.table) || derived) && (mail_was_hit || !of_flags)
        })
    };
    let (mail, others): (Vec<&TableVerdict>, Vec<&TableVerdict>) =
        findings.into_iter().partition(|table| of_mail(table));
    if !mail.is_empty() {
        commands.extend(mail_commands(context, &short, outcome.taken, &mail, profile.as_ref()));
    }
    for table in others {
        commands.push(rescue(context, &short, &table.table));
        commands.extend(refill(table));
    }
    commands
}

async fn profile(context: &Context) -> Option<Profile> {
    let session = Session::connect(&context.dsn().ok()?, SessionOptions::default()).await.ok()?;
    let catalog = catalog::read(&session).await.ok()?;
    match context.config.profile.as_deref() {
        Some(name) => match Profile::builtin(name) {
            Some(profile) => profile.ok(),
            None => Profile::parse(name, &std::fs::read_to_string(name).ok()?).ok(),
        },
        None => fit::recognise(&session, &catalog).await.ok()?,
    }
}

fn mail_commands(
    context: &Context,
    short: &str,
    taken: Option<Timestamp>,
    tables: &[&TableVerdict],
    profile: Option<&Profile>,
) -> Vec<String> {
    let comparing = |damaged_at| Comparing {
        profile: context.config.profile.clone(),
        renamed: Vec::new(),
        from: None,
        to: None,
        damaged_at,
    };
    let mut commands = vec![with_identity(context, again::command(context, &["gap", short], Some(&comparing(taken))))];
    let mut words = vec!["restore".to_owned(), short.to_owned()];
    let message = profile.map(|profile| profile.qualify(&profile.message.table));
    for table in tables.iter().filter(|table| Some(&table.table) == message.as_ref()) {
        for column in &table.columns {
            words.extend(["--repair-columns".to_owned(), format!("{}.{column}", table.table)]);
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    commands.push(with_identity(context, again::command(context, &words, Some(&comparing(taken)))));
    commands
}

/// Names an identity where none was given.
fn with_identity(context: &Context, command: String) -> String {
    if context.identities().is_empty() { command + " -i IDENTITY" } else { command }
}

/// A table beside the live one.
fn rescue(context: &Context, short: &str, table: &str) -> String {
    let comparing = Comparing { profile: None, renamed: Vec::new(), from: None, to: None, damaged_at: None };
    let words = ["restore", short, "--table", table, "--schema", "rescue", "--into", "DSN"];
    with_identity(context, again::command(context, &words, Some(&comparing)))
}

/// Where rows are gone and none came, the lost ones from there; the key says which are there.
fn refill(table: &TableVerdict) -> Option<String> {
    let (schema, name) = table.table.split_once('.')?;
    let lost_alone = table.removed > Some(0) && table.added == Some(0) && table.note.is_none();
    let (live, rescued) = (sql::qualified(schema, name), sql::qualified("rescue", name));
    let insert = format!("INSERT INTO {live} SELECT * FROM {rescued} ON CONFLICT DO NOTHING");
    lost_alone.then(|| shlex::try_join(["psql", "-d", "DSN", "-c", &insert]).ok()).flatten()
}
