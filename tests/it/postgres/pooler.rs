use std::net::TcpListener;
use std::process::{Command, Stdio};

use restante::postgres::PostgresError;
use restante::postgres::session::refuse_pooler;

use super::support::dsn;
use crate::server::{TestServer, as_server_user, give_away};

#[tokio::test]
#[ignore = "needs pgbouncer installed; run with --ignored"]
async fn a_pool_of_transactions_is_refused_and_a_pool_of_sessions_is_not() {
    let server = TestServer::shared();
    for (mode, refused) in [("transaction", true), ("statement", true), ("session", false)] {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let configuration = directory.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = {mode}\n[databases]\npostgres = host=127.0.0.1 port={} user=postgres\n",
            server.port(),
            server.port()
        );
        std::fs::write(&configuration, text).unwrap();
        give_away(&configuration);
        let mut pooler =
            as_server_user(Command::new("pgbouncer")).arg(&configuration).stderr(Stdio::null()).spawn().unwrap();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(pooler.try_wait().unwrap().is_none(), "pgbouncer ended");
            std::thread::yield_now();
        }
        let text = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=disable");
        let outcome = refuse_pooler(&dsn(&text)).await;
        pooler.kill().unwrap();
        pooler.wait().unwrap();
        match outcome {
            Ok(()) => assert!(!refused, "{mode}"),
            Err(error) => assert!(refused && matches!(error, PostgresError::Pooler), "{mode}: {error:?}"),
        }
    }
}
