//! What every command has: settings from flags, environment and file, in this order; the output; the way to an
//! open repository and a live store.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::Global;
use super::exit::{AlreadyRunning, Interrupted, UsageError};
use super::metrics::Metrics;
use super::output::Output;
use super::progress::Progress;
use crate::config::Config;
use crate::monitor::SharedMonitor;
use crate::postgres::dsn::Dsn;
use crate::repository::secrets::WriterKey;
use crate::repository::snapshots::{self, Snapshot};
use crate::repository::verifier::VerifierKey;
use crate::repository::{Access, Repository, RepositoryError};
use crate::storage::location::{self, Location};
use crate::storage::{Capabilities, Storage};

pub struct Context {
    pub global: Global,
    pub config: Config,
    pub output: Output,
    pub progress: Arc<Progress>,
    pub metrics: Metrics,
    /// Cancelled by the first Ctrl-C; the second ends at once.
    pub cancel: CancellationToken,
}

impl Context {
    pub fn new(global: Global) -> anyhow::Result<Self> {
        let config = Config::load(global.config.as_deref())?;
        let config = match &global.of {
            Some(name) => config.of(name).map_err(|e| UsageError(e.to_string()))?,
            None => config,
        };
        let output = Output::new(global.json, global.quiet);
        let progress = Arc::new(Progress::new(global.progress, global.json, global.quiet));
        let (metrics, cancel) = (Metrics::default(), CancellationToken::new());
        Ok(Self { global, config, output, progress, metrics, cancel })
    }

    pub fn monitor(&self) -> SharedMonitor {
        self.progress.clone()
    }

    /// Runs a command until it is done or Ctrl-C was pressed. After the first the work may tidy up for a while.
    pub async fn until_interrupted<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let mut work = std::pin::pin!(work);
        let done = tokio::select! {
            done = &mut work => done,
            _ = interrupted() => {
                self.cancel.cancel();
                self.output.note("interrupted: putting things in order; press again to end at once");
                tokio::select! {
                    done = &mut work => match done {
                        Ok(_) => Err(Interrupted.into()),
                        Err(e) => Err(e.context(Interrupted)),
                    },
                    _ = interrupted() => Err(Interrupted.into()),
                    () = tokio::time::sleep(std::time::Duration::from_secs(20)) => Err(Interrupted.into()),
                }
            }
        };
        self.progress.finish();
        done
    }

    pub fn location(&self) -> anyhow::Result<Location> {
        let text = self.global.repo.as_ref().or(self.config.repo.as_ref()).ok_or_else(|| {
            UsageError("no repository: give `--repo`, RESTANTE_REPO, or `repo` in restante.toml".into())
        })?;
        text.parse().map_err(|e| UsageError(format!("--repo: {e}")).into())
    }

    pub async fn storage(&self) -> anyhow::Result<Arc<dyn Storage>> {
        Ok(location::open(&self.location()?).await?)
    }

    pub fn asks_for_lock(&self) -> anyhow::Result<bool> {
        Ok(matches!(self.location()?, Location::S3(location) if location.lock.is_some()))
    }

    /// Finds out what the storage can do, and insists on the lock that its address asks for: some servers ignore it.
    pub async fn probe(&self, storage: &dyn Storage) -> anyhow::Result<Capabilities> {
        let found = storage.probe().await?;
        anyhow::ensure!(
            !self.asks_for_lock()? || found.object_lock == Some(true),
            "{}: lock= asks for object lock, and the bucket has none, or it could not be read back",
            storage.address()
        );
        Ok(found)
    }

    pub fn key_path(&self) -> Option<PathBuf> {
        self.global.key.clone().or_else(|| self.config.key.clone())
    }

    /// With `--exclusive`: a lock that ends with the process, beside the writer key.
    pub fn lock(&self) -> anyhow::Result<Option<std::fs::File>> {
        if !self.global.exclusive {
            return Ok(None);
        }
        let key = self.key_path().ok_or_else(|| UsageError("--exclusive needs the writer key: give `--key`".into()))?;
        let path = beside(&key, ".lock");
        let fail = || format!("--exclusive: cannot lock {}", path.display());
        let file = std::fs::File::options().create(true).truncate(false).write(true).open(&path).with_context(fail)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => Err(AlreadyRunning(path).into()),
            Err(std::fs::TryLockError::Error(e)) => Err(anyhow::Error::new(e).context(fail())),
        }
    }

    pub fn identities(&self) -> Vec<PathBuf> {
        if self.global.identity.is_empty() { self.config.identity.clone() } else { self.global.identity.clone() }
    }

    fn expected(&self) -> anyhow::Result<Option<crate::repository::id::Fingerprint>> {
        let text = self.global.expect_repository.as_deref();
        text.map(|text| text.parse().map_err(|e| UsageError(format!("--expect-repository: {e}")).into())).transpose()
    }

    /// For commands that write snapshots.
    pub async fn open_as_writer(&self) -> anyhow::Result<Repository> {
        let path = self.key_path().ok_or_else(|| {
            UsageError("this needs the writer key: give `--key`, RESTANTE_KEY, or `key` in restante.toml".into())
        })?;
        let key = WriterKey::load(&path)?;
        Ok(Repository::open(self.storage().await?, Access::Writer(key), self.expected()?).await?)
    }

    /// For commands that only check: with a writer's or a verifier's key.
    pub async fn open_to_check(&self) -> anyhow::Result<Repository> {
        let path = self.key_path().ok_or_else(|| {
            UsageError(
                "this needs a writer's or verifier's key: give `--key`, RESTANTE_KEY, or `key` in restante.toml".into(),
            )
        })?;
        // What is wrong with the file is told by whoever reads it as a writer's key.
        let text = zeroize::Zeroizing::new(std::fs::read_to_string(&path).unwrap_or_default());
        if !VerifierKey::is_one(&text) {
            return self.open_as_writer().await;
        }
        let key = VerifierKey::parse(&text).map_err(|message| RepositoryError::WriterKey { path, message })?;
        Ok(Repository::open(self.storage().await?, Access::Verifier(key), self.expected()?).await?)
    }

    /// For commands that open mail.
    pub async fn open_as_reader(&self) -> anyhow::Result<Repository> {
        let identities = self.identities();
        if identities.is_empty() {
            return Err(UsageError(
                "this opens mail and needs a reader's identity: give `-i FILE` or RESTANTE_IDENTITY".into(),
            )
            .into());
        }
        let repository = Repository::open(self.storage().await?, Access::Reader(identities), self.expected()?).await?;
        for (name, problem) in &repository.passed_over {
            self.monitor().warn(&format!("key ring {name} was passed over: {problem}"));
        }
        Ok(repository)
    }

    /// For commands that only look at structure: with whichever key is there.
    pub async fn open_to_look(&self) -> anyhow::Result<Repository> {
        if self.identities().is_empty() { self.open_to_check().await } else { self.open_as_reader().await }
    }

    /// Asks before something is written. Without a terminal and without `-y` the answer is no.
    pub fn confirm(&self, question: &str) -> anyhow::Result<()> {
        use std::io::IsTerminal;
        if self.global.yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() || self.output.is_json() {
            return Err(UsageError(format!("{question} There is nobody to ask: say `-y`")).into());
        }
        eprint!("{question} [y/N] ");
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).context("no answer")?;
        let yes = matches!(answer.trim(), "y" | "Y" | "yes");
        if yes { Ok(()) } else { Err(Interrupted.into()) }
    }

    pub fn dsn(&self) -> anyhow::Result<Dsn> {
        let text = self.global.store.as_ref().or(self.config.store.as_ref());
        if text.is_none() && !self.config.stores.is_empty() {
            let names = self.config.names();
            return Err(
                UsageError(format!("which store? The configuration file has several: --of NAME, of {names}")).into()
            );
        }
        dsn(text.map_or("", String::as_str))
    }

    /// All snapshots that are not forgotten, oldest first; those that do not open are told.
    pub async fn snapshots(&self, repository: &Repository) -> anyhow::Result<Vec<Snapshot>> {
        let mut found = self.all_snapshots(repository).await?;
        found.retain(|snapshot| snapshot.removable.is_none());
        Ok(found)
    }

    /// The same with those that are forgotten.
    pub async fn all_snapshots(&self, repository: &Repository) -> anyhow::Result<Vec<Snapshot>> {
        let (found, problems) = snapshots::list_all(repository).await?;
        for problem in problems {
            self.monitor().warn(&format!("a snapshot is left out: {problem}"));
        }
        Ok(found)
    }

    pub async fn snapshot(&self, repository: &Repository, wanted: &str) -> anyhow::Result<Snapshot> {
        let all = self.snapshots(repository).await?;
        let all = if snapshots::is_by_time(wanted) { self.of_database(all)? } else { all };
        let chosen = snapshots::select(&all, wanted)?.clone();
        let newer = |one: &&Snapshot| one.manifest.taken > chosen.manifest.taken && one.certificate.is_none();
        if let Some(newer) = all.iter().rfind(newer).filter(|_| wanted.starts_with("latest")) {
            let (newer, used) = (newer.short(), chosen.short());
            self.monitor()
                .warn(&format!("snapshot {newer} is newer and has no certificate, so it is not used; {used} is"));
        }
        Ok(chosen)
    }

    /// Of several stores in one repository, the snapshots of the database that `--of` or `--store` names: another one's is never meant by `latest`.
    fn of_database(&self, mut all: Vec<Snapshot>) -> anyhow::Result<Vec<Snapshot>> {
        let stores: BTreeSet<String> = all.iter().map(|one| one.manifest.store.database.clone()).collect();
        if stores.len() < 2 {
            return Ok(all);
        }
        let is_given = self.global.store.is_some() || self.config.store.is_some();
        let wanted = if is_given { Some(self.dsn()?.database) } else { None };
        all.retain(|one| wanted.as_ref() == Some(&one.manifest.store.database));
        if all.is_empty() {
            let known = stores.into_iter().collect::<Vec<_>>().join(", ");
            let message = format!(
                "the repository holds several stores ({known}): say which with --of or --store, or name a snapshot by its id"
            );
            return Err(UsageError(message).into());
        }
        Ok(all)
    }
}

pub fn dsn(text: &str) -> anyhow::Result<Dsn> {
    Dsn::from_process(text).map_err(|e| anyhow::Error::new(crate::postgres::PostgresError::from(e)))
}

/// The last snapshot that this writer made of each store: beside the writer key.
pub fn heads_path(key: &Path) -> PathBuf {
    beside(key, ".heads")
}

fn beside(key: &Path, ending: &str) -> PathBuf {
    let mut path = key.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

async fn interrupted() {
    let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    match terminate {
        Ok(mut terminate) => tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        },
        Err(_) => {
            let _ = tokio::signal::ctrl_c().await;
        }
    }
}

/// Reads a small file that may be missing.
pub fn read_optional(path: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}
