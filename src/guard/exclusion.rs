//! Applications out, and in again: the right to CONNECT to the database is taken from everybody but the guard's role and the owner, and
//! sessions are ended. The owner of the database may do that, also on a managed server; the server keeps it through a restart, so that
//! nobody is back before the comparison. `ALLOW_CONNECTIONS false` would keep the guard out too, `CONNECTION LIMIT 0` any ordinary role it
//! runs as, and `NOLOGIN` needs rights over every role.
//!
//! Superusers, and the owner, cannot be kept out: who connects as one is told.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::GuardError;
use crate::postgres::PostgresError;
use crate::postgres::session::Session;
use crate::postgres::sql;

/// How long sessions may take to end: a large transaction rolls back.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was taken away, so that it can be given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    pub database: String,
    pub taken: Vec<Taken>,
    /// The guard's role, if it could connect only as everybody can.
    pub lent: Option<String>,
}

impl Closed {
    /// What gives it back.
    pub fn opening(&self) -> Vec<String> {
        let database = sql::identifier(&self.database);
        let given = self.taken.iter().map(|taken| {
            let with = if taken.grantable { " WITH GRANT OPTION" } else { "" };
            format!("GRANT CONNECT ON DATABASE {database} TO {}{with}", taken.role())
        });
        let lent = self.lent.iter();
        let lent = lent.map(|role| format!("REVOKE CONNECT ON DATABASE {database} FROM {}", sql::identifier(role)));
        given.chain(lent).collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Absent: PUBLIC.
    pub role: Option<String>,
    pub grantable: bool,
}

impl Taken {
    fn role(&self) -> String {
        self.role.as_deref().map_or_else(|| "PUBLIC".to_owned(), sql::identifier)
    }
}

/// Who is there.
#[derive(Debug, Clone)]
pub struct Other {
    pub pid: i32,
    pub role: String,
    pub application: String,
    pub is_superuser: bool,
    pub is_owner: bool,
}

/// The sessions of others in this database. To a role that is no member of `pg_read_all_stats` the server shows no kind of session, but
/// what has no user (autovacuum) is none.
pub async fn others(session: &Session) -> Result<Vec<Other>, PostgresError> {
    let sql = "SELECT a.pid, coalesce(a.usename, '')::text, coalesce(a.application_name, ''), coalesce(r.rolsuper, false), \
               coalesce(a.usesysid = d.datdba, false) FROM pg_stat_activity a JOIN pg_database d ON d.oid = a.datid LEFT JOIN pg_roles r ON r.oid = a.usesysid \
               WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.usesysid IS NOT NULL AND coalesce(a.backend_type, 'client backend') = 'client backend' ORDER BY a.pid";
    let rows = session.client().query(sql, &[]).await.map_err(PostgresError::server("looking who is connected"))?;
    Ok(rows
        .iter()
        .map(|row| Other {
            pid: row.get(0),
            role: row.get(1),
            application: row.get(2),
            is_superuser: row.get(3),
            is_owner: row.get(4),
        })
        .collect())
}

/// Why this role cannot send applications out; empty if it can.
pub async fn obstacles(session: &Session) -> Result<Vec<String>, PostgresError> {
    let sql = "SELECT r.rolsuper, pg_has_role(d.datdba, 'USAGE'), pg_has_role('pg_signal_backend', 'MEMBER'), current_user::text, \
               d.datname::text FROM pg_database d, pg_roles r WHERE d.datname = current_database() AND r.rolname = current_user";
    let row = session.client().query_one(sql, &[]).await.map_err(PostgresError::server("asking for rights"))?;
    let (superuser, owner, signal): (bool, bool, bool) = (row.get(0), row.get(1), row.get(2));
    let (role, database): (String, String) = (row.get(3), row.get(4));
    let (role, database) = (sql::identifier(&role), sql::identifier(&database));
    let mut obstacles = Vec::new();
    if !superuser && !owner {
        obstacles.push(format!("the role {role} does not own the database, so it cannot refuse connections: ALTER DATABASE {database} OWNER TO {role}, or use the owner"));
    }
    if !superuser && !signal {
        obstacles
            .push(format!("the role {role} may not end the sessions of others: GRANT pg_signal_backend TO {role}"));
    }
    let others = others(session).await?;
    let count = |fits: &dyn Fn(&&Other) -> bool| others.iter().filter(|other| fits(other)).count();
    let same = count(&|other| sql::identifier(&other.role) == role);
    if same > 0 {
        obstacles.push(format!("{same} other sessions use the guard's own role {role}: applications must have another one, or they cannot be kept out"));
    }
    let owners = count(&|other| other.is_owner && sql::identifier(&other.role) != role && !other.is_superuser);
    if owners > 0 {
        obstacles.push(format!("{owners} sessions belong to the owner of the database, who cannot be kept out: end them, and let applications use another role"));
    }
    if !superuser {
        for other in others.iter().filter(|other| other.is_superuser) {
            obstacles.push(format!(
                "process {} is a session of the superuser {}, which only a superuser can end: end it",
                other.pid, other.role
            ));
        }
    }
    Ok(obstacles)
}

/// What would be taken away.
pub async fn plan(session: &Session) -> Result<Closed, PostgresError> {
    let sql = "SELECT CASE WHEN a.grantee = 0 THEN NULL ELSE pg_get_userbyid(a.grantee)::text END, bool_or(a.is_grantable) \
               FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a \
               WHERE d.datname = current_database() AND a.privilege_type = 'CONNECT' AND a.grantee <> d.datdba GROUP BY 1 ORDER BY 1";
    let rows = session.client().query(sql, &[]).await.map_err(PostgresError::server("asking who may connect"))?;
    let facts = "SELECT current_database()::text, current_user::text, \
                 (SELECT r.rolsuper OR pg_has_role(d.datdba, 'USAGE') FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database())";
    let row = session.client().query_one(facts, &[]).await.map_err(PostgresError::server("asking who may connect"))?;
    let (database, role, may_always): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
    let mut taken: Vec<Taken> = rows.iter().map(|row| Taken { role: row.get(0), grantable: row.get(1) }).collect();
    let own = taken.iter().position(|one| one.role.as_ref() == Some(&role));
    if let Some(own) = own {
        taken.remove(own);
    }
    Ok(Closed { database, taken, lent: (own.is_none() && !may_always).then_some(role) })
}

/// Takes the right to connect away and ends the sessions. May be called again.
pub async fn close(session: &Session, closed: &Closed) -> Result<(), GuardError> {
    let database = sql::identifier(&closed.database);
    if let Some(role) = &closed.lent {
        session
            .execute(
                "keeping the guard's own way in",
                &format!("GRANT CONNECT ON DATABASE {database} TO {}", sql::identifier(role)),
            )
            .await?;
    }
    for taken in &closed.taken {
        let revoke = format!("REVOKE CONNECT ON DATABASE {database} FROM {} CASCADE", taken.role());
        session.execute("refusing connections", &revoke).await?;
        crate::failpoint::hit("guard:closing:one");
    }
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let others = others(session).await?;
        if others.is_empty() {
            return Ok(());
        }
        for other in &others {
            let end = session.client().execute("SELECT pg_terminate_backend($1)", &[&other.pid]).await;
            end.map_err(PostgresError::server(format!("ending process {} of {}", other.pid, other.role)))?;
        }
        if tokio::time::Instant::now() > until {
            let roles: Vec<&str> = others.iter().map(|other| other.role.as_str()).collect();
            return Err(GuardError::Server(format!("sessions of {} do not end, or come again", roles.join(", "))));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Gives back what was taken. May be called again.
pub async fn open(session: &Session, closed: &Closed) -> Result<(), GuardError> {
    for sql in closed.opening() {
        match session.execute("letting connections in", &sql).await {
            // Roles that were dropped meanwhile.
            Err(e) if e.sqlstate() == Some("42704") => {}
            other => other?,
        }
        crate::failpoint::hit("guard:opening:one");
    }
    Ok(())
}
