//! What `/proc` tells of processes. Whatever cannot be read (another account's, one that has just ended) is left out.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// In the environment of every command of a change, with the id of its run: its children and what they start have it too, however they
/// detach.
pub const MARK: &str = "RESTANTE_GUARD_RUN";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    /// As `/proc/<pid>/comm`: at most 15 bytes.
    pub name: String,
}

/// All processes that can be seen.
pub fn all() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pid = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<i32>().ok();
    entries.flatten().filter_map(pid).filter_map(Process::of).collect()
}

impl Process {
    pub fn of(pid: i32) -> Option<Self> {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some(Self { pid, name: name.trim_end().to_owned() })
    }

    fn file(&self, name: &str) -> PathBuf {
        format!("/proc/{}/{name}", self.pid).into()
    }

    pub fn parent(&self) -> Option<Self> {
        let status = std::fs::read_to_string(self.file("status")).ok()?;
        let pid = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
        Self::of(pid)
    }

    /// Has it ended, and only waits for its parent to notice?
    pub fn is_zombie(&self) -> bool {
        let status = std::fs::read_to_string(self.file("status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("State:") && line.contains('Z'))
    }

    pub fn arguments(&self) -> Vec<String> {
        split(&std::fs::read(self.file("cmdline")).unwrap_or_default())
    }

    /// `NAME=VALUE` each, as they were when the program began.
    pub fn environment(&self) -> Vec<String> {
        split(&std::fs::read(self.file("environ")).unwrap_or_default())
    }

    pub fn cgroup(&self) -> String {
        std::fs::read_to_string(self.file("cgroup")).unwrap_or_default()
    }

    pub fn program(&self) -> Option<PathBuf> {
        std::fs::read_link(self.file("exe")).ok()
    }

    pub fn folder(&self) -> Option<PathBuf> {
        std::fs::read_link(self.file("cwd")).ok()
    }

    /// Was it started by a command of this run?
    pub fn is_marked(&self, run: &str) -> bool {
        self.environment()
            .iter()
            .any(|line| line.strip_prefix(MARK).and_then(|rest| rest.strip_prefix('=')) == Some(run))
    }
}

/// What the commands of a run started and is still there.
pub fn marked(run: &str) -> Vec<Process> {
    all().into_iter().filter(|process| process.is_marked(run) && !process.is_zombie()).collect()
}

/// Servers, and single-user ones, that work in a data directory: PostgreSQL goes into it as it starts.
pub fn servers_in(data: &Path) -> Vec<Process> {
    let is_server = |process: &Process| process.name.starts_with("postgres") || process.name.starts_with("postmaster");
    let all = all().into_iter();
    all.filter(|process| is_server(process) && process.folder().as_deref() == Some(data) && !process.is_zombie())
        .collect()
}

/// Sends a signal to a process and its group; that they are gone already is no error.
pub fn signal(processes: &[Process], signal: Signal) {
    for process in processes {
        if let Some(pid) = Pid::from_raw(process.pid) {
            let _ = kill_process(pid, signal);
        }
    }
}

fn split(bytes: &[u8]) -> Vec<String> {
    let parts = bytes.split(|byte| *byte == 0).filter(|part| !part.is_empty());
    parts.map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}
