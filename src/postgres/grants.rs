//! The SQL that an administrator pastes so that an ordinary role can do a job, and the checks of `doctor`.
//!
//! What is printed is enough: a test applies exactly it to a role that has nothing, and then the job works.

use super::catalog::{self, OWN_SCHEMA, TableName};
use super::dsn::Dsn;
use super::error::PostgresError;
use super::session::{self, ServerFacts, Session, SessionOptions};
use super::sql::{identifier, literal};

mod checks;

/// What a role is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Snapshot,
    Gap,
    Restore,
}

/// What the printed SQL needs to know.
#[derive(Debug, Clone)]
pub struct GrantsFor<'a> {
    pub role: &'a str,
    pub database: &'a str,
    /// The schemas with tables.
    pub schemas: &'a [String],
    /// Roles that own tables: what they make later must be readable as well.
    pub owners: &'a [String],
    /// The tables that a restore writes.
    pub written: &'a [TableName],
    /// DDL of the replay's journal in schema `restante`; run by whoever pastes the rest.
    pub journal: &'a str,
}

/// The SQL for `purpose`, one statement a line, for a superuser or the database's owner to run in that database.
pub fn sql(purpose: Purpose, grants: &GrantsFor<'_>) -> String {
    let role = identifier(grants.role);
    let mut lines = vec![
        // A line end in a name would end the comment.
        format!("-- {} with Restante, as role {role}; run in database {}", name(purpose), identifier(grants.database))
            .replace(['\n', '\r'], " "),
        format!("GRANT CONNECT ON DATABASE {} TO {role};", identifier(grants.database)),
    ];
    for schema in grants.schemas {
        let schema = identifier(schema);
        lines.push(format!("GRANT USAGE ON SCHEMA {schema} TO {role};"));
        lines.push(format!("GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role};"));
        lines.push(format!("GRANT SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role};"));
        for owner in grants.owners {
            let defaults = format!("ALTER DEFAULT PRIVILEGES FOR ROLE {} IN SCHEMA {schema}", identifier(owner));
            lines.push(format!("{defaults} GRANT SELECT ON TABLES TO {role};"));
            lines.push(format!("{defaults} GRANT SELECT ON SEQUENCES TO {role};"));
        }
    }
    let own = identifier(OWN_SCHEMA);
    match purpose {
        Purpose::Snapshot => {
            // The role makes the marker's sequence itself and owns it. See DESIGN §4, marker.
            lines.push(format!("CREATE SCHEMA IF NOT EXISTS {own};"));
            lines.push(format!("GRANT USAGE, CREATE ON SCHEMA {own} TO {role};"));
        }
        Purpose::Gap => {
            lines.push(format!("GRANT TEMPORARY ON DATABASE {} TO {role};", identifier(grants.database)));
            lines.extend((!grants.journal.trim().is_empty()).then(|| grants.journal.trim().to_owned()));
        }
        Purpose::Restore => {
            lines.push(format!("GRANT TEMPORARY ON DATABASE {} TO {role};", identifier(grants.database)));
            let see = "-- optional, so that a restore waits for standbys; the role then sees what other sessions run:";
            lines.push(format!("{see} GRANT pg_read_all_stats TO {role};").replace(['\n', '\r'], " "));
            lines.push(format!("CREATE SCHEMA IF NOT EXISTS {own};"));
            lines.push(format!("GRANT USAGE ON SCHEMA {own} TO {role};"));
            if !grants.journal.trim().is_empty() {
                lines.push(grants.journal.trim().to_owned());
            }
            lines.push(format!("GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {own} TO {role};"));
            lines.push(format!("GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {own} TO {role};"));
            for table in grants.written {
                lines.push(format!("GRANT SELECT, INSERT, UPDATE ON {} TO {role};", table.quoted()));
            }
            for schema in grants.schemas {
                // UPDATE is what setval wants.
                lines.push(format!(
                    "GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA {} TO {role};",
                    identifier(schema)
                ));
            }
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

/// The schemas and owners to put into [`GrantsFor`], as the database has them now.
pub async fn schemas_and_owners(session: &Session) -> Result<(Vec<String>, Vec<String>), PostgresError> {
    let list = async |sql: &str| -> Result<Vec<String>, PostgresError> {
        let rows = session.client().query(sql, &[]).await.map_err(PostgresError::server("listing the schemas"))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    };
    let schemas = list(
        "SELECT nspname::text FROM pg_namespace WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'restante') \
         AND nspname !~ '^pg_' ORDER BY nspname",
    );
    let owners = list(
        "SELECT DISTINCT pg_get_userbyid(c.relowner)::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p', 'S') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'restante') \
         AND n.nspname !~ '^pg_' ORDER BY 1",
    );
    Ok((schemas.await?, owners.await?))
}

fn name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Snapshot => "snapshot",
        Purpose::Gap => "gap",
        Purpose::Restore => "restore",
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Ok,
    Warn,
    Fail,
}

/// One line of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub outcome: Outcome,
    pub detail: String,
    /// SQL or a command to paste, or what to change.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Ok, detail: detail.into(), remedy: None }
    }

    fn warn(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Warn, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    fn fail(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Fail, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

/// Looks at everything that `purpose` needs. Never fails: a server that cannot be reached is a failed check. `written` are the
/// tables that a restore writes.
pub async fn checks(dsn: &Dsn, purpose: Purpose, written: &[TableName]) -> Vec<Check> {
    checks::run(dsn, purpose, written).await
}
