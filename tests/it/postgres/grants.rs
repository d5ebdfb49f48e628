use restante::postgres::grants::{self, GrantsFor, Outcome, Purpose};
use restante::postgres::reading::ReadingOptions;
use restante::postgres::session::{Session, SessionOptions};

use super::support::{count, dsn, open};
use crate::server::{TestDatabase, TestServer};

async fn store() -> TestDatabase {
    let database = TestServer::shared().database(None).await;
    database
        .execute(
            "CREATE SCHEMA \"Ma il\"; CREATE TABLE \"Ma il\".m (id serial, body text); INSERT INTO \"Ma il\".m (body) VALUES ('x');
             CREATE TABLE t (a int); INSERT INTO t VALUES (1)",
        )
        .await;
    database
}

async fn printed(database: &TestDatabase, purpose: Purpose, role: &str) -> String {
    let session = Session::connect(&dsn(&database.superuser_dsn()), SessionOptions::default()).await.unwrap();
    let (schemas, owners) = grants::schemas_and_owners(&session).await.unwrap();
    let written = [table()];
    let journal = "CREATE TABLE IF NOT EXISTS restante.journal (id bigserial)";
    // A restore makes the schema itself; for the others it would be in the way.
    let journal = if purpose == Purpose::Restore { format!("{journal};") } else { String::new() };
    let written = if purpose == Purpose::Restore { &written[..] } else { &[] };
    grants::sql(
        purpose,
        &GrantsFor { role, database: database.name(), schemas: &schemas, owners: &owners, written, journal: &journal },
    )
}

fn table() -> restante::postgres::catalog::TableName {
    restante::postgres::catalog::TableName { schema: "Ma il".into(), name: "m".into() }
}

async fn failed(database: &TestDatabase, purpose: Purpose, role: &str) -> Vec<grants::Check> {
    let checks = grants::checks(&dsn(&database.dsn_as(role)), purpose, &[table()]).await;
    assert!(!checks.is_empty());
    let quiet = ["fsync", "checksums"];
    checks.into_iter().filter(|check| check.outcome != Outcome::Ok && !quiet.contains(&check.name)).collect()
}

#[tokio::test]
async fn exactly_the_printed_grants_make_a_snapshot_possible() {
    let database = store().await;
    let role = database.ordinary_role().await;
    database.execute(&printed(&database, Purpose::Snapshot, &role).await).await;
    assert_eq!(failed(&database, Purpose::Snapshot, &role).await, []);
    // Made later, by the same owner.
    database.execute("CREATE TABLE later (a int); INSERT INTO later VALUES (1)").await;
    let set = open(&database, &role, 2, ReadingOptions::default()).await.unwrap();
    assert!(set.catalog.unreadable(&role).is_empty());
    assert_eq!(count(&set, &set.readers[1], "later").await, 1);
    assert!(set.catalog.sequences.iter().all(|sequence| sequence.value.is_some()));
    let marker = database.connect_as(&role).await;
    marker.batch_execute("CREATE SEQUENCE restante.marker_1; SELECT setval('restante.marker_1', 42)").await.unwrap();
    assert!(marker.batch_execute("INSERT INTO public.t VALUES (2)").await.is_err());
}

#[tokio::test]
async fn exactly_the_printed_grants_make_a_restore_possible() {
    let database = store().await;
    let role = database.ordinary_role().await;
    database.execute(&printed(&database, Purpose::Restore, &role).await).await;
    assert_eq!(failed(&database, Purpose::Restore, &role).await, []);
    let client = database.connect_as(&role).await;
    client
        .batch_execute(
            "CREATE TEMP TABLE staging (LIKE \"Ma il\".m); INSERT INTO restante.journal DEFAULT VALUES;
             SELECT setval('\"Ma il\".m_id_seq', 100); INSERT INTO \"Ma il\".m (body) VALUES ('back'); UPDATE \"Ma il\".m SET body = 'y'",
        )
        .await
        .unwrap();
    assert!(client.batch_execute("UPDATE t SET a = 2").await.is_err());
}

#[tokio::test]
async fn doctor_names_each_missing_grant_and_its_remedy_helps() {
    for purpose in [Purpose::Snapshot, Purpose::Gap, Purpose::Restore] {
        let database = store().await;
        let role = database.ordinary_role().await;
        database.execute(&printed(&database, purpose, &role).await).await;
        let mut revokes = vec![
            format!("REVOKE CONNECT ON DATABASE {} FROM {role}", database.name()),
            format!("REVOKE USAGE ON SCHEMA \"Ma il\" FROM {role}"),
            format!("REVOKE SELECT ON t FROM {role}"),
            format!("REVOKE SELECT ON SEQUENCE \"Ma il\".m_id_seq FROM {role}"),
        ];
        match purpose {
            Purpose::Snapshot => revokes.push(format!("REVOKE CREATE ON SCHEMA restante FROM {role}")),
            Purpose::Gap => revokes.push(format!("REVOKE TEMPORARY ON DATABASE {} FROM {role}", database.name())),
            Purpose::Restore => revokes.extend([
                format!("REVOKE TEMPORARY ON DATABASE {} FROM {role}", database.name()),
                format!("REVOKE USAGE ON SCHEMA restante FROM {role}"),
                format!("REVOKE INSERT ON \"Ma il\".m FROM {role}"),
                format!("REVOKE UPDATE ON SEQUENCE \"Ma il\".m_id_seq FROM {role}"),
            ]),
        }
        for revoke in revokes {
            assert_eq!(failed(&database, purpose, &role).await, [], "before {revoke}");
            database.execute(&revoke).await;
            let found = failed(&database, purpose, &role).await;
            assert!(!found.is_empty(), "{purpose:?}: {revoke}");
            for check in found {
                database.execute(check.remedy.as_deref().unwrap()).await;
            }
        }
    }
}
