//! Which supervisor a postmaster belongs to, by what can be seen of it. Apart from reading `/proc` it is arithmetic over text, so that
//! what was recorded on other hosts can be tried.

use std::path::Path;

use crate::guard::processes::Process;

/// What was seen of a postmaster.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// The first of its ancestors that is no shell: name and command line.
    pub parent: Option<(String, String)>,
    /// Is the postmaster, or that parent, the first process of its container or host?
    pub is_first: bool,
    pub environment: Vec<String>,
    pub cgroup: String,
    /// Names of what lies in the data directory.
    pub files: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sign {
    pub supervisor: &'static str,
    pub evidence: String,
}

/// Between a supervisor and what it runs.
const WRAPPERS: &[&str] =
    &["sh", "bash", "dash", "su", "runuser", "setpriv", "chpst", "gosu", "su-exec", "sudo", "envdir", "softlimit"];

/// Names of processes that start again what they started.
const PARENTS: &[(&str, &str)] = &[
    ("supervisord", "supervisord"),
    ("runsv", "runit"),
    ("s6-supervise", "s6"),
    ("supervise", "daemontools"),
    ("patroni", "patroni"),
    ("stolon-keeper", "stolon"),
    ("pg_autoctl", "pg_auto_failover"),
    ("pacemaker-execd", "pacemaker"),
    ("lrmd", "pacemaker"),
    ("monit", "monit"),
    ("god", "god"),
    ("circusd", "circus"),
    ("openrc-run", "openrc"),
    ("supervise-daemon", "openrc"),
    ("containerd-shim", "container"),
    ("docker-init", "container"),
    ("tini", "container"),
    ("dumb-init", "container"),
    ("conmon", "container"),
];

/// Words in the command line of a parent whose name is that of its interpreter.
const COMMAND_LINES: &[(&str, &str)] = &[
    ("supervisord", "supervisord"),
    ("patroni", "patroni"),
    ("/controller/manager", "cloudnativepg"),
    ("circusd", "circus"),
];

/// What supervisors leave in the environment of what they start.
const VARIABLES: &[(&str, &str)] = &[
    ("SUPERVISOR_ENABLED=", "supervisord"),
    ("MONIT_SERVICE=", "monit"),
    ("MONIT_DESCRIPTION=", "monit"),
    ("PATRONI_", "patroni"),
    ("OCF_RESOURCE_INSTANCE=", "pacemaker"),
    ("OCF_RA_VERSION_MAJOR=", "pacemaker"),
    ("CNPG_", "cloudnativepg"),
    ("KUBERNETES_SERVICE_HOST=", "kubernetes"),
    ("ECS_CONTAINER_METADATA_URI", "container"),
];

/// What supervisors leave in the data directory. A postmaster that Patroni starts has init for a parent and nothing in its environment.
const FILES: &[(&str, &str)] = &[("patroni.dynamic.json", "patroni")];

impl Evidence {
    pub fn of(postmaster: &Process) -> Self {
        let mut parent = postmaster.parent();
        while let Some(wrapper) =
            parent.as_ref().filter(|process| WRAPPERS.contains(&process.name.as_str()) && process.pid != 1)
        {
            parent = wrapper.parent();
        }
        Self {
            is_first: postmaster.pid == 1,
            parent: parent.map(|process| (process.name.clone(), process.arguments().join(" "))),
            environment: postmaster.environment(),
            cgroup: postmaster.cgroup(),
            files: postmaster.folder().and_then(|data| std::fs::read_dir(data).ok()).map_or_else(Vec::new, |data| {
                data.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
            }),
        }
    }

    /// Every supervisor that something speaks for.
    pub fn signs(&self) -> Vec<Sign> {
        let mut signs: Vec<Sign> = Vec::new();
        let mut add = |supervisor: &'static str, evidence: String| {
            if !signs.iter().any(|sign| sign.supervisor == supervisor) {
                signs.push(Sign { supervisor, evidence });
            }
        };
        if self.is_first {
            add("container", "the postmaster is the first process of its container".into());
        }
        if let Some((name, line)) = &self.parent {
            for (parent, supervisor) in PARENTS {
                if name == parent || name.starts_with("containerd-shim") && *parent == "containerd-shim" {
                    add(supervisor, format!("its parent is {name}"));
                }
            }
            let words: Vec<&str> = line.split_whitespace().take(3).collect();
            for (word, supervisor) in COMMAND_LINES {
                let fits = |found: &&&str| {
                    // A name is a whole one; a path may begin anywhere.
                    Path::new(found).file_name().is_some_and(|file| file == *word)
                        || word.starts_with('/') && found.ends_with(word)
                };
                if let Some(found) = words.iter().find(fits) {
                    add(supervisor, format!("its parent runs {found}"));
                }
            }
        }
        for (variable, supervisor) in VARIABLES {
            if self.environment.iter().any(|line| line.starts_with(variable)) {
                add(supervisor, format!("{} is in its environment", variable.trim_end_matches(['=', '_'])));
            }
        }
        for (file, supervisor) in FILES {
            if self.files.iter().any(|name| name == file) {
                add(supervisor, format!("{file} lies in the data directory"));
            }
        }
        for line in self.cgroup.lines() {
            let path = line.rsplit(':').next().unwrap_or_default();
            for (word, supervisor) in [
                ("patroni", "patroni"),
                ("pacemaker", "pacemaker"),
                ("corosync", "pacemaker"),
                ("kubepods", "kubernetes"),
            ] {
                if path.contains(word) {
                    add(supervisor, format!("its cgroup is {path}"));
                }
            }
            let unit = path.rsplit('/').find(|part| part.ends_with(".service"));
            if let Some(unit) = unit.filter(|unit| !unit.starts_with("user@") && path.contains("system.slice")) {
                add("systemd", format!("it runs in the unit {unit}, which may say Restart="));
            }
        }
        signs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(evidence: &Evidence) -> Vec<&'static str> {
        evidence.signs().iter().map(|sign| sign.supervisor).collect()
    }

    fn parent(name: &str, line: &str) -> Evidence {
        Evidence { parent: Some((name.into(), line.into())), ..Evidence::default() }
    }

    /// As such hosts show it.
    #[test]
    fn each_supervisor_is_known_by_what_it_leaves() {
        for (evidence, wanted) in [
            (parent("supervisord", "/usr/bin/python3 /usr/bin/supervisord -n -c /etc/supervisord.conf"), "supervisord"),
            (parent("python3", "/usr/bin/python3 /usr/local/bin/supervisord -c x.conf"), "supervisord"),
            (parent("runsv", "runsv postgresql"), "runit"),
            (parent("s6-supervise", "s6-supervise postgres"), "s6"),
            (parent("patroni", "/usr/bin/python3 /usr/bin/patroni /etc/patroni/config.yml"), "patroni"),
            (parent("python3", "/usr/bin/python3 /usr/bin/patroni /etc/patroni/config.yml"), "patroni"),
            (parent("manager", "/controller/manager instance run"), "cloudnativepg"),
            (parent("pg_autoctl", "pg_autoctl: start/stop postgres"), "pg_auto_failover"),
            (parent("docker-init", "/sbin/docker-init -- docker-entrypoint.sh postgres"), "container"),
        ] {
            assert_eq!(names(&evidence), [wanted], "{evidence:?}");
        }
        let environment = |line: &str| Evidence { environment: vec![line.into()], ..Evidence::default() };
        assert_eq!(names(&environment("MONIT_SERVICE=postgres")), ["monit"]);
        assert_eq!(names(&environment("SUPERVISOR_ENABLED=1")), ["supervisord"]);
        assert_eq!(names(&environment("PATRONI_NAME=pg1")), ["patroni"]);
        assert_eq!(names(&environment("OCF_RESOURCE_INSTANCE=pgsql")), ["pacemaker"]);
        assert_eq!(names(&environment("KUBERNETES_SERVICE_HOST=10.0.0.1")), ["kubernetes"]);
        let files = vec!["patroni.dynamic.json".into()];
        assert_eq!(names(&Evidence { files, ..Evidence::default() }), ["patroni"]);
        let cgroup = |line: &str| Evidence { cgroup: line.into(), ..Evidence::default() };
        assert_eq!(
            names(&cgroup("0::/system.slice/system-postgresql.slice/postgresql@15-main.service\n")),
            ["systemd"]
        );
        assert_eq!(names(&cgroup("0::/system.slice/patroni.service\n")), ["patroni", "systemd"]);
        assert_eq!(names(&cgroup("0::/system.slice/pacemaker.service\n")), ["pacemaker", "systemd"]);
        assert_eq!(names(&cgroup("0::/kubepods/burstable/pod1/abc\n")), ["kubernetes"]);
    }

    #[test]
    fn a_server_that_somebody_started_by_hand_has_no_supervisor() {
        let by_hand = Evidence {
            parent: Some(("systemd".into(), "/sbin/init".into())),
            environment: vec!["HOME=/root".into(), "INVOCATION_ID=1".into()],
            cgroup: "0::/user.slice/user-0.slice/user@0.service/app.slice\n0::/\n".into(),
            is_first: false,
            files: vec!["PG_VERSION".into(), "postgresql.base.conf".into()],
        };
        assert_eq!(names(&by_hand), Vec::<&str>::new());
        assert_eq!(names(&parent("sh", "start --after supervisors::patroni")), Vec::<&str>::new());
        assert_eq!(names(&Evidence { is_first: true, ..Evidence::default() }), ["container"]);
    }
}
