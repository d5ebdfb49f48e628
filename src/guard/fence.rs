//! The fence around a stopped server: a *directory* named `postmaster.pid` where PostgreSQL would put its lock file. `mkdir` is atomic
//! against a server that starts at the same moment; neither the server nor `pg_ctl`, `pg_ctlcluster`, monit or `rm -f` gets past it, and
//! it stays through a reboot. A note in it says who put it there and what to do. Only `rm -rf` takes it away, which the watcher sees.

use std::path::{Path, PathBuf};

use super::error::GuardError;
use super::state::sync_folder;

const LOCK: &str = "postmaster.pid";
const NOTE: &str = "FENCED";

fn place(data: &Path) -> PathBuf {
    data.join(LOCK)
}

/// What stands where the lock file would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    Nothing,
    /// PostgreSQL's own file.
    LockFile,
    /// A fence without its note: whoever put it up was killed in between.
    Bare,
    /// The fence of a run.
    Of(String),
}

pub fn look(data: &Path) -> Result<Standing, GuardError> {
    let place = place(data);
    match std::fs::symlink_metadata(&place) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Standing::Nothing),
        Err(e) => Err(GuardError::file(&place, e)),
        Ok(found) if !found.is_dir() => Ok(Standing::LockFile),
        Ok(_) => match std::fs::read_to_string(place.join(NOTE)) {
            Ok(note) => {
                let run = note.lines().find_map(|line| line.strip_prefix("run: ")).unwrap_or_default();
                Ok(Standing::Of(run.to_owned()))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Standing::Bare),
            Err(e) => Err(GuardError::file(place.join(NOTE), e)),
        },
    }
}

/// Puts the fence up. `note` is for people who wonder why the server does not start.
pub fn raise(data: &Path, run: &str, note: &str) -> Result<(), GuardError> {
    let place = place(data);
    match look(data)? {
        Standing::Nothing => std::fs::create_dir(&place).map_err(|e| GuardError::file(&place, e))?,
        Standing::Bare => {}
        Standing::Of(other) if other == run => return Ok(()),
        Standing::Of(_) => return Err(GuardError::file(&place, "another change fenced this data directory")),
        Standing::LockFile => return Err(GuardError::file(&place, "a server has its lock file here")),
    }
    crate::failpoint::hit("guard:fence:bare");
    let path = place.join(NOTE);
    let mut file = tempfile::NamedTempFile::new_in(&place).map_err(|e| GuardError::file(&path, e))?;
    std::io::Write::write_all(&mut file, format!("{note}\nrun: {run}\n").as_bytes())
        .and_then(|()| file.as_file().sync_all())
        .map_err(|e| GuardError::file(&path, e))?;
    file.persist(&path).map_err(|e| GuardError::file(&path, e.error))?;
    sync_folder(&place)?;
    sync_folder(data)
}

/// Takes the fence of this run away, if it is there.
pub fn lower(data: &Path, run: &str) -> Result<(), GuardError> {
    let place = place(data);
    match look(data)? {
        Standing::Nothing | Standing::LockFile => return Ok(()),
        Standing::Of(other) if other != run => {
            return Err(GuardError::file(&place, "another change fenced this data directory: release that one"));
        }
        Standing::Of(_) => {
            let note = place.join(NOTE);
            std::fs::remove_file(&note).map_err(|e| GuardError::file(&note, e))?;
        }
        Standing::Bare => {}
    }
    // A note that was half written when its writer was killed.
    for entry in std::fs::read_dir(&place).map_err(|e| GuardError::file(&place, e))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(".tmp") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    std::fs::remove_dir(&place)
        .map_err(|e| GuardError::file(&place, format!("the fence cannot be taken away: {e}; what else lies in it?")))?;
    sync_folder(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_belongs_to_its_run_and_a_bare_one_to_whoever_was_killed() {
        let data = tempfile::tempdir().unwrap();
        raise(data.path(), "one", "note").unwrap();
        assert_eq!(look(data.path()).unwrap(), Standing::Of("one".into()));
        raise(data.path(), "one", "note").unwrap();
        assert!(raise(data.path(), "two", "note").is_err() && lower(data.path(), "two").is_err());
        std::fs::remove_file(data.path().join("postmaster.pid/FENCED")).unwrap();
        std::fs::write(data.path().join("postmaster.pid/.tmpabc"), "half").unwrap();
        assert_eq!(look(data.path()).unwrap(), Standing::Bare);
        lower(data.path(), "two").unwrap();
        assert_eq!(look(data.path()).unwrap(), Standing::Nothing);
        std::fs::write(data.path().join("postmaster.pid"), "123\n").unwrap();
        assert!(raise(data.path(), "one", "note").is_err());
        lower(data.path(), "one").unwrap();
        assert_eq!(look(data.path()).unwrap(), Standing::LockFile, "a server's own file is not ours to remove");
    }
}
