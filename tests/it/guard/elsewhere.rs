//! The guard on another host than the server, which is a managed one as far as it can tell: they meet over TCP between two network
//! namespaces, the guard sees none of the server's processes and nothing of its files, and its role owns the database and may end sessions.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::scene::{Asked, Scene};
use crate::server::{ServerOptions, TestServer, binaries, server_user};

/// Two network namespaces with a cable between them; they are gone with the processes that hold them.
struct Hosts {
    server: Child,
    guard: Child,
}

const SERVER: &str = "10.77.0.1";
const GUARD: &str = "10.77.0.2";

impl Hosts {
    /// `None` where nobody may make them.
    fn new() -> Option<Self> {
        let server = Self::namespace()?;
        let guard = Self::namespace()?;
        let hosts = Self { server, guard };
        let end = hosts.guard.id().to_string();
        let ip = |host: &Child, words: &str| {
            let status = within(host.id(), &["ip"]).args(words.split(' ')).status().unwrap();
            assert!(status.success(), "ip {words}");
        };
        ip(&hosts.server, &format!("link add cable type veth peer name cable netns {end}"));
        for (host, address) in [(&hosts.server, SERVER), (&hosts.guard, GUARD)] {
            ip(host, "link set lo up");
            ip(host, &format!("address add {address}/30 dev cable"));
            ip(host, "link set cable up");
        }
        Some(hosts)
    }

    fn namespace() -> Option<Child> {
        let mut holder = Command::new("unshare");
        holder.args(["--net", "sh", "-c", "echo made; read -r _"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = holder.stderr(Stdio::null()).spawn().ok()?;
        let mut said = String::new();
        BufReader::new(holder.stdout.take()?).read_line(&mut said).ok()?;
        (said == "made\n").then_some(holder)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for holder in [&mut self.server, &mut self.guard] {
            drop(holder.stdin.take());
            let _ = holder.wait();
        }
    }
}

/// A program in a host's network.
fn within(host: u32, words: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &host.to_string(), "--net"]).args(words).stdin(Stdio::null());
    command
}

/// A command of the program as the guard's host runs it: with processes of its own, and an empty folder where the server's files are.
fn elsewhere(host: u32, server: &TestServer, command: &Command) -> Command {
    let (user, group) = server_user().unwrap();
    let hide = "mount -t tmpfs none \"$1\" && shift && exec setpriv \"$@\"";
    let mut call = within(host, &["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    call.args(["sh", "-c", hide, "sh"]).arg(server.socket_directory());
    call.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".into()]);
    call.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => call.env(name, value),
            None => call.env_remove(name),
        };
    }
    call.current_dir(command.get_current_dir().unwrap());
    call
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn online_and_exclusive_work_from_another_host_on_a_managed_server_and_offline_is_refused() {
    let has_ip = Command::new("ip").arg("-V").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    let Some(hosts) = server_user().filter(|_| has_ip).and_then(|_| Hosts::new()) else {
        eprintln!("skipped: network namespaces need root and iproute2");
        return;
    };
    let options = ServerOptions { in_memory: true, ..ServerOptions::default() };
    let hba = vec![format!("host all all {GUARD}/32 trust")];
    let server = TestServer::dedicated(ServerOptions { hba, ..options });
    // Its host is the first one from here on; the tests reach it by its socket.
    server.stop();
    server.append("postgresql.conf", &format!("listen_addresses = '{SERVER}'\n"));
    let (user, group) = server_user().unwrap();
    let mut start = within(hosts.server.id(), &["setpriv"]);
    start.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".into()]);
    start.arg(binaries().join("pg_ctl")).arg("-D").arg(server.data_directory());
    start.args(["-l", "/dev/null", "-w", "start"]).current_dir("/").stdout(Stdio::null());
    assert!(start.status().unwrap().success());

    let mut scene = Scene::new(&server).await;
    scene.database.execute(&format!("REVOKE pg_read_all_settings FROM {}", scene.role)).await;
    scene.store = scene.store.replace(&server.socket_directory().display().to_string(), SERVER);
    let (of_guard, of_server) = (hosts.guard.id(), server.clone());
    scene.host = Some(Box::new(move |command| elsewhere(of_guard, &of_server, command)));
    let role = &scene.role;
    let is = server.ask(&format!("SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, pg_has_role(oid, 'pg_read_server_files', 'member') FROM pg_roles WHERE rolname = '{role}'"));
    assert_eq!(is, "f|f|f|f|f");

    // Another host indeed, as the commands of a change see it: a session comes over the cable, and neither files nor processes are there.
    let folder = server.socket_directory().display();
    let look = format!(
        "set -e; test \"$(psql -XAtc 'SELECT host(inet_client_addr()), host(inet_server_addr())')\" = '{GUARD}|{SERVER}'\n\
         test -z \"$(ls -A {folder})\"; if grep -l postgres /proc/[0-9]*/comm; then exit 1; fi\n\
         psql -Xqc 'CREATE INDEX IF NOT EXISTS at ON messages (at)'\n"
    );
    scene.write("look.sh", &look);
    let hash = blake3::hash(look.as_bytes()).to_hex();
    let more = format!("[[script]]\nfile = \"look.sh\"\nblake3 = \"{hash}\"\n");
    let commands = "[[\"sh\", \"look.sh\"]]";
    let application = crate::server::connect(&scene.database.dsn_as(&scene.application())).await;
    for mode in ["online", "exclusive"] {
        let change = scene.change(&Asked { id: &format!("GOOD-{mode}"), mode, commands, more: &more });
        scene.approve(&change, &["ada"]);
        let said = scene.run(0, &["guard", "run", &change, "--jobs", "1"]);
        assert!(said.contains("no finding"), "{said}");
        assert_eq!(application.simple_query("SELECT 1").await.is_ok(), mode == "online", "its session is ended");
        assert!(scene.is_open().await);
        let id = format!("BAD-{mode}");
        let change = scene.sql(&id, mode, "DELETE FROM messages WHERE id % 100 = 7", "");
        scene.approve(&change, &["ada"]);
        let said = scene.run(3, &["guard", "run", &change, "--jobs", "1"]);
        assert!(said.contains("6 of 600 rows are gone"), "{said}");
        scene
            .database
            .execute("INSERT INTO messages SELECT i, 1, now(), false, 'again' FROM generate_series(7, 600, 100) i")
            .await;
    }
    // A server that nobody can stop from here, for each reason that there is.
    server.ask("CREATE ROLE rds_superuser");
    let change = scene.change(&Asked { id: "OFFLINE", mode: "offline", commands, more: &more });
    scene.approve(&change, &["ada"]);
    let hidden = "mode offline: the role may not know where the data directory is";
    let absent = format!("mode offline: the data directory {folder}/data is not to be had on this host");
    for (wanted, settings) in [(hidden, "REVOKE"), (&*absent, "GRANT")] {
        let to = if settings == "GRANT" { "TO" } else { "FROM" };
        server.ask(&format!("{settings} pg_read_all_settings {to} {role}"));
        for command in ["check", "run"] {
            let said = scene.run(4, &["guard", command, &change]);
            assert!(said.contains(wanted) && said.contains("a managed server does not allow mode offline"), "{said}");
        }
    }
    assert!(scene.run(4, &["guard", "check", &change]).contains("this looks like Amazon RDS"));
    assert!(scene.is_open().await);
}
