//! The server on this host: where its files and programs are, stopping it, proving that it is down, starting it as it was started.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::change::After;
use super::error::GuardError;
use super::processes::{self, Process};
use crate::postgres::session::Session;

/// How long a stop or a start may take: a checkpoint, a recovery.
const PATIENCE: Duration = Duration::from_secs(600);

/// A server whose files are on this host and belong to this account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    pub data: PathBuf,
    /// Where `pg_ctl` is.
    pub programs: PathBuf,
    /// With what the postmaster was started, without the program itself.
    pub arguments: Vec<String>,
    /// The process, while it runs.
    pub postmaster: i32,
    /// Its folder of sockets and its port, to ask whether it answers.
    pub socket: String,
    pub port: String,
}

impl Local {
    /// Finds the server behind a session. The error says why it cannot be stopped and fenced from here.
    pub async fn find(session: &Session, system_identifier: &str) -> Result<Self, String> {
        let text = async |sql: &str| -> Option<String> {
            session.client().query_one_scalar::<Option<String>, _>(sql, &[]).await.ok().flatten()
        };
        let data = text("SELECT current_setting('data_directory', true)").await.filter(|data| !data.is_empty());
        let data = data.ok_or("the role may not know where the data directory is: GRANT pg_read_all_settings to it, or use a superuser; a managed server does not allow mode offline")?;
        let elsewhere = |why: &str| {
            format!(
                "the data directory {data} is not to be had on this host ({why}): run the guard on the database server, as its account; a managed server does not allow mode offline"
            )
        };
        let path = Path::new(&data).canonicalize().map_err(|e| elsewhere(&e.to_string()))?;
        let owner =
            std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&path).map_err(|e| elsewhere(&e.to_string()))?);
        if owner != rustix::process::geteuid().as_raw() {
            return Err(format!(
                "the data directory {data} belongs to another account: run the guard as the account that the server runs as"
            ));
        }
        let lock = std::fs::read_to_string(path.join("postmaster.pid")).map_err(|e| elsewhere(&e.to_string()))?;
        let pid = lock
            .lines()
            .next()
            .and_then(|line| line.trim().parse().ok())
            .ok_or_else(|| elsewhere("its postmaster.pid names no process"))?;
        let postmaster = Process::of(pid).filter(|process| process.folder().as_deref() == Some(&path));
        let postmaster = postmaster.ok_or_else(|| elsewhere("its postmaster is no process of this host"))?;
        let program = postmaster.program().ok_or_else(|| elsewhere("its program cannot be seen"))?;
        let programs = program.parent().map(Path::to_owned).unwrap_or_default();
        let tool = |name: &str| programs.join(name).is_file();
        if !tool("pg_ctl") || !tool("pg_controldata") {
            return Err(format!(
                "pg_ctl and pg_controldata are not in {}, where the server's program is",
                programs.display()
            ));
        }
        let socket = text("SELECT split_part(current_setting('unix_socket_directories', true), ',', 1)")
            .await
            .unwrap_or_default();
        let port = text("SELECT current_setting('port')").await.unwrap_or_default();
        let arguments = postmaster.arguments().into_iter().skip(1).collect();
        let local = Self { data: path, programs, arguments, postmaster: pid, socket, port };
        let control = local.control().await.map_err(|e| e.to_string())?;
        if control.system_identifier != system_identifier {
            return Err(format!(
                "the data directory {data} of this host is of another server (system identifier {})",
                control.system_identifier
            ));
        }
        Ok(local)
    }

    /// The server that the commands of a change make of this one.
    pub fn made(&self, after: &After) -> Self {
        Self {
            data: after.data.canonicalize().unwrap_or_else(|_| after.data.clone()),
            programs: after.programs.clone(),
            arguments: after.arguments.clone(),
            postmaster: 0,
            ..self.clone()
        }
    }

    pub fn postmaster(&self) -> Option<Process> {
        Process::of(self.postmaster).filter(|process| process.folder().as_deref() == Some(&self.data))
    }

    /// Postmasters that work in the data directory: one holds the lock file, or has children. A process that is there and neither holds it nor
    /// has any is one that tries to start, and ends at the fence or at the other's lock.
    fn servers(&self) -> Vec<Process> {
        let all = processes::servers_in(&self.data);
        let parents: Vec<i32> = all.iter().filter_map(|process| Some(process.parent()?.pid)).collect();
        let lock = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let holder = lock.lines().next().and_then(|line| line.trim().trim_start_matches('-').parse::<i32>().ok());
        all.into_iter().filter(|process| parents.contains(&process.pid) || holder == Some(process.pid)).collect()
    }

    /// Servers in the data directory that were not started by the commands of `run`. A postmaster has the mark of who started it; its
    /// children write what they do over their environment.
    pub fn strangers(&self, run: &str) -> Vec<Process> {
        self.servers().into_iter().filter(|process| !process.is_marked(run)).collect()
    }

    pub fn is_running(&self) -> bool {
        !self.servers().is_empty()
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command
            .arg("-D")
            .arg(&self.data)
            .stdin(Stdio::null())
            // What it says is read.
            .env("LC_ALL", "C")
            .current_dir(&self.data)
            .process_group(0);
        command
    }

    async fn run(mut command: Command, name: &str) -> Result<String, GuardError> {
        let fail = |message: String| GuardError::Program { program: name.to_owned(), message };
        let output = command.output().await.map_err(|e| fail(e.to_string()))?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() {
            Ok(said)
        } else {
            Err(fail(said.trim().lines().last().unwrap_or_default().to_owned()))
        }
    }

    /// What the control file says.
    pub async fn control(&self) -> Result<Control, GuardError> {
        let said = Self::run(self.tool("pg_controldata"), "pg_controldata").await?;
        let field = |name: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
            line.map(|value| value.trim().to_owned()).unwrap_or_default()
        };
        Ok(Control { system_identifier: field("Database system identifier"), state: field("Database cluster state") })
    }

    /// Stops the server if it runs, and proves that it is down: no process, and the control file says that it was shut down.
    pub async fn stop(&self) -> Result<(), GuardError> {
        if self.is_running() {
            let mut stop = self.tool("pg_ctl");
            stop.args(["-m", "fast", "-w", "-t", &PATIENCE.as_secs().to_string(), "stop"]);
            Self::run(stop, "pg_ctl stop").await?;
        }
        self.prove_down().await
    }

    /// An error unless it is down, and cleanly so.
    pub async fn prove_down(&self) -> Result<(), GuardError> {
        // The last of its processes end a moment after the postmaster.
        for _ in 0..50 {
            if !self.is_running() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if let Some(process) = self.servers().first() {
            return Err(GuardError::Server(format!("process {} still works in {}", process.pid, self.data.display())));
        }
        let state = self.control().await?.state;
        if state == "shut down" {
            Ok(())
        } else {
            Err(GuardError::Server(format!(
                "it is down, but the control file says {state:?} and not \"shut down\": it was not stopped in order"
            )))
        }
    }

    /// Ends a server that must not be there, whoever started it.
    pub async fn stop_stranger(&self) {
        let mut stop = self.tool("pg_ctl");
        stop.args(["-m", "fast", "-w", "-t", "60", "stop"]);
        if Self::run(stop, "pg_ctl stop").await.is_err() {
            // Its lock file may be gone, or a directory; SIGINT is a fast shutdown.
            processes::signal(&self.servers(), rustix::process::Signal::INT);
            for _ in 0..100 {
                if !self.is_running() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            processes::signal(&self.servers(), rustix::process::Signal::QUIT);
        }
    }

    /// Starts the server as it was started before; `log` takes what it says until its own log begins.
    pub async fn start(&self, log: &Path) -> Result<(), GuardError> {
        if self.is_running() {
            return self.answers().await;
        }
        let mut others = Vec::new();
        let mut arguments = self.arguments.iter();
        while let Some(argument) = arguments.next() {
            // pg_ctl gives that one itself.
            match argument.strip_prefix("-D") {
                Some("") => drop(arguments.next()),
                Some(_) => {}
                None => others.push(argument.as_str()),
            }
        }
        let options = shlex::try_join(others).map_err(|e| GuardError::Server(e.to_string()))?;
        let mut start = self.tool("pg_ctl");
        start.args(["-w", "-t", &PATIENCE.as_secs().to_string(), "-l"]).arg(log);
        if !options.is_empty() {
            start.arg("-o").arg(options);
        }
        start.arg("start");
        // The server keeps what it inherits, the language too.
        match std::env::var_os("LC_ALL") {
            Some(language) => start.env("LC_ALL", language),
            None => start.env_remove("LC_ALL"),
        };
        start.stdout(Stdio::null()).stderr(Stdio::null());
        let status = start.status().await.map_err(|e| GuardError::Server(e.to_string()))?;
        // A supervisor that watches again, as after a reboot, may have started it in the same moment.
        if status.success() || self.is_running() {
            self.answers().await
        } else {
            Err(GuardError::Server(format!("pg_ctl start failed; {} says why", log.display())))
        }
    }

    /// An error where another server answers at its address.
    pub async fn is_behind(&self, session: &Session) -> Result<(), GuardError> {
        let (here, there) = (self.control().await?.system_identifier, session.facts().await?.system_identifier);
        if there.as_ref() == Some(&here) {
            return Ok(());
        }
        let there = there.unwrap_or_else(|| "unknown".into());
        let data = self.data.display();
        Err(GuardError::Server(format!(
            "another one answers (system identifier {there}) than that of {data} ({here}): it must listen where the one of before did"
        )))
    }

    /// Waits until it answers.
    pub async fn answers(&self) -> Result<(), GuardError> {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let mut ask = Command::new(self.programs.join("pg_isready"));
            ask.args(["-q", "-t", "2", "-p", &self.port]).stdin(Stdio::null());
            if !self.socket.is_empty() {
                ask.args(["-h", &self.socket]);
            }
            if ask.status().await.is_ok_and(|status| status.success()) {
                return Ok(());
            }
            if tokio::time::Instant::now() > until {
                return Err(GuardError::Server("it does not answer".into()));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// What `pg_controldata` says.
#[derive(Debug, Clone)]
pub struct Control {
    pub system_identifier: String,
    pub state: String,
}
