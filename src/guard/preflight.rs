//! Looks at everything that could go wrong before anything is touched. A *reason* refuses the change; a *note* is for people to judge.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::change::{May, Mode, Unbound};
use super::error::GuardError;
use super::exclusion;
use super::policy::{Policy, SupervisorCommands};
use super::server::Local;
use super::supervisors;
use crate::postgres::PostgresError;
use crate::postgres::session::Session;

/// A transaction that is open so long is told.
const LONG_TRANSACTION: &str = "1 minute";
/// A standby so far behind is told.
const LAG_BYTES: i64 = 64 << 20;

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Preflight {
    /// Why the change is refused.
    pub reasons: Vec<String>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// Supervisors that the guard will pause.
    #[serde(skip)]
    pub pause: Vec<SupervisorCommands>,
    /// Of an offline change.
    #[serde(skip)]
    pub local: Option<Local>,
}

/// `paused`: supervisors that somebody says he paused himself.
pub async fn look(
    session: &Session,
    change: &Unbound,
    policy: &Policy,
    paused: &[String],
) -> Result<Preflight, GuardError> {
    let mut found = Preflight::default();
    target(session, change, &mut found).await?;
    sessions(session, change.mode, &mut found).await?;
    replication(session, &mut found).await?;
    tables(session, change, &mut found).await?;
    programs(change, session.version(), &mut found).await;
    if change.mode == Mode::Exclusive || change.mode == Mode::Offline {
        found.reasons.extend(exclusion::obstacles(session).await?);
    }
    match Local::find(session, &change.target.system_identifier).await {
        Ok(local) => {
            disk(session, change, &local.data, &mut found).await?;
            if change.mode == Mode::Offline {
                watched(&local, policy, paused, &mut found).await;
                if let Some(made) = change.after.as_ref().map(|after| local.made(after)) {
                    let has = |name: &str| made.programs.join(name).is_file();
                    if made.data == local.data || !has("pg_ctl") || !has("pg_controldata") {
                        found.reasons.push(format!(
                            "[after]: data must be another folder than {}, and programs one with pg_ctl and pg_controldata",
                            local.data.display()
                        ));
                    }
                }
                other_databases(session, &mut found).await?;
            }
            found.local = Some(local);
        }
        Err(why) if change.mode == Mode::Offline => found.reasons.push(format!("mode offline: {why}")),
        Err(_) => found
            .notes
            .push("the server's files are not on this host, or not this account's: free disk was not looked at".into()),
    }
    Ok(found)
}

async fn target(session: &Session, change: &Unbound, found: &mut Preflight) -> Result<(), GuardError> {
    let (facts, target) = (session.facts().await?, &change.target);
    match &facts.system_identifier {
        Some(system) if *system == target.system_identifier => {}
        Some(system) => found.reasons.push(format!(
            "this is another server: its system identifier is {system}, the change is for {}",
            target.system_identifier
        )),
        None => found.reasons.push(
            "the role may not ask for the system identifier (pg_control_system): this could be any server".into(),
        ),
    }
    if facts.database != target.database {
        found.reasons.push(format!("this is database {}, the change is for {}", facts.database, target.database));
    }
    if facts.is_in_recovery {
        found.reasons.push("the server is a standby: changes are made on the primary".into());
    }
    if let Some(managed) = facts.managed.filter(|_| change.mode == Mode::Offline) {
        found.notes.push(format!("this looks like {managed}, whose files nobody can stop and fence"));
    }
    Ok(())
}

async fn sessions(session: &Session, mode: Mode, found: &mut Preflight) -> Result<(), GuardError> {
    let others = exclusion::others(session).await?;
    if !others.is_empty() {
        let mut roles: Vec<String> = others.iter().map(|other| other.role.clone()).collect();
        roles.sort();
        roles.dedup();
        let will = if mode == Mode::Online { "stay" } else { "will be ended" };
        found.notes.push(format!("{} sessions of {} are connected and {will}", others.len(), roles.join(", ")));
    }
    let sees = "SELECT pg_has_role('pg_read_all_stats', 'USAGE'), current_user::text";
    let row = session.client().query_one(sees, &[]).await.map_err(PostgresError::server("asking for rights"))?;
    if !row.get::<_, bool>(0) {
        let role = crate::postgres::sql::identifier(row.get(1));
        found
            .notes
            .push(format!("long transactions and standbys are hidden from this role: GRANT pg_monitor TO {role}"));
    }
    let long = format!(
        "SELECT pid, usename::text, (extract(epoch FROM now() - xact_start))::bigint FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start < now() - interval '{LONG_TRANSACTION}' ORDER BY xact_start LIMIT 10"
    );
    for row in
        session.client().query(&long, &[]).await.map_err(PostgresError::server("looking for long transactions"))?
    {
        let (pid, role, seconds): (i32, Option<String>, i64) = (row.get(0), row.get(1), row.get(2));
        found.notes.push(format!(
            "process {pid} of {} has a transaction open for {seconds} seconds, behind which locks wait",
            role.unwrap_or_default()
        ));
    }
    let prepared =
        "SELECT gid, owner::text FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared";
    for row in session
        .client()
        .query(prepared, &[])
        .await
        .map_err(PostgresError::server("looking for prepared transactions"))?
    {
        let (gid, owner): (String, String) = (row.get(0), row.get(1));
        found.reasons.push(format!(
            "the prepared transaction {gid:?} of {owner} holds its locks until somebody commits it or rolls it back"
        ));
    }
    Ok(())
}

async fn replication(session: &Session, found: &mut Preflight) -> Result<(), GuardError> {
    let slots = "SELECT slot_name::text, active, coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn), 0)::bigint FROM pg_replication_slots ORDER BY 1";
    for row in
        session.client().query(slots, &[]).await.map_err(PostgresError::server("looking at replication slots"))?
    {
        let (name, active, behind): (String, bool, i64) = (row.get(0), row.get(1), row.get(2));
        if !active || behind > LAG_BYTES {
            let state = if active { "is used" } else { "is used by nobody" };
            found.notes.push(format!(
                "replication slot {name} {state} and keeps {behind} bytes of WAL: a large change adds to that"
            ));
        }
    }
    let standbys = "SELECT coalesce(application_name, ''), coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn), -1)::bigint FROM pg_stat_replication";
    // On a standby there is no current place; the target is refused then anyway.
    for row in session.client().query(standbys, &[]).await.unwrap_or_default() {
        let (name, lag): (String, i64) = (row.get(0), row.get(1));
        if lag > LAG_BYTES {
            found.notes.push(format!("standby {name} is {lag} bytes behind"));
        }
    }
    Ok(())
}

async fn tables(session: &Session, change: &Unbound, found: &mut Preflight) -> Result<(), GuardError> {
    let sql = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname || '.' || c.relname = $1 AND c.relkind IN ('r', 'p', 'm'))";
    for table in &change.tables {
        let row = session
            .client()
            .query_one(sql, &[&table.name])
            .await
            .map_err(PostgresError::server("looking for the declared tables"))?;
        if !row.get::<_, bool>(0) {
            found.reasons.push(format!(
                "the declared table {} does not exist: name it schema.table, as the catalog spells it",
                table.name
            ));
        }
    }
    Ok(())
}

/// Each command's program is there; PostgreSQL's own are not older than the server.
async fn programs(change: &Unbound, server: u32, found: &mut Preflight) {
    let scripts: Vec<&str> = change.scripts.iter().map(|script| script.file.as_str()).collect();
    let mut seen: Vec<&str> = Vec::new();
    for program in change.commands.iter().filter_map(|command| command.first()) {
        let of_script = program.strip_prefix("./").unwrap_or(program);
        if scripts.contains(&of_script) || seen.contains(&program.as_str()) {
            continue;
        }
        seen.push(program);
        let Some(path) = which(program) else {
            found.reasons.push(format!("the program {program} is not in PATH"));
            continue;
        };
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name == "psql" || name.starts_with("pg_") || name == "vacuumdb" || name == "reindexdb" || name == "clusterdb"
        {
            let output =
                tokio::process::Command::new(&path).arg("--version").stdin(std::process::Stdio::null()).output().await;
            let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
            let major = said
                .split(|c: char| !c.is_ascii_digit())
                .find(|part| !part.is_empty())
                .and_then(|part| part.parse::<u32>().ok());
            if major.is_some_and(|major| major < server / 10_000) {
                found.reasons.push(format!(
                    "{} is older than the server ({} against {}): use the server's",
                    path.display(),
                    said.trim(),
                    server / 10_000
                ));
            }
        }
    }
}

/// As the shell would find it.
fn which(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Path::new(program).is_file().then(|| program.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// A table that is rewritten is there twice meanwhile, with its indexes.
async fn disk(session: &Session, change: &Unbound, data: &Path, found: &mut Preflight) -> Result<(), GuardError> {
    let Ok(free) = rustix::fs::statvfs(data) else { return Ok(()) };
    let free = free.f_bavail.saturating_mul(free.f_frsize);
    let names: Vec<&str> =
        change.tables.iter().filter(|table| table.may != May::None).map(|table| table.name.as_str()).collect();
    let sql = "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname || '.' || c.relname = ANY($1)";
    let row = session
        .client()
        .query_one(sql, &[&names])
        .await
        .map_err(PostgresError::server("asking how large the tables are"))?;
    let needed = row.get::<_, i64>(0).unsigned_abs();
    if free < needed {
        found.reasons.push(format!("{free} bytes are free where the data directory is, and the declared tables have {needed}: a rewrite would not fit"));
    }
    Ok(())
}

async fn watched(local: &Local, policy: &Policy, paused: &[String], found: &mut Preflight) {
    let supervisors = supervisors::find(local, &policy.supervisors).await;
    for one in &supervisors {
        let by_hand = paused.contains(&one.name);
        match &one.commands {
            _ if by_hand => found.notes.push(format!("{} is said to be paused by hand ({})", one.name, one.evidence)),
            Some(commands) => {
                found.notes.push(format!("{} will be paused with: {}", one.name, commands.pause.join(" ")));
                found.pause.push(commands.clone());
            }
            None => found.reasons.push(format!(
                "{} would start the server again ({}), and the guard cannot pause it: pause it yourself, then --supervisor-paused {}; or give its commands in the policy",
                one.name, one.evidence, one.name
            )),
        }
    }
    for name in &policy.must_pause {
        if paused.contains(name) || supervisors.iter().any(|one| one.name == *name && one.commands.is_some()) {
            continue;
        }
        match policy.supervisors.iter().find(|known| known.name == *name) {
            Some(commands) => found.pause.push(commands.clone()),
            None => found.reasons.push(format!("the policy wants {name} paused, and the guard neither finds it nor knows how: pause it yourself, then --supervisor-paused {name}")),
        }
    }
}

async fn other_databases(session: &Session, found: &mut Preflight) -> Result<(), GuardError> {
    let sql = "SELECT datname::text FROM pg_database WHERE NOT datistemplate AND datname NOT IN (current_database(), 'postgres') ORDER BY 1";
    let rows = session.client().query(sql, &[]).await.map_err(PostgresError::server("listing the databases"))?;
    if !rows.is_empty() {
        let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        found.notes.push(format!(
            "the server has other databases, which this snapshot does not cover and which stop with it: {}",
            names.join(", ")
        ));
    }
    Ok(())
}
