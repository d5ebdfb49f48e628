use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use restante::postgres::dsn::{Dsn, Environment};
use restante::postgres::session::{Session, SessionOptions};

use crate::server::{Auth, PASSWORD, ServerOptions, TestServer, binaries};

const WHO: &str = "SELECT current_user::text, current_database()::text, coalesce(inet_server_port(), 0)::text, \
     coalesce(host(inet_server_addr()), ''), current_setting('application_name'), current_setting('geqo')";

pub(super) fn psql(text: &str, environment: &Environment, sql: &str) -> Output {
    let mut command = Command::new(binaries().join("psql"));
    command.args(["--no-psqlrc", "-w", "-A", "-t", "-F", "|", "-c", sql, "-d", text]).stdin(Stdio::null());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        command.env_remove(name);
    }
    command.env_remove("HOME").envs(&environment.variables).env("PGCONNECT_TIMEOUT", "10");
    if let Some(home) = &environment.home {
        // libpq asks the account for its home, so the files are named.
        command.env("PGPASSFILE", home.join(".pgpass"));
    }
    command.output().unwrap()
}

#[tokio::test]
async fn a_connection_string_reaches_what_psql_reaches_with_it() {
    let server = TestServer::dedicated(ServerOptions { auth: Auth::Scram, ..Default::default() });
    let database = server.database(None).await;
    database
        .execute(&format!(
            "CREATE ROLE \"we ird:r@le\" LOGIN PASSWORD '{}'; GRANT CONNECT ON DATABASE {} TO PUBLIC",
            PASSWORD.replace('\'', "''"),
            database.name()
        ))
        .await;
    let home = tempfile::tempdir().unwrap();
    let (port, socket, name) = (server.port(), server.socket_directory().display().to_string(), database.name());
    let quoted = PASSWORD.replace('\\', "\\\\").replace(':', "\\:");
    let pgpass = format!(
        "# one\n{socket}:{port}:{name}:postgres:{quoted}\n127.0.0.1:*:{name}:we ird\\:r@le:{quoted}\n*:*:other:*:wrong\n"
    );
    let file = home.path().join(".pgpass");
    std::fs::write(&file, pgpass).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let services = home.path().join("services");
    std::fs::write(&services, format!("[mail]\nhost=127.0.0.1\nport={port}\nuser=postgres\ndbname=nowhere\n")).unwrap();
    let encoded: String = PASSWORD.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let pairs = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
    let uri_socket = socket.replace('/', "%2F");
    // Nothing listens on port 1.
    let cases = [
        format!("host={socket} port={port} dbname={name} user=postgres"),
        format!("postgresql://postgres@{uri_socket}:{port}/{name}"),
        format!("postgres://we%20ird%3Ar%40le@127.0.0.1:{port}/{name}?application_name=x%20y&options=-c%20geqo%3Doff"),
        format!("postgres://postgres:{encoded}@localhost:{port}/{name}?hostaddr=127.0.0.1&sslmode=disable"),
        format!(
            "host=127.0.0.1,127.0.0.1 port=1,{port} user = 'postgres' password='{pairs}' dbname={name} options='-c geqo=off'"
        ),
        format!("postgres://127.0.0.1:1,127.0.0.1:{port}/{name}?user=postgres&password={encoded}"),
        format!("service=mail dbname={name} password='{pairs}'"),
        format!("postgresql:///{name}?host={uri_socket}&port={port}&user=postgres"),
        name.to_owned(),
        format!("dbname={name} user=postgres password=wrong host={socket} port={port}"),
        format!("host=127.0.0.1 port={port} dbname={name} user=postgres"),
        format!("host=127.0.0.1 port=1,{port} dbname={name} user=postgres"),
        format!("postgres://postgres@127.0.0.1:{port}/{name}?nonsense=1"),
        format!("postgres://postgres@[127.0.0.1:{port}/{name}"),
    ];
    let variables = [
        ("PGHOST", socket.clone()),
        ("PGPORT", port.to_string()),
        ("PGUSER", "postgres".to_owned()),
        ("PGSERVICEFILE", services.display().to_string()),
        ("PGAPPNAME", "from environment".to_owned()),
    ];
    let variables: HashMap<String, String> =
        variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let environment = Environment { variables, home: Some(home.path().into()), account: Some("root".into()) };
    let mut reached = 0;
    for case in &cases {
        let theirs = psql(case, &environment, WHO);
        let ours = async {
            let dsn = Dsn::parse(case, &environment)?;
            let session = Session::connect(&dsn, SessionOptions::default()).await?;
            let row = session.client().query_one(WHO, &[]).await.unwrap();
            Ok::<_, restante::postgres::PostgresError>(
                (0..6).map(|at| row.get::<_, String>(at)).collect::<Vec<_>>().join("|"),
            )
        }
        .await;
        if theirs.status.success() {
            reached += 1;
            assert_eq!(String::from_utf8(theirs.stdout).unwrap().trim_end(), ours.unwrap(), "{case}");
        } else {
            assert!(ours.is_err(), "{case}: {ours:?}, but psql: {}", String::from_utf8_lossy(&theirs.stderr));
        }
    }
    assert_eq!(reached, 9);
}

/// The role in `role "x" does not exist`.
fn role_of(message: &str) -> Option<&str> {
    Some(message.split_once("role \"")?.1.rsplit_once("\" does not exist")?.0)
}

#[test]
fn any_user_text_means_the_same_to_psql() {
    let server = TestServer::shared();
    let port = server.port();
    // Before 18 a blank in a URI was part of the value; we read it as 18 does. Written %20 it means the same to all.
    let blanks_count = server.version_num() < 180_000;
    let environment = Environment { account: Some("root".to_owned()), ..Environment::default() };
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() });
    // Slashes and question marks would make it another host; the rest is hostile enough.
    runner
        .run(&("[ -.0-=@-~]{0,10}", any::<bool>()), |(text, uri)| {
            let text = if uri && blanks_count { text.replace(' ', "%20") } else { text };
            let dsn = if uri {
                format!("postgres://{text}@127.0.0.1:{port}/postgres?sslmode=disable")
            } else {
                format!("host=127.0.0.1 port={port} dbname=postgres sslmode=disable user={text}")
            };
            let ours = Dsn::parse(&dsn, &environment);
            // A host of its own (`a@b` in the text) is never looked up.
            if ours.as_ref().is_ok_and(|dsn| {
                dsn.endpoints.len() != 1 || dsn.endpoints[0].to_string() != format!("127.0.0.1:{port}")
            }) {
                return Ok(());
            }
            let Ok(theirs) = String::from_utf8(psql(&dsn, &environment, "SELECT 1").stderr) else {
                // A name in no encoding (%a0): libpq sends the bytes, we refuse them.
                prop_assert!(ours.is_err(), "{} is {:?}", dsn, ours);
                return Ok(());
            };
            match role_of(&theirs) {
                // The server cuts names at 63 bytes; these are shorter.
                Some(role) => prop_assert_eq!(role, ours.unwrap().user, "{}", dsn),
                None if theirs.is_empty() => prop_assert_eq!("postgres", ours.unwrap().user),
                None => prop_assert!(ours.is_err(), "{} is {:?}, psql: {}", dsn, ours, theirs),
            }
            Ok(())
        })
        .unwrap();
}
