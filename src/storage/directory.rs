//! Objects as files below a directory: `packs/3f/3fa9…` is the file of that path.
//!
//! A file appears under its name only when it is whole and on the disk: it is written beside its place as
//! `.restante-…` (a name that no object can have), flushed with `fsync`, linked to its name without replacing what is there,
//! and then the folder is flushed. Leftovers of killed processes are never listed; [`Storage::probe`] sweeps old ones.
//!
//! All of it is blocking work and runs on tokio's threads for that.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::buffer::Buffer;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use jiff::Timestamp;

use super::{
    Capabilities, MAX_OBJECT_BYTES, ObjectMeta, ObjectName, PutMode, Retention, Storage, StorageError,
    random_probe_name,
};

/// Starts with a dot, so it is not an [`ObjectName`].
const UNFINISHED: &str = ".restante-";
/// No write of at most 64 MiB takes this long, whatever the clocks of file server and host say.
const SWEEP_AFTER: Duration = Duration::from_secs(24 * 3600);

/// A directory that keeps objects. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Directory {
    root: PathBuf,
    /// Folders that this process has made or flushed into their parents. Without it two writers could race: one makes the
    /// folder, the other puts a file into it and returns before the folder's own entry is on the disk.
    durable: Arc<Mutex<HashSet<PathBuf>>>,
}

impl Directory {
    /// The directory need not exist: the first `put` makes it, but not its parent (a disk that is not mounted must not
    /// turn into a backup on the wrong one).
    pub fn new(root: impl AsRef<Path>) -> Result<Self, StorageError> {
        let root = std::path::absolute(root.as_ref()).map_err(|error| StorageError::Failed {
            address: root.as_ref().display().to_string(),
            doing: "find the directory".into(),
            message: error.to_string(),
        })?;
        Ok(Self { root, durable: Arc::default() })
    }

    fn path(&self, name: &ObjectName) -> PathBuf {
        self.root.join(name.as_str())
    }

    /// Runs blocking work on the threads for it.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(Self) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let this = self.clone();
        match tokio::task::spawn_blocking(move || work(this)).await {
            Ok(result) => result,
            Err(error) => Err(self.failed("work on a file", &error.to_string())),
        }
    }

    fn failed(&self, doing: &str, message: &str) -> StorageError {
        StorageError::Failed { address: self.address(), doing: doing.into(), message: message.into() }
    }

    fn error(&self, doing: String, error: &io::Error) -> StorageError {
        let (address, message) = (self.address(), error.to_string());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StorageError::Full { address },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                StorageError::Denied { address, doing, message }
            }
            // What network file systems answer while their server is away.
            io::ErrorKind::TimedOut | io::ErrorKind::StaleNetworkFileHandle | io::ErrorKind::HostUnreachable => {
                StorageError::Unreachable { address, doing, message }
            }
            _ => StorageError::Failed { address, doing, message },
        }
    }

    fn not_found(&self, name: &ObjectName) -> StorageError {
        StorageError::NotFound { name: name.clone(), address: self.address() }
    }

    /// Makes the folder and those above it up to the root, each flushed into its parent, once per process.
    fn ensure_folder(&self, folder: &Path) -> io::Result<()> {
        let known = |folder: &Path| self.durable.lock().unwrap_or_else(PoisonError::into_inner).contains(folder);
        if known(folder) {
            return Ok(());
        }
        let parent = folder.parent().filter(|_| folder != self.root);
        if let Some(parent) = parent {
            self.ensure_folder(parent)?;
        }
        match fs::DirBuilder::new().mode(0o700).create(folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
            Err(error) => return Err(error),
        }
        // The parent of an existing root may be unreadable to us; then its entry is none of ours.
        match File::open(parent.or_else(|| folder.parent()).unwrap_or(folder)) {
            Ok(parent) => parent.sync_all()?,
            Err(_) if folder == self.root => {}
            Err(error) => return Err(error),
        }
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.to_owned());
        Ok(())
    }

    fn put_blocking(&self, name: &ObjectName, bytes: &[u8], mode: PutMode) -> Result<(), StorageError> {
        let path = self.path(name);
        let folder = path.parent().unwrap_or(&self.root);
        let exists = || StorageError::AlreadyExists { name: name.clone(), address: self.address() };
        // Saves writing 64 MiB for nothing; what decides is the link below.
        if mode == PutMode::Create && path.symlink_metadata().is_ok() {
            return Err(exists());
        }
        let write = || -> io::Result<()> {
            self.ensure_folder(folder)?;
            // Mode 0600, removed when it is dropped unfinished.
            let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder)?;
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            match mode {
                PutMode::Create => file.persist_noclobber(&path),
                PutMode::Replace => file.persist(&path),
            }
            .map_err(|error| error.error)?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists if mode == PutMode::Create => exists(),
            io::ErrorKind::NotFound if self.root.symlink_metadata().is_err() => self.failed(
                &format!("write {name}"),
                "the directory does not exist and neither does the one above it: create or mount it first",
            ),
            _ => self.error(format!("write {name}"), &error),
        })
    }

    /// Opens an object for reading. A folder of the name is no object.
    fn open(&self, name: &ObjectName) -> Result<(File, fs::Metadata), StorageError> {
        let opened = File::open(self.path(name)).and_then(|file| file.metadata().map(|metadata| (file, metadata)));
        match opened {
            Ok((_, metadata)) if !metadata.is_file() => Err(self.not_found(name)),
            Ok(opened) => Ok(opened),
            Err(error) if is_absent(&error) => Err(self.not_found(name)),
            Err(error) => Err(self.error(format!("read {name}"), &error)),
        }
    }

    fn read(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Bytes, StorageError> {
        let (file, metadata) = self.open(name)?;
        let range = range.unwrap_or(0..metadata.len());
        let length = range.end.saturating_sub(range.start);
        if length > MAX_OBJECT_BYTES {
            return Err(StorageError::TooLarge { name: name.clone(), address: self.address(), size: length });
        }
        let truncated =
            |actual| StorageError::Truncated { name: name.clone(), address: self.address(), actual, wanted: range.end };
        if metadata.len() < range.end {
            return Err(truncated(metadata.len()));
        }
        // At most MAX_OBJECT_BYTES, checked above.
        let mut bytes = Buffer::with_capacity(length as usize);
        bytes.resize(length as usize, 0);
        match file.read_exact_at(&mut bytes, range.start) {
            Ok(()) => Ok(bytes.freeze()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(truncated(metadata.len())),
            Err(error) => Err(self.error(format!("read {name}"), &error)),
        }
    }

    /// The entries of one folder that are or may hold objects of the prefix, last one first.
    fn read_folder(&self, folder: &str, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        let doing = || format!("list {folder:?}");
        let entries = match fs::read_dir(self.root.join(folder)) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            Err(error) => return Err(self.error(doing(), &error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| self.error(doing(), &error))?;
            // What is not a valid name is not ours: unfinished files, `lost+found` under other rules, editors' backups.
            let Some(Ok(name)) = entry.file_name().to_str().map(|file| ObjectName::new(format!("{folder}{file}")))
            else {
                continue;
            };
            let below = format!("{name}/");
            if !(name.as_str().starts_with(prefix) || below.starts_with(prefix) || prefix.starts_with(&below)) {
                continue;
            }
            // Follows links, so that an administrator can move `packs` to another disk.
            let metadata = match fs::metadata(entry.path()) {
                Ok(metadata) => metadata,
                Err(error) if is_absent(&error) => continue,
                Err(error) => return Err(self.error(doing(), &error)),
            };
            if metadata.is_dir() {
                found.push(Entry::Folder(below));
            } else if metadata.is_file() && name.as_str().starts_with(prefix) {
                let modified = modified(&metadata).map_err(|message| self.failed(&doing(), &message))?;
                found.push(Entry::Object(ObjectMeta { name, size: metadata.len(), modified }));
            }
        }
        found.sort_unstable_by(|a, b| b.key().cmp(a.key()));
        Ok(found)
    }

    /// Removes what killed processes left behind long ago.
    fn sweep(&self, folder: &Path, now: SystemTime) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for entry in entries.flatten() {
            let (Ok(kind), path) = (entry.file_type(), entry.path()) else { continue };
            if kind.is_dir() && !is_hidden(&entry.file_name()) {
                self.sweep(&path, now);
            } else if kind.is_file() && entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
                let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|at| now.duration_since(at).ok());
                if age.is_some_and(|age| age > SWEEP_AFTER) {
                    // It is only litter: whoever may not remove it loses nothing.
                    let _ = fs::remove_file(&path);
                }
            }
        }
    }
}

/// Part of a folder's listing. The key of a folder ends in a slash, as the names below it have there: so `a-b`, `a/c`, `a0`
/// come in this order, which is that of S3.
enum Entry {
    Folder(String),
    Object(ObjectMeta),
}

impl Entry {
    fn key(&self) -> &str {
        match self {
            Self::Folder(below) => below,
            Self::Object(meta) => meta.name.as_str(),
        }
    }
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// `NotADirectory`: a part of the path is a file, so there is no such object either.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn modified(metadata: &fs::Metadata) -> Result<Timestamp, String> {
    let modified = metadata.modified().map_err(|error| error.to_string())?;
    Timestamp::try_from(modified).map_err(|error| error.to_string())
}

#[async_trait]
impl Storage for Directory {
    fn address(&self) -> String {
        self.root.display().to_string()
    }

    /// A directory cannot hold an object back from deletion: `retention` is ignored, and `probe` says so.
    async fn put(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        mode: PutMode,
        _: Option<Retention>,
    ) -> Result<(), StorageError> {
        let name = name.clone();
        self.blocking(move |this| this.put_blocking(&name, &bytes, mode)).await
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        let name = name.clone();
        self.blocking(move |this| this.read(&name, None)).await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        let name = name.clone();
        self.blocking(move |this| this.read(&name, Some(range))).await
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectMeta>, StorageError> {
        let name = name.clone();
        self.blocking(move |this| {
            let doing = || format!("look at {name}");
            match fs::metadata(this.path(&name)) {
                Ok(metadata) if metadata.is_file() => {
                    let modified = modified(&metadata).map_err(|message| this.failed(&doing(), &message))?;
                    Ok(Some(ObjectMeta { name, size: metadata.len(), modified }))
                }
                Ok(_) => Ok(None),
                Err(error) if is_absent(&error) => Ok(None),
                Err(error) => Err(this.error(doing(), &error)),
            }
        })
        .await
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<ObjectMeta, StorageError>> {
        // Only this folder and those below can hold names of the prefix.
        let start = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
        // A prefix such as `../` or `/etc/` leads out of the directory and is the start of no name.
        if !start.is_empty() && ObjectName::new(start.trim_end_matches('/')).is_err() {
            return stream::empty().boxed();
        }
        let prefix: Arc<str> = prefix.into();
        // One folder's entries per level are in memory; 256 folders of packs are read one after the other.
        let unread = vec![Entry::Folder(start.to_owned())];
        stream::try_unfold(unread, move |mut unread| {
            let prefix = Arc::clone(&prefix);
            async move {
                while let Some(entry) = unread.pop() {
                    match entry {
                        Entry::Object(meta) => return Ok(Some((meta, unread))),
                        Entry::Folder(folder) => {
                            let prefix = Arc::clone(&prefix);
                            unread.extend(self.blocking(move |this| this.read_folder(&folder, &prefix)).await?);
                        }
                    }
                }
                Ok(None)
            }
        })
        .boxed()
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        let name = name.clone();
        self.blocking(move |this| match fs::remove_file(this.path(&name)) {
            Ok(()) => Ok(()),
            Err(error) if is_absent(&error) || error.kind() == io::ErrorKind::IsADirectory => Ok(()),
            Err(error) => Err(this.error(format!("delete {name}"), &error)),
        })
        .await
    }

    async fn probe(&self) -> Result<Capabilities, StorageError> {
        let name = random_probe_name();
        self.put(&name, Bytes::from_static(b"first"), PutMode::Create, None).await?;
        let second = self.put(&name, Bytes::from_static(b"second"), PutMode::Create, None).await;
        self.delete(&name).await?;
        let conditional_create = match second {
            Ok(()) => false,
            Err(StorageError::AlreadyExists { .. }) => true,
            Err(error) => return Err(error),
        };
        self.blocking(|this| {
            this.sweep(&this.root, SystemTime::now());
            Ok(())
        })
        .await?;
        Ok(Capabilities { conditional_create, object_lock: Some(false), versioning: Some(false) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use futures_util::TryStreamExt;

    use super::*;

    fn name(text: &str) -> ObjectName {
        ObjectName::new(text).unwrap()
    }

    async fn names(storage: &Directory, prefix: &str) -> Vec<String> {
        storage.list(prefix).map_ok(|meta| meta.name.to_string()).try_collect().await.unwrap()
    }

    async fn put(storage: &Directory, text: &str) {
        storage.put(&name(text), Bytes::from_static(b"x"), PutMode::Create, None).await.unwrap();
    }

    #[tokio::test]
    async fn what_a_killed_writer_left_is_never_listed_and_goes_when_it_is_old() {
        let root = tempfile::tempdir().unwrap();
        let storage = Directory::new(root.path()).unwrap();
        put(&storage, "packs/aa/1").await;
        let [old, young] = ["old", "young"].map(|end| root.path().join(format!("packs/aa/{UNFINISHED}{end}")));
        for path in [&old, &young] {
            fs::write(path, b"half").unwrap();
        }
        let long_ago = SystemTime::now() - SWEEP_AFTER - Duration::from_secs(60);
        File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(names(&storage, "").await, ["packs/aa/1"]);
        storage.probe().await.unwrap();
        assert!(!old.exists(), "swept");
        assert!(young.exists(), "its writer may still be at work");
        assert_eq!(names(&storage, "").await, ["packs/aa/1"], "the probe left nothing");
    }

    #[tokio::test]
    async fn a_folder_is_listed_where_s3_would_list_it() {
        let root = tempfile::tempdir().unwrap();
        let storage = Directory::new(root.path()).unwrap();
        let all = ["a-b/1", "a.b", "a/1", "a/2/x", "a0", "b"];
        for text in all.iter().rev() {
            put(&storage, text).await;
        }
        assert_eq!(names(&storage, "").await, all);
    }

    #[tokio::test]
    async fn nobody_else_can_read_files_or_enter_folders() {
        let above = tempfile::tempdir().unwrap();
        let storage = Directory::new(above.path().join("repository")).unwrap();
        put(&storage, "packs/aa/1").await;
        for (path, wanted) in [("", 0o700), ("packs", 0o700), ("packs/aa", 0o700), ("packs/aa/1", 0o600)] {
            let mode = fs::metadata(storage.root.join(path)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, wanted, "{path:?} has mode {mode:o}");
        }
    }

    #[tokio::test]
    async fn a_disk_that_is_not_mounted_is_not_made_up_for() {
        let above = tempfile::tempdir().unwrap();
        let storage = Directory::new(above.path().join("mnt/repository")).unwrap();
        let error = storage.put(&name("a"), Bytes::new(), PutMode::Create, None).await.unwrap_err();
        assert!(error.to_string().contains("create or mount it first"), "{error}");
        assert!(fs::read_dir(above.path()).unwrap().next().is_none());
    }

    #[tokio::test]
    async fn no_prefix_leads_out_of_the_directory() {
        let above = tempfile::tempdir().unwrap();
        fs::write(above.path().join("secret"), b"").unwrap();
        let storage = Directory::new(above.path().join("repository")).unwrap();
        put(&storage, "a").await;
        for prefix in ["../", "/", "./", "//", "a/../"] {
            assert_eq!(names(&storage, prefix).await, [""; 0], "{prefix}");
        }
    }

    #[tokio::test]
    async fn a_folder_is_no_object_and_an_object_no_folder() {
        let root = tempfile::tempdir().unwrap();
        let storage = Directory::new(root.path()).unwrap();
        put(&storage, "a/b").await;
        assert!(matches!(storage.get(&name("a")).await, Err(StorageError::NotFound { .. })));
        assert_eq!(storage.head(&name("a")).await.unwrap(), None);
        assert_eq!(storage.head(&name("a/b/c")).await.unwrap(), None);
        storage.delete(&name("a")).await.unwrap();
        assert_eq!(names(&storage, "").await, ["a/b"]);
    }

    #[tokio::test]
    async fn a_full_disk_is_named() {
        let storage = Directory::new("/srv/backup").unwrap();
        for code in [28, 122] {
            let error = storage.error("write a".into(), &io::Error::from_raw_os_error(code));
            assert!(matches!(error, StorageError::Full { .. }), "{error}");
        }
    }
}
