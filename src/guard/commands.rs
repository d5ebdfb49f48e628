//! Runs the commands of a change: the very bytes that were approved, in a folder of their own, their output into a file, and a watcher
//! beside them that ends them when a server appears where none may be.

use std::fs::{File, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::change::{Change, Mode};
use super::error::GuardError;
use super::fence::{self, Standing};
use super::processes::{self, MARK};
use super::server::Local;
use super::state::{Folder, State};
use crate::postgres::dsn::Dsn;
use crate::postgres::session::Session;

/// How often the watcher looks.
const GLANCE: Duration = Duration::from_millis(100);
/// How long commands have to end in order.
const GRACE: Duration = Duration::from_secs(10);

/// Copies the scripts as they were hashed, so that what is run is what was approved, whatever becomes of the files meanwhile.
pub fn lay_out(folder: &Folder, state: &State, change: &Change) -> Result<PathBuf, GuardError> {
    let scripts = folder.run_folder(state).join("scripts");
    std::fs::create_dir_all(&scripts).map_err(|e| GuardError::file(&scripts, e))?;
    let source = change.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for (name, bytes) in &change.scripts {
        let path = scripts.join(name);
        let fail = |e: std::io::Error| GuardError::file(&path, e);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(fail)?;
        }
        let is_program =
            std::fs::metadata(source.join(name)).is_ok_and(|found| found.permissions().mode() & 0o100 != 0);
        std::fs::write(&path, bytes).map_err(fail)?;
        std::fs::set_permissions(&path, Permissions::from_mode(if is_program { 0o500 } else { 0o400 }))
            .map_err(fail)?;
    }
    Ok(scripts)
}

/// Where the output of the commands goes. It may hold mail, so it is for its owner alone and shown nowhere.
pub fn output_file(folder: &Folder, state: &State) -> PathBuf {
    folder.run_folder(state).join("output.log")
}

/// What keeps watch.
pub struct Watch<'a> {
    pub run: &'a str,
    pub local: Option<&'a Local>,
    /// The server that the commands make of it.
    pub made: Option<&'a Local>,
    /// No fence: the commands start the server themselves.
    pub hand_over: bool,
    pub cancel: &'a CancellationToken,
}

impl Watch<'_> {
    /// What is wrong: a server that nobody declared, or a fence that is gone.
    fn breach(&self) -> Option<String> {
        let local = self.local?;
        for local in [Some(local), self.made].into_iter().flatten() {
            if let Some(stranger) = local.strangers(self.run).first() {
                let (pid, data) = (stranger.pid, local.data.display());
                return Some(format!("a server (process {pid}) was started in {data} while the change was under way"));
            }
        }
        let data = local.data.display();
        if self.hand_over {
            return None;
        }
        match fence::look(&local.data) {
            Ok(Standing::Of(run)) if run == self.run => None,
            Ok(_) => Some(format!("the fence {data}/postmaster.pid was taken away while the change was under way")),
            Err(e) => Some(e.to_string()),
        }
    }

    async fn until_breach(&self) -> String {
        loop {
            if let Some(breach) = self.breach() {
                return breach;
            }
            tokio::time::sleep(GLANCE).await;
        }
    }
}

/// Runs one command to its end. On any error nothing of it runs any more.
pub async fn run(
    number: usize,
    command: &[String],
    environment: &[(String, String)],
    scripts: &Path,
    output: &Path,
    watch: &Watch<'_>,
) -> Result<(), GuardError> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let fail = |message: String| GuardError::Command { number, program: program.clone(), message };
    let log = File::options().create(true).append(true).mode(0o600).open(output);
    let mut log = log.map_err(|e| GuardError::file(output, e))?;
    let error = log.try_clone().map_err(|e| GuardError::file(output, e))?;
    let words = shlex::try_join(command.iter().map(String::as_str)).unwrap_or_default();
    std::io::Write::write_all(&mut log, format!("--- {}  {words}\n", jiff::Timestamp::now()).as_bytes())
        .map_err(|e| GuardError::file(output, e))?;
    let is_script = scripts.join(program).is_file();
    let mut call = if is_script { Command::new(scripts.join(program)) } else { Command::new(program) };
    call.args(arguments)
        .current_dir(scripts)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env(MARK, watch.run)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(error)
        .process_group(0);
    let mut child: Child = call.spawn().map_err(|e| fail(e.to_string()))?;
    crate::failpoint::hit("guard:command:running");
    let ended = tokio::select! {
        status = child.wait() => match status {
            Ok(status) if status.success() => match watch.breach() {
                None => Ok(()),
                Some(breach) => Err(GuardError::Breached(breach)),
            },
            Ok(status) => Err(fail(format!("it ended with {status}; what it said is in {}", output.display()))),
            Err(e) => Err(fail(e.to_string())),
        },
        breach = watch.until_breach() => Err(GuardError::Breached(breach)),
        () = watch.cancel.cancelled() => Err(GuardError::Interrupted),
    };
    if ended.is_err() {
        end(watch.run).await;
        let _ = child.wait().await;
    }
    ended
}

/// Ends what the commands of a run started and is still there, in order if it can.
pub async fn end(run: &str) {
    processes::signal(&processes::marked(run), Signal::TERM);
    let until = tokio::time::Instant::now() + GRACE;
    while !processes::marked(run).is_empty() {
        if tokio::time::Instant::now() > until {
            processes::signal(&processes::marked(run), Signal::KILL);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        if tokio::time::Instant::now() > until + GRACE {
            return;
        }
    }
}

/// What commands find in their environment: the way to the server, or its data directory.
pub async fn environment(
    dsn: &Dsn,
    session: Option<&Session>,
    mode: Mode,
    local: Option<&Local>,
    made: Option<&Local>,
) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    if let Some(session) = session {
        let of_session = dsn.variables(session.endpoint());
        variables.extend(of_session.into_iter().map(|(name, value)| (name.to_owned(), value)));
    }
    if let Some(local) = local.filter(|_| mode == Mode::Offline) {
        variables.push(("PGDATA".into(), local.data.display().to_string()));
        variables.push(("PGBIN".into(), local.programs.display().to_string()));
        if let Some(made) = made {
            // As `pg_upgrade` reads them.
            let mut add = |name: &str, path: &Path| variables.push((name.into(), path.display().to_string()));
            add("PGDATAOLD", &local.data);
            add("PGBINOLD", &local.programs);
            add("PGDATANEW", &made.data);
            add("PGBINNEW", &made.programs);
        }
    }
    variables
}
