use std::path::Path;
use std::process::{Command, Stdio};

use restante::postgres::dsn::{Dsn, Environment};
use restante::postgres::session::{Session, SessionOptions};

use super::dsn::psql;
use crate::server::{Auth, PASSWORD, ServerOptions, TestServer, give_away};

fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `name.crt` and `name.key`, signed by `ca`.
fn certificate(directory: &Path, name: &str, subject: &str, extension: &str) {
    std::fs::write(directory.join("extension"), extension).unwrap();
    openssl(directory, &format!("req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={subject}"));
    openssl(
        directory,
        &format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile extension -out {name}.crt"
        ),
    );
}

#[tokio::test]
async fn every_sslmode_means_what_it_means_to_psql() {
    let files = tempfile::tempdir().unwrap();
    let at = files.path();
    std::fs::set_permissions(at, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for authority in ["ca", "other"] {
        openssl(
            at,
            &format!(
                "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {authority}.key -out {authority}.crt -subj /CN={authority}"
            ),
        );
    }
    certificate(at, "server", "localhost", "subjectAltName=DNS:localhost");
    certificate(at, "client", "postgres", "keyUsage=digitalSignature");
    give_away(&at.join("server.key"));
    let file = |name: &str| at.join(name).display().to_string();
    let tls_on = |options: ServerOptions| options.set("ssl", "on").set("ssl_ca_file", &file("ca.crt"));
    let server = TestServer::dedicated(ServerOptions {
        hba: vec![
            "hostssl all postgres 127.0.0.1/32 scram-sha-256".into(),
            "hostssl certified postgres all cert".into(),
        ],
        auth: Auth::Scram,
        ..tls_on(ServerOptions::default())
            .set("ssl_cert_file", &file("server.crt"))
            .set("ssl_key_file", &file("server.key"))
    });
    give_away(&at.join("other.key"));
    let own = TestServer::dedicated(ServerOptions {
        hba: vec!["hostnossl all all all reject".into()],
        ..tls_on(ServerOptions::default())
            .set("ssl_cert_file", &file("other.crt"))
            .set("ssl_key_file", &file("other.key"))
    });
    let plain = TestServer::dedicated(ServerOptions::default());
    let home = tempfile::tempdir().unwrap();
    let environment = Environment {
        variables: [("PGPASSWORD".to_owned(), PASSWORD.to_owned()), ("PGUSER".to_owned(), "postgres".to_owned())]
            .into(),
        home: None,
        account: Some("root".into()),
    };
    drop(home);
    let (ca, other, crt, key) = (file("ca.crt"), file("other.crt"), file("client.crt"), file("client.key"));
    let named = "host=localhost hostaddr=127.0.0.1";
    let by_address = "host=127.0.0.1";
    let mut cases = Vec::new();
    for (port, root) in [(server.port(), &ca), (own.port(), &other), (plain.port(), &ca)] {
        for host in [named, by_address] {
            for mode in ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] {
                cases.push(format!("{host} port={port} dbname=postgres sslmode={mode}"));
                cases.push(format!("{host} port={port} dbname=postgres sslmode={mode} sslrootcert={root}"));
            }
        }
    }
    let port = server.port();
    cases.extend([
        format!("{named} port={port} dbname=postgres sslmode=verify-ca sslrootcert={other}"),
        format!("{named} port={port} dbname=postgres sslmode=require sslrootcert={other}"),
        format!("{named} port={port} dbname=postgres sslmode=require channel_binding=require"),
        format!("{named} port={port} dbname=postgres sslmode=disable channel_binding=require"),
        format!("host={} port={port} dbname=postgres sslmode=verify-full", server.socket_directory().display()),
        format!("{named} port={port} dbname=postgres sslmode=require sslcert={crt} sslkey={key}"),
        format!("{named} port={port} dbname=postgres sslmode=require sslcert={crt}.none sslkey={key}"),
    ]);
    let question = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let mut outcomes = [0, 0];
    for case in &cases {
        let theirs = psql(case, &environment, question);
        let connected =
            async { Session::connect(&Dsn::parse(case, &environment)?, SessionOptions::default()).await }.await;
        // This certificate has no alternative name, on whose lack alone we are stricter.
        let stricter = case.contains(&format!("port={}", own.port())) && case.contains("verify-full");
        match connected {
            Ok(session) => {
                outcomes[0] += 1;
                let theirs = String::from_utf8(theirs.stdout).unwrap();
                assert_eq!(theirs.trim(), session.is_encrypted().to_string(), "{case}");
            }
            Err(error) => {
                outcomes[1] += 1;
                assert!(!theirs.status.success() || stricter, "psql connects with {case}, we do not: {error}");
            }
        }
    }
    assert!(outcomes[0] > 20 && outcomes[1] > 10, "{outcomes:?}");
}
