//! Real supervisors against a server that its operator stopped: monit, supervisord, runit, `pg_ctl` in a loop, Debian's `pg_ctlcluster`. First
//! what happens without the guard, as it once happened; then with it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::scene::{Asked, Scene, server};
use crate::server::{as_server_user, binaries, connect, free_port, give_away};
use crate::snapshot::support::text;

/// What `scripts/install-test-tools` unpacked, where the server's account may run it.
fn tools() -> &'static Path {
    static TOOLS: OnceLock<PathBuf> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
        let tools = target.join("tools/supervisors");
        assert!(tools.join("installed").is_file(), "monit and others are missing: scripts/install-test-tools");
        let runs = as_server_user(Command::new(tools.join("usr/bin/monit"))).arg("-V").stdout(Stdio::null()).status();
        if runs.is_ok_and(|status| status.success()) {
            return tools;
        }
        let copy = super::scene::for_everybody(&tools);
        let installed = |folder: &Path| std::fs::read_to_string(folder.join("installed")).ok();
        if installed(&copy) != installed(&tools) {
            let _ = std::fs::remove_dir_all(&copy);
            assert!(Command::new("cp").arg("-a").arg(tools).arg(&copy).status().unwrap().success());
        }
        copy
    })
}

/// A supervisor; it ends with the test, even when that is killed.
pub(super) struct Supervisor(Child);

impl Supervisor {
    pub(super) fn start(mut command: Command) -> Self {
        let (program, arguments) =
            (command.get_program().to_owned(), command.get_args().map(ToOwned::to_owned).collect::<Vec<_>>());
        let script = r#""$@" </dev/null & pid=$!; read -r _; kill $pid; wait $pid"#;
        let mut shell = as_server_user(Command::new("sh"));
        for (name, value) in command.get_envs() {
            value.map(|value| shell.env(name, value));
        }
        command.arg("");
        shell.args(["-c", script, "sh"]).arg(program).args(arguments);
        Self(shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

pub(super) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// monit with a cycle of a second, watching the scene's server.
fn monit(scene: &Scene) -> (Supervisor, PathBuf) {
    let folder = scene.place.path("");
    let (control, data, bin) = (folder.join("monitrc"), scene.data(), binaries());
    let (folder, data, bin) = (folder.display(), data.display(), bin.display());
    scene.write(
        "monitrc",
        &format!(
            "set daemon 1\nset log {folder}/monit.log\nset pidfile {folder}/monit.pid\nset idfile {folder}/monit.id\nset statefile {folder}/monit.state\n\
             set httpd unixsocket {folder}/monit.sock\n  allow localhost\n\
             check process mail-store with pidfile {data}/postmaster.pid\n\
             \x20 start program = \"{bin}/pg_ctl -D {data} -l {folder}/pg.log -w -t 4 start\" with timeout 4 seconds\n\
             \x20 stop program = \"{bin}/pg_ctl -D {data} -m fast -w -t 30 stop\" with timeout 40 seconds\n"
        ),
    );
    std::fs::set_permissions(&control, PermissionsExt::from_mode(0o600)).unwrap();
    let mut command = Command::new(tools().join("usr/bin/monit"));
    command.args(["-I", "-c"]).arg(&control);
    (Supervisor::start(command), control)
}

fn ask_monit(control: &Path, words: &[&str]) -> String {
    let mut command = as_server_user(Command::new(tools().join("usr/bin/monit")));
    text(&command.arg("-c").arg(control).args(words).output().unwrap())
}

/// What the operator does to the files: a better copy of the table's file takes the place of the old one. It takes as long as `go` is away.
const OPTIMISE: &str = "set -e\ncp \"$1\" \"$1.new\"\ni=0\nwhile [ ! -e \"$2\" ] && [ $i -lt 1200 ]; do sleep 0.05; i=$((i+1)); done\nmv \"$1.new\" \"$1\"\n";

async fn heap(scene: &Scene) -> PathBuf {
    let client = scene.database.superuser().await;
    let path: String = client.query_one("SELECT pg_relation_filepath('messages')", &[]).await.unwrap().get(0);
    scene.data().join(path)
}

async fn rows(scene: &Scene) -> i64 {
    scene.database.superuser().await.query_one("SELECT count(*) FROM messages", &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_incident_happens_without_the_guard_and_not_with_it() {
    let server = server();
    let scene = Scene::new(&server).await;
    let heap = heap(&scene).await;
    // The server belongs to monit from here on.
    server.stop();
    let (_monit, control) = monit(&scene);
    let is_well = || ask_monit(&control, &["-B", "status", "mail-store"]).contains("OK");
    until("monit starts the server", is_well);
    let dsn = scene.store.clone();

    // Without the guard: the operator stops the server and works on its files; monit starts it again, and mail comes.
    assert!(scene.pg_ctl(&["-m", "fast", "-w", "stop"]).status.success());
    scene.write("optimise.sh", OPTIMISE);
    let go = scene.place.path("go");
    let mut operator = as_server_user(Command::new("sh"));
    operator.current_dir(scene.place.path("")).args(["optimise.sh"]).args([&heap, &go]);
    let mut operator = operator.spawn().unwrap();
    until("monit starts the server behind his back", || scene.answers());
    let deliver =
        "INSERT INTO messages SELECT i, 1, now(), false, repeat('new', 300) FROM generate_series(1001, 1500) i";
    connect(&dsn).await.batch_execute(deliver).await.unwrap();
    assert_eq!(rows(&scene).await, 1100);
    std::fs::write(&go, "").unwrap();
    assert!(operator.wait().unwrap().success());
    ask_monit(&control, &["restart", "mail-store"]);
    let lost = Instant::now() + Duration::from_secs(20);
    loop {
        let now = tokio_postgres::connect(&scene.database.superuser_dsn(), tokio_postgres::NoTls).await;
        if let Ok((client, connection)) = now {
            tokio::spawn(connection);
            let count = client.query_one("SELECT count(*) FROM messages", &[]).await.map(|row| row.get::<_, i64>(0));
            // A server that is just being stopped says nothing of the table.
            let is_damaged = |e: tokio_postgres::Error| e.code().is_some_and(|code| !code.code().starts_with("57"));
            if count.map_or_else(is_damaged, |count| count < 1100) {
                break;
            }
        }
        assert!(Instant::now() < lost, "the table was not damaged");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    until("monit is at rest", || is_well() && scene.answers());

    // The damage is cleared away, and the same change goes through the guard.
    std::fs::remove_file(&go).unwrap();
    let client = scene.database.connect_as(&scene.role).await;
    client.batch_execute("DROP TABLE messages, parts, notes").await.unwrap();
    client.batch_execute(super::scene::TABLES).await.unwrap();
    client.batch_execute(deliver).await.unwrap();
    drop(client);
    let path: String = scene
        .database
        .superuser()
        .await
        .query_one("SELECT pg_relation_filepath('messages')", &[])
        .await
        .unwrap()
        .get(0);
    let hash = blake3::hash(OPTIMISE.as_bytes()).to_hex();
    let (heap, go) = (scene.data().join(path), go.display());
    let commands = format!("[[\"sh\", \"optimise.sh\", \"{}\", \"{go}\"]]", heap.display());
    let more = format!("[[script]]\nfile = \"optimise.sh\"\nblake3 = \"{hash}\"\n");
    let change = scene.change(&Asked { id: "OPTIMISE", mode: "offline", commands: &commands, more: &more });
    let change = scene.approved(change);
    scene.run(0, &["snapshot"]);
    let checked = scene.run(0, &["guard", "check", &change]);
    assert!(
        checked.contains("monit, process")
            || checked.contains("mail-store will be paused")
            || checked.contains("monit will be paused"),
        "{checked}"
    );
    let guard = scene.spawn(&["guard", "run", &change, "--jobs", "1"]);
    until("the change is under way", || {
        scene.status()["commands_running"].as_array().is_some_and(|running| !running.is_empty())
    });
    assert!(ask_monit(&control, &["-B", "status", "mail-store"]).contains("Not monitored"));
    // Somebody tells monit to watch it all the same, and others try what they know.
    ask_monit(&control, &["monitor", "mail-store"]);
    let lock = scene.data().join("postmaster.pid");
    let tried = || {
        let log = std::fs::read_to_string(scene.place.path("monit.log")).unwrap();
        log.rsplit("monitor on user request").next().unwrap().contains("failed to start")
    };
    let end = Instant::now() + Duration::from_secs(30);
    while !tried() {
        assert!(Instant::now() < end, "monit did not try");
        assert!(!scene.pg_ctl(&["-w", "-t", "3", "start"]).status.success());
        assert!(!scene.pg_ctl(&["-w", "-t", "3", "-m", "fast", "restart"]).status.success());
        assert!(
            !as_server_user(Command::new("rm")).arg("-f").arg(&lock).stderr(Stdio::null()).status().unwrap().success()
        );
        let mut alone = as_server_user(Command::new(binaries().join("postgres")));
        assert!(!alone.arg("-D").arg(scene.data()).stderr(Stdio::null()).status().unwrap().success());
        if let Some(said) = ctlcluster(&scene) {
            assert!(!said.0, "pg_ctlcluster started it: {}", said.1);
        }
        assert!(!scene.is_running());
    }
    assert_eq!(scene.status()["server_running"], false);
    std::fs::write(scene.place.path("go"), "").unwrap();
    let output = guard.wait_with_output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("no finding"), "{said}");
    assert_eq!(rows(&scene).await, 1100);
    assert!(scene.is_open().await);
    until("monit watches again", is_well);
    stop_does_not_last(&scene);
}

/// Debian's way, where it is installed: did it start, and what did it say?
fn ctlcluster(scene: &Scene) -> Option<(bool, String)> {
    let program = Path::new("/usr/bin/pg_ctlcluster");
    let version = binaries().parent()?.file_name()?.to_str()?.to_owned();
    if !program.is_file() || version.parse::<u32>().is_err() {
        return None;
    }
    let root = scene.place.path("clusters");
    let folder = root.join(&version).join("main");
    if !folder.is_dir() {
        std::fs::create_dir_all(&folder).unwrap();
        let settings = format!("data_directory = '{}'\n", scene.data().display());
        std::fs::write(folder.join("postgresql.conf"), settings).unwrap();
        super::scene::give_all_away(&root);
    }
    let mut call = as_server_user(Command::new(program));
    let output = call
        .env("PG_CLUSTER_CONF_ROOT", &root)
        .args([version.as_str(), "main", "start"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Some((output.status.success(), text(&output)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_rm_rf_takes_the_fence_away_and_the_watcher_sees_it() {
    let server = server();
    let scene = Scene::new(&server).await;
    let lock = scene.data().join("postmaster.pid");
    for (id, and_start) in [("BREACH-1", false), ("BREACH-2", true)] {
        let change =
            scene.approved(scene.change(&Asked { id, mode: "offline", commands: "[[\"sleep\", \"20\"]]", more: "" }));
        let guard = scene.spawn(&["guard", "run", &change, "--jobs", "1"]);
        until("the change is under way", || {
            scene.status()["commands_running"].as_array().is_some_and(|running| !running.is_empty())
        });
        assert!(std::fs::read_to_string(lock.join("FENCED")).unwrap().contains(id));
        std::fs::remove_dir_all(&lock).unwrap();
        if and_start {
            // It may or may not get as far as to answer.
            scene.pg_ctl(&["-w", "-t", "3", "start"]);
        }
        let output = guard.wait_with_output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("was taken away") || said.contains("was started in"), "{said}");
        let status = scene.status();
        assert_eq!((&status["server_running"], &status["half_done"]), (&false.into(), &true.into()), "{status}");
        assert_eq!(
            (&status["fenced"], &status["commands_running"]),
            (&true.into(), &serde_json::json!([])),
            "{status}"
        );
        assert!(scene.run(3, &["guard", "status"]).contains("data may be in between"));
        scene.run(4, &["guard", "release"]);
        scene.run(0, &["guard", "release", "--half-done", "--jobs", "1"]);
        assert!(scene.is_running());
    }
}

/// The server is stopped and comes again as another process. `pg_ctl -w` would wait for the new one's lock file to go.
fn stop_does_not_last(scene: &Scene) {
    let postmaster = || {
        let lock = std::fs::read_to_string(scene.data().join("postmaster.pid")).unwrap_or_default();
        lock.lines().next().and_then(|line| line.parse::<i32>().ok())
    };
    let before = postmaster();
    scene.pg_ctl(&["-m", "fast", "-W", "stop"]);
    until("it is up again", || postmaster().is_some_and(|now| Some(now) != before) && scene.answers());
}

/// The policy with a supervisor's commands.
fn commands(name: &str, call: &[&str], [pause, resume]: [&str; 2], status: &[&str], says: &str) -> String {
    let list = |more: &[&str]| serde_json::to_string(&[call, more].concat()).unwrap();
    format!(
        "[[supervisor]]\nname = \"{name}\"\npause = {}\nresume = {}\nstatus = {}\nstatus_says = \"{says}\"\nstarts_server = true\n",
        list(&[pause, "pg"]),
        list(&[resume, "pg"]),
        list(status),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn supervisord_is_found_and_refused_until_the_policy_says_how_to_pause_it() {
    let server = server();
    let scene = Scene::new(&server).await;
    server.stop();
    let folder = scene.place.path("");
    let (conf, data, bin) = (folder.join("supervisord.conf"), scene.data(), binaries());
    let (folder, data, bin) = (folder.display(), data.display(), bin.display());
    scene.write(
        "supervisord.conf",
        &format!(
            "[supervisord]\nnodaemon = true\nlogfile = {folder}/supervisord.log\npidfile = {folder}/supervisord.pid\n\
             [unix_http_server]\nfile = {folder}/supervisor.sock\n[supervisorctl]\nserverurl = unix://{folder}/supervisor.sock\n\
             [rpcinterface:supervisor]\nsupervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n\
             [program:pg]\ncommand = {bin}/postgres -D {data}\nautorestart = true\nstopsignal = INT\nstartsecs = 1\n"
        ),
    );
    let python = tools().join("python");
    let mut command = Command::new("python3");
    command.arg(python.join("bin/supervisord")).arg("-c").arg(&conf).env("PYTHONPATH", &python);
    let _supervisord = Supervisor::start(command);
    until("supervisord starts the server", || scene.is_running());
    until("it answers", || scene.answers());
    // An operator's stop does not last.
    stop_does_not_last(&scene);

    let change =
        scene.approved(scene.change(&Asked { id: "S-1", mode: "offline", commands: "[[\"true\"]]", more: "" }));
    let said = scene.run(4, &["guard", "run", &change, "--jobs", "1"]);
    assert!(
        said.contains("supervisord would start the server again") && said.contains("--supervisor-paused supervisord"),
        "{said}"
    );
    assert!(scene.is_running() && scene.is_open().await, "nothing was touched");
    let (path, ctl, conf) =
        (format!("PYTHONPATH={}", python.display()), python.join("bin/supervisorctl"), conf.display().to_string());
    let call = ["env", &path, "python3", ctl.to_str().unwrap(), "-c", &conf];
    scene.policy(&commands("supervisord", &call, ["stop", "start"], &["status", "pg"], "STOPPED")).await;
    let change = scene.approved(scene.change(&Asked {
        id: "S-2",
        mode: "offline",
        commands: "[[\"sh\", \"-c\", \"sleep 1.5; test -d \\\"$PGDATA/postmaster.pid\\\"\"]]",
        more: "",
    }));
    scene.run(0, &["guard", "run", &change, "--jobs", "1"]);
    assert!(scene.is_running() && scene.is_open().await);
    stop_does_not_last(&scene);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runit_is_found_and_refused_until_somebody_paused_it() {
    let server = server();
    let scene = Scene::new(&server).await;
    server.stop();
    let service = scene.place.path("pg");
    std::fs::create_dir_all(service.join("control")).unwrap();
    let (data, bin) = (scene.data(), binaries());
    let script = |name: &str, text: &str| {
        let path = service.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    };
    script("run", &format!("exec {}/postgres -D {} 2>/dev/null", bin.display(), data.display()));
    // A fast shutdown instead of a patient one.
    script("control/t", "kill -INT $(cat supervise/pid)");
    super::scene::give_all_away(&service);
    give_away(&scene.place.path(""));
    let mut command = Command::new(tools().join("usr/bin/runsv"));
    command.arg(&service);
    let _runsv = Supervisor::start(command);
    until("runsv starts the server", || scene.is_running());
    until("it answers", || scene.answers());
    let change =
        scene.approved(scene.change(&Asked { id: "R-1", mode: "offline", commands: "[[\"true\"]]", more: "" }));
    let said = scene.run(4, &["guard", "check", &change]);
    assert!(said.contains("runit would start the server again (its parent is runsv)"), "{said}");
    let sv = tools().join("usr/bin/sv");
    let service = service.to_str().unwrap();
    let policy = commands("runit", &[sv.to_str().unwrap(), "-w", "30"], ["down", "up"], &["status", "pg"], "down:");
    scene.policy(&policy.replace("\"pg\"", &format!("\"{service}\""))).await;
    let change = scene.approved(scene.change(&Asked {
        id: "R-2",
        mode: "offline",
        commands: "[[\"sh\", \"-c\", \"sleep 1; test -d \\\"$PGDATA/postmaster.pid\\\"\"]]",
        more: "",
    }));
    scene.run(0, &["guard", "run", &change, "--jobs", "1"]);
    assert!(scene.is_running() && scene.is_open().await);
    // Somebody paused it himself.
    scene.policy("").await;
    let change =
        scene.approved(scene.change(&Asked { id: "R-3", mode: "offline", commands: "[[\"true\"]]", more: "" }));
    scene.run(4, &["guard", "check", &change]);
    let mut once = as_server_user(Command::new(&sv));
    assert!(once.args(["once", service]).stdout(Stdio::null()).status().unwrap().success());
    scene.run(0, &["guard", "run", &change, "--jobs", "1", "--supervisor-paused", "runit"]);
    assert!(scene.run(0, &["guard", "log", "R-3"]).contains("runit is said to be paused by hand"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patroni_is_found_by_what_it_leaves_and_paused_with_the_commands_of_the_policy() {
    let server = server();
    let scene = Scene::new(&server).await;
    server.stop();
    let folder = scene.place.path("");
    let (port, api, raft, bin) = (server.port(), free_port(), free_port(), binaries());
    let (data, sockets) = (scene.data(), server.socket_directory());
    let (folder, data, sockets, bin) = (folder.display(), data.display(), sockets.display(), bin.display());
    scene.write(
        "patroni.yml",
        &format!(
            "scope: pg\nname: one\nlog: {{dir: '{folder}'}}\nrestapi: {{listen: '127.0.0.1:{api}', connect_address: '127.0.0.1:{api}'}}\n\
             raft: {{data_dir: '{folder}/raft', self_addr: '127.0.0.1:{raft}'}}\n\
             bootstrap: {{dcs: {{ttl: 20, loop_wait: 1, retry_timeout: 3}}}}\n\
             postgresql:\n  listen: '127.0.0.1:{port}'\n  connect_address: '127.0.0.1:{port}'\n  data_dir: '{data}'\n  bin_dir: '{bin}'\n\
             \x20 use_unix_socket: true\n  parameters: {{unix_socket_directories: '{sockets}'}}\n\
             \x20 authentication: {{superuser: {{username: postgres}}, replication: {{username: postgres}}, rewind: {{username: postgres}}}}\n"
        ),
    );
    let python = tools().join("python");
    let mut command = Command::new("python3");
    command.arg(python.join("bin/patroni")).arg(scene.place.path("patroni.yml")).env("PYTHONPATH", &python);
    command.env("HOME", scene.place.path(""));
    let _patroni = Supervisor::start(command);
    let leads = || scene.answers() && server.ask("SELECT pg_is_in_recovery()") == "f";
    until("Patroni starts the server", leads);
    stop_does_not_last(&scene);
    until("Patroni leads again", leads);

    let change =
        scene.approved(scene.change(&Asked { id: "P-1", mode: "offline", commands: "[[\"true\"]]", more: "" }));
    let said = scene.run(4, &["guard", "check", &change]);
    assert!(said.contains("patroni would start the server again (patroni.dynamic.json lies in the data"), "{said}");
    let ctl = python.join("bin/patronictl").display().to_string();
    let call = |words: &[&str]| {
        let path = format!("PYTHONPATH={}", python.display());
        let conf = format!("{folder}/patroni.yml");
        serde_json::to_string(&[&["env", &path, "python3", &ctl, "-c", &conf], words].concat()).unwrap()
    };
    let policy = format!(
        "[[supervisor]]\nname = \"patroni\"\npause = {}\nstatus = {}\nstatus_says = \"Maintenance mode: on\"\nresume = {}\n",
        call(&["pause", "--wait", "pg"]),
        call(&["list", "pg"]),
        call(&["resume", "--wait", "pg"])
    );
    scene.policy(&policy).await;
    let change = scene.approved(scene.change(&Asked {
        id: "P-2",
        mode: "offline",
        commands: "[[\"sh\", \"-c\", \"sleep 2.5; test -d \\\"$PGDATA/postmaster.pid\\\"\"]]",
        more: "",
    }));
    scene.run(0, &["guard", "run", &change, "--jobs", "1"]);
    // That it watches again its status said; what it does then was seen above.
    assert!(scene.is_running() && scene.is_open().await);
}
