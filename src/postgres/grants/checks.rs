//! The checks of `doctor`, each with what helps.

use super::{Check, Dsn, OWN_SCHEMA, PostgresError, Purpose, ServerFacts, Session, SessionOptions, TableName};
use super::{catalog, identifier, literal, session};
use crate::postgres::catalog::Catalog;
use crate::postgres::dsn::{Address, SslMode};

pub(super) async fn run(dsn: &Dsn, purpose: Purpose, written: &[TableName]) -> Vec<Check> {
    let mut found: Vec<Check> = dsn
        .warnings
        .iter()
        .map(|warning| Check::warn("password file", warning.clone(), "chmod 0600 ~/.pgpass"))
        .collect();
    let session = match Session::connect(dsn, SessionOptions::default()).await {
        Ok(session) => session,
        Err(error) => {
            found.push(unreachable(dsn, &error));
            return found;
        }
    };
    let more = async {
        let facts = session.facts().await?;
        found.push(Check::ok("reachable", format!("PostgreSQL {} at {}", facts.version, session.endpoint())));
        found.push(encryption(dsn, &session));
        found.push(match session::refuse_pooler(dsn).await {
            Ok(()) => Check::ok("pooler", "every session has a server process of its own"),
            Err(error) => {
                Check::fail("pooler", error.to_string(), "connect to the server's own port, not the pooler's")
            }
        });
        found.push(standby(&facts, purpose));
        found.extend(settings(&facts));
        let catalog = catalog::read(&session).await?;
        found.extend(tables(&catalog, &facts));
        found.extend(covered(&catalog, &identifier(&facts.role)));
        if purpose != Purpose::Snapshot {
            found.push(temporary(&session, &facts).await?);
        }
        match purpose {
            Purpose::Snapshot => found.push(marker(&session, &facts).await?),
            Purpose::Gap => {}
            Purpose::Restore => found.extend(writing(&session, &facts, written).await?),
        }
        Ok::<(), PostgresError>(())
    };
    if let Err(error) = more.await {
        found.push(Check::fail("checks", error.to_string(), "see the server's log"));
    }
    found
}

fn unreachable(dsn: &Dsn, error: &PostgresError) -> Check {
    let text = error.to_string();
    let remedy = if text.contains("42501") {
        format!("GRANT CONNECT ON DATABASE {} TO {};", identifier(&dsn.database), identifier(&dsn.user))
    } else {
        format!("psql {:?} must work first", dsn.to_string())
    };
    Check::fail("reachable", text, remedy)
}

fn encryption(dsn: &Dsn, session: &Session) -> Check {
    let socket = matches!(session.endpoint().address, Address::Socket(_));
    match (session.is_encrypted(), socket) {
        (_, true) => Check::ok("tls", "not needed on a unix socket"),
        (true, _) if matches!(dsn.ssl.mode, SslMode::VerifyFull | SslMode::VerifyCa) => {
            Check::ok("tls", format!("encrypted, certificate checked ({})", dsn.ssl.mode.as_str()))
        }
        (true, _) => {
            Check::warn("tls", "encrypted, but anybody could be the server", "sslmode=verify-full sslrootcert=FILE")
        }
        (false, _) => Check::warn(
            "tls",
            "not encrypted: mail crosses the network in the clear",
            "sslmode=verify-full sslrootcert=FILE",
        ),
    }
}

fn standby(facts: &ServerFacts, purpose: Purpose) -> Check {
    match (facts.is_in_recovery, purpose) {
        (false, _) => Check::ok("standby", "the server is a primary"),
        (true, Purpose::Restore) => {
            Check::fail("standby", "the server is a standby: nothing can be written", "target_session_attrs=primary")
        }
        (true, _) => Check::warn(
            "standby",
            "the server is a standby: unlogged tables are not covered, and replay may end a snapshot",
            "ALTER SYSTEM SET hot_standby_feedback = on; SELECT pg_reload_conf();",
        ),
    }
}

fn settings(facts: &ServerFacts) -> Vec<Check> {
    let mut found = Vec::new();
    if facts.fsync == Some(false) {
        let detail =
            "fsync is off: a crash may lose or damage committed rows, and each restart voids the base of increments";
        found.push(Check::warn("fsync", detail, "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf();"));
    }
    if facts.data_checksums == Some(false) {
        let detail = "data checksums are off: damage on disk is read as if it were mail";
        found.push(Check::warn("checksums", detail, "stop the server, pg_checksums --enable, start it"));
    }
    found
}

fn tables(catalog: &Catalog, facts: &ServerFacts) -> Vec<Check> {
    let unreadable = catalog.unreadable(&facts.role);
    if unreadable.is_empty() {
        return vec![Check::ok("tables", format!("all {} can be read in full", catalog.tables.len()))];
    }
    unreadable
        .into_iter()
        .map(|found| {
            let name = if found.remedy.contains("BYPASSRLS") { "row security" } else { "tables" };
            Check::fail(name, format!("{}: {}", found.table, found.reason), found.remedy)
        })
        .collect()
}

fn covered(catalog: &Catalog, role: &str) -> Vec<Check> {
    let mut found = Vec::new();
    for sequence in catalog.sequences.iter().filter(|sequence| !sequence.readable) {
        let detail = format!("{}: its value cannot be read", sequence.name);
        found.push(Check::fail(
            "sequences",
            detail,
            format!(
                "GRANT USAGE ON SCHEMA {} TO {role}; GRANT SELECT ON SEQUENCE {} TO {role};",
                identifier(&sequence.name.schema),
                sequence.name.quoted()
            ),
        ));
    }
    if catalog.large_objects > 0 {
        let detail = format!("{} large objects are not covered by snapshots", catalog.large_objects);
        found.push(Check::warn("large objects", detail, "back them up with pg_dump --large-objects"));
    }
    found
}

/// One right of the role: what is asked, and what gives it.
async fn right(
    session: &Session,
    name: &'static str,
    question: &str,
    lacking: String,
    remedy: String,
) -> Result<Check, PostgresError> {
    let sql = format!("SELECT coalesce({question}, false)");
    let has = session
        .client()
        .query_one_scalar::<bool, _>(&sql, &[])
        .await
        .map_err(PostgresError::server("asking for rights"))?;
    Ok(if has { Check::ok(name, "granted") } else { Check::fail(name, lacking, remedy) })
}

async fn temporary(session: &Session, facts: &ServerFacts) -> Result<Check, PostgresError> {
    let remedy = format!("GRANT TEMPORARY ON DATABASE {} TO {};", identifier(&facts.database), identifier(&facts.role));
    let question = "has_database_privilege(current_database(), 'TEMPORARY')";
    right(session, "temporary tables", question, "the role may not make temporary tables".to_owned(), remedy).await
}

async fn marker(session: &Session, facts: &ServerFacts) -> Result<Check, PostgresError> {
    let (own, role) = (identifier(OWN_SCHEMA), identifier(&facts.role));
    let question = format!(
        "(SELECT has_schema_privilege(oid, 'CREATE') AND \
         has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = {})",
        literal(OWN_SCHEMA)
    );
    let remedy = format!("CREATE SCHEMA IF NOT EXISTS {own}; GRANT USAGE, CREATE ON SCHEMA {own} TO {role};");
    let lacking = "without its marker sequence every snapshot reads everything".to_owned();
    let check = right(session, "marker", &question, lacking, remedy).await?;
    // A snapshot works without, only slower.
    let outcome = if check.outcome == super::Outcome::Fail { super::Outcome::Warn } else { check.outcome };
    Ok(Check { outcome, ..check })
}

async fn writing(session: &Session, facts: &ServerFacts, written: &[TableName]) -> Result<Vec<Check>, PostgresError> {
    let role = identifier(&facts.role);
    let own = identifier(OWN_SCHEMA);
    let usage = format!(
        "(SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = {})",
        literal(OWN_SCHEMA)
    );
    let remedy = format!("CREATE SCHEMA IF NOT EXISTS {own}; GRANT USAGE ON SCHEMA {own} TO {role};");
    let mut found =
        vec![right(session, "journal", &usage, "no access to the journal's schema".to_owned(), remedy).await?];
    for table in written {
        for privilege in ["SELECT", "INSERT", "UPDATE"] {
            // By name through the catalog: `to_regclass` fails without USAGE on the schema.
            let question = format!(
                "(SELECT has_table_privilege(c.oid, '{privilege}') AND has_schema_privilege(n.oid, 'USAGE') FROM pg_class c \
                 JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = {} AND c.relname = {})",
                literal(&table.schema),
                literal(&table.name)
            );
            let remedy = format!(
                "GRANT USAGE ON SCHEMA {} TO {role}; GRANT {privilege} ON {} TO {role};",
                identifier(&table.schema),
                table.quoted()
            );
            let check =
                right(session, "writing", &question, format!("{table}: no right to {privilege}"), remedy).await?;
            found.extend((check.outcome != super::Outcome::Ok).then_some(check));
        }
    }
    let sequences = "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c \
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'S' AND n.nspname <> 'restante' AND n.nspname !~ '^pg_' \
         AND NOT (has_sequence_privilege(c.oid, 'UPDATE') AND has_sequence_privilege(c.oid, 'USAGE')) ORDER BY 1";
    let rows = session.client().query(sequences, &[]).await.map_err(PostgresError::server("asking for rights"))?;
    found.extend(rows.iter().map(|row| {
        let sequence: String = row.get(0);
        let remedy = format!("GRANT USAGE, SELECT, UPDATE ON SEQUENCE {sequence} TO {role};");
        Check::fail("sequences", format!("{sequence}: no right to raise it"), remedy)
    }));
    Ok(found)
}
