//! A PostgreSQL for one drill: made in a folder of its own, reached through a socket that nobody else may open, gone afterwards.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::DrillError;
use crate::postgres::dsn::{Dsn, DsnError};

/// How long a new server may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nothing survives the drill, so nothing is flushed; nobody else connects.
const SETTINGS: &[&str] = &[
    "listen_addresses=",
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "wal_level=minimal",
    "max_wal_senders=0",
    "max_wal_size=4GB",
    "maintenance_work_mem=256MB",
    "max_locks_per_transaction=1024",
    "autovacuum=off",
];

/// The folder with a server's programs: the one given, else that of the snapshot's major version, else of the next newer one.
pub fn programs(given: Option<&Path>, wanted: u32) -> Result<PathBuf, DrillError> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let of_debian = versions("/usr/lib/postgresql", "").map(|(version, folder)| (version, folder.join("bin")));
    let of_red_hat = versions("/usr", "pgsql-").map(|(version, folder)| (version, folder.join("bin")));
    let mut found: Vec<(u32, PathBuf)> = of_debian
        .chain(of_red_hat)
        .filter(|(version, bin)| *version >= wanted && bin.join("initdb").is_file())
        .collect();
    found.sort();
    let elsewhere = || std::env::split_paths(&on_path).find(|folder| folder.join("initdb").is_file());
    found.into_iter().next().map(|(_, bin)| bin).or_else(elsewhere).ok_or(DrillError::NoServer { wanted })
}

/// Folders whose names end with a version.
fn versions(place: &str, before: &str) -> impl Iterator<Item = (u32, PathBuf)> {
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let version = entry.file_name().to_str()?.strip_prefix(before)?.parse().ok()?;
        Some((version, entry.path()))
    })
}

/// As whom the server runs: PostgreSQL refuses to run as root, and then it is `postgres`.
#[derive(Clone, Copy)]
struct Account(Option<(u32, u32)>);

impl Account {
    /// `ours`: a folder that we made.
    async fn of_server(ours: &Path) -> Result<Self, String> {
        if std::fs::metadata(ours).map_err(|e| e.to_string())?.uid() != 0 {
            return Ok(Self(None));
        }
        let id = async |option: &str| -> Result<u32, String> {
            let said = Command::new("id").args([option, "postgres"]).output().await.map_err(|e| e.to_string())?;
            let number = String::from_utf8_lossy(&said.stdout).trim().parse();
            number.map_err(|_| {
                "no server runs as root, and there is no account `postgres`: run the drill as another user".to_owned()
            })
        };
        Ok(Self(Some((id("-u").await?, id("-g").await?))))
    }

    fn give(self, folder: &Path) -> std::io::Result<()> {
        self.0.map_or(Ok(()), |(user, group)| chown(folder, Some(user), Some(group)))
    }

    fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // Not where we stand: it may be closed to that account.
        command.current_dir("/");
        if let Some((user, group)) = self.0 {
            command.uid(user).gid(group);
        }
        command
    }
}

/// A server that is running.
pub struct Scratch {
    bin: PathBuf,
    user: Account,
    // In this order: the server first, then its files.
    postmaster: Child,
    data: TempDir,
    /// Apart, because a socket's path must be short.
    socket: TempDir,
}

impl Scratch {
    pub async fn start(bin: &Path, folder: &Path, encoding: &str) -> Result<Self, DrillError> {
        let fail = |doing| move |message: String| DrillError::Scratch { doing, message };
        let temporary = |place: &Path| {
            let made = tempfile::Builder::new().prefix("restante-drill-").tempdir_in(place);
            made.map_err(|e| fail("made")(format!("{}: {e}", place.display())))
        };
        let (data, socket) = (temporary(folder)?, temporary(Path::new("/tmp"))?);
        let user = Account::of_server(data.path()).await.map_err(fail("made"))?;
        for folder in [data.path(), socket.path()] {
            user.give(folder).map_err(|e| fail("made")(format!("{}: {e}", folder.display())))?;
        }
        let initdb = user
            .command(&bin.join("initdb"))
            .args(["--no-sync", "--locale=C", "--auth=trust", "--username=restante"])
            .arg(format!("--encoding={encoding}"))
            .arg("-D")
            .arg(data.path())
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await;
        succeeded(initdb).map_err(fail("made"))?;
        let log = data.path().join("drill.log");
        let file = std::fs::File::create(&log).map_err(|e| fail("started")(e.to_string()))?;
        let mut command = user.command(&bin.join("postgres"));
        command.arg("-D").arg(data.path()).arg("-k").arg(socket.path());
        command.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        // Ctrl-C is ours to pass on.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).kill_on_drop(true);
        let postmaster = command.spawn().map_err(|e| fail("started")(e.to_string()))?;
        let mut scratch = Self { bin: bin.to_owned(), user, postmaster, data, socket };
        scratch.answers().await.map_err(|message| {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            fail("started")(format!("{message}: {}", said.lines().rev().take(3).collect::<Vec<_>>().join("; ")))
        })?;
        Ok(scratch)
    }

    async fn answers(&mut self) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut ask = Command::new(self.bin.join("pg_isready"));
            ask.arg("-q").arg("-h").arg(self.socket.path()).stdin(Stdio::null());
            match ask.status().await {
                Ok(status) if status.success() => return Ok(()),
                Err(e) => return Err(format!("pg_isready: {e}")),
                Ok(_) => {}
            }
            if let Ok(Some(status)) = self.postmaster.try_wait() {
                return Err(format!("it ended with {status}"));
            }
            if Instant::now() > until {
                return Err("it does not answer".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Its database, which is empty.
    pub fn dsn(&self) -> Result<Dsn, DsnError> {
        let socket = self.socket.path().display();
        Dsn::from_process(&format!("host={socket} port=5432 user=restante dbname=postgres sslmode=disable"))
    }

    /// Ends it at once and removes it.
    pub async fn stop(mut self) {
        let mut stop = self.user.command(&self.bin.join("pg_ctl"));
        stop.args(["stop", "-m", "immediate", "-D"]).arg(self.data.path());
        // If it fails, the server is killed when it is dropped.
        let _ = stop.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().await;
        let _ = self.postmaster.wait().await;
    }
}

/// In words, why a program did not do its work.
fn succeeded(output: std::io::Result<Output>) -> Result<(), String> {
    let output = output.map_err(|e| e.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")),
    }
}
