//! monit: which daemons run here, and under which name one watches a server. monit starts the server again with a program of its own, so
//! it is no parent of the postmaster; what it watches only its configuration says, which `monit -vt` prints with all that it includes.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::guard::policy::SupervisorCommands;
use crate::guard::processes::{self, Process};

pub struct Daemon {
    pub process: Process,
    program: PathBuf,
    control: Option<PathBuf>,
}

/// All monit daemons that can be seen.
pub fn daemons() -> Vec<Daemon> {
    let all = processes::all().into_iter().filter(|process| process.name == "monit" && !process.is_zombie());
    all.map(|process| {
        let arguments = process.arguments();
        let mut control = None;
        for (at, argument) in arguments.iter().enumerate() {
            match argument.strip_prefix("-c") {
                Some("") => control = arguments.get(at + 1).map(PathBuf::from),
                Some(path) => control = Some(path.into()),
                None => {}
            }
        }
        let program = process.program().unwrap_or_else(|| "monit".into());
        Daemon { process, program, control }
    })
    .collect()
}

/// How to pause the service that watches this data directory; `None`: none does. The error says why that cannot be told.
pub async fn watches(daemon: &Daemon, data: &Path) -> Result<Option<SupervisorCommands>, String> {
    let mut call = vec![daemon.program.display().to_string()];
    if let Some(control) = &daemon.control {
        let within = daemon.process.folder().unwrap_or_default();
        call.extend(["-c".to_owned(), within.join(control).display().to_string()]);
    }
    let output = Command::new(&call[0]).args(&call[1..]).arg("-vt").stdin(Stdio::null()).output().await;
    let output = output.map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if !output.status.success() {
        return Err(said.trim().lines().last().unwrap_or("it says nothing").to_owned());
    }
    let Some(name) = service(&said, data) else { return Ok(None) };
    let with = |words: &[&str]| call.iter().cloned().chain(words.iter().map(|word| (*word).to_owned())).collect();
    Ok(Some(SupervisorCommands {
        pause: with(&["unmonitor", &name]),
        status: with(&["-B", "status", &name]),
        status_says: Some("Not monitored".into()),
        resume: with(&["monitor", &name]),
        starts_server: false,
        name,
    }))
}

/// The process service whose pid file is that of the data directory, or whose programs name it.
fn service(listing: &str, data: &Path) -> Option<String> {
    let (folder, mut name) = (data.display().to_string(), None);
    for line in listing.lines() {
        let Some((key, value)) = line.split_once('=') else { continue };
        let (key, value) = (key.trim(), value.trim());
        if key.ends_with("Name") {
            name = (key == "Process Name").then(|| value.to_owned());
        }
        let named = matches!(key, "Pid file" | "Start program" | "Stop program" | "Restart program");
        let folders = value.split(|c: char| c.is_whitespace() || matches!(c, '\'' | '"'));
        let mut fits = folders.filter(|word| Path::new(word).starts_with(&folder) || canonical(word).starts_with(data));
        if named && fits.next().is_some() && name.is_some() {
            return name;
        }
    }
    None
}

fn canonical(path: &str) -> PathBuf {
    let path = Path::new(path);
    path.canonicalize().or_else(|_| path.parent().unwrap_or(path).canonicalize()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_known_by_its_pid_file_or_its_programs() {
        let listing = "\
Runtime constants:
 Control file         = /x/monitrc

System Name          = host
 Monitoring mode      = active

Process Name          = nginx
 Pid file             = /run/nginx.pid

Process Name          = postgres-test
 Monitoring mode      = active
 Pid file             = /nowhere/data/postmaster.pid
 Start program        = '/usr/bin/pg_ctl -D /nowhere/data start' timeout 40 s
";
        assert_eq!(service(listing, Path::new("/nowhere/data")), Some("postgres-test".into()));
        assert_eq!(service(listing, Path::new("/nowhere/dat")), None);
        let by_program = listing.replace("/nowhere/data/postmaster.pid", "/run/pg.pid");
        assert_eq!(service(&by_program, Path::new("/nowhere/data")), Some("postgres-test".into()));
    }
}
