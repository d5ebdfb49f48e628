//! The guard is killed at every step: the state is told truthfully, `release` ends in a safe state, and no server runs on files that are
//! half changed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use restante::guard::state::Step;

use super::scene::{Asked, Scene, server};
use super::supervisors::{Supervisor, until};
use crate::server::{TestServer, binaries};
use crate::snapshot::support::text;

/// What must hold after a kill, whatever was being done.
async fn look(scene: &Scene, point: &str, is_offline: bool) -> String {
    let status = scene.status();
    assert_ne!(status["id"], serde_json::Value::Null, "{point}: a state is there");
    assert_eq!(status["busy"], false, "{point}: {status}");
    let step = status["step"].as_str().unwrap().to_owned();
    if is_offline {
        assert_eq!(status["server_running"], scene.is_running(), "{point}: {status}");
        let fenced = scene.data().join("postmaster.pid").is_dir();
        // Without its note it is nobody's yet.
        assert!(status["fenced"] == fenced || point == "guard:fence:bare", "{point}: {status}");
        if status["half_done"] == true {
            assert!(fenced && !scene.is_running(), "{point}: half done, so fenced and down: {status}");
            assert!(!scene.pg_ctl(&["-w", "-t", "5", "start"]).status.success(), "{point}: nobody gets it started");
        }
    }
    if !is_offline || scene.is_running() {
        assert!(
            status["closed"] == true || scene.is_open().await,
            "{point}: what is told to be open is open: {status}"
        );
    }
    step
}

/// What starts the server again whenever it is down and nobody paused it: a loop around `pg_ctl start`.
struct Loop<'a> {
    scene: &'a Scene,
    paused: PathBuf,
    running: Option<Supervisor>,
}

impl<'a> Loop<'a> {
    fn new(scene: &'a Scene) -> Self {
        Self { scene, paused: scene.place.path("paused"), running: None }
    }

    fn start(&mut self) {
        let script = r#"while :; do [ -e "$3" ] || "$1" -D "$2" status || "$1" -D "$2" -l /dev/null -w -t 5 start; sleep 0.2; done"#;
        let mut command = Command::new("sh");
        command.args(["-c", script, "loop"]).arg(binaries().join("pg_ctl")).arg(self.scene.data()).arg(&self.paused);
        self.running = Some(Supervisor::start(command));
    }

    fn policy(&self) -> String {
        let call = |words: &[&str]| format!("{:?}", [words, &[self.paused.to_str().unwrap()]].concat());
        let (pause, status, resume) = (call(&["touch"]), call(&["test", "-e"]), call(&["rm", "-f"]));
        format!(
            "must_pause = [\"loop\"]\n[[supervisor]]\nname = \"loop\"\npause = {pause}\nstatus = {status}\nresume = {resume}\n"
        )
    }

    /// As the host does it, but for the kernel's own id of the boot, which nobody can change and the guard does not ask for: the
    /// supervisor and every process of the server die at once, and the supervisor comes up watching.
    fn reboot(&mut self) {
        self.running = None;
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let name = process.file_name().to_string_lossy().into_owned();
            let within = std::fs::read_link(process.path().join("cwd"));
            if name.bytes().all(|byte| byte.is_ascii_digit()) && within.is_ok_and(|within| within == self.scene.data())
            {
                let _ = Command::new("kill").args(["-9", &name]).stderr(Stdio::null()).status();
            }
        }
        let _ = std::fs::remove_file(&self.paused);
        self.start();
        if self.scene.data().join("postmaster.pid").is_dir() {
            // It tries, and gets nowhere.
            std::thread::sleep(Duration::from_millis(500));
            assert!(!self.scene.is_running(), "the fence outlives a reboot");
        } else {
            until("the server is up after a reboot", || self.scene.answers());
        }
    }
}

/// Where the host goes down with the guard: the server up and its supervisor paused, down and not fenced, half done, down with all done, up
/// again.
const REBOOTS: [&str; 5] =
    ["guard:pausing:done", "guard:stopped", "guard:command:done", "guard:unfenced", "guard:comparing"];

/// Every point of a run, each death, and the way out.
async fn every_step(mode: &str, scene: &Scene, mut supervisor: Option<Loop<'_>>) -> BTreeSet<String> {
    let is_offline = mode == "offline";
    // Who signs is tried elsewhere.
    let policy = supervisor.as_ref().map(Loop::policy).unwrap_or_default();
    scene.policy(&format!("break_glass = true\n{policy}")).await;
    let sql = |id: &str| match mode {
        // Two commands, so that there is an in-between.
        "offline" => scene.change(&Asked {
            id,
            mode,
            commands: "[[\"touch\", \"one\"], [\"sh\", \"-c\", \"test -f one && test ! -S \\\"$PGDATA/x\\\"\"]]",
            more: "",
        }),
        _ => scene.sql(
            id,
            mode,
            &format!("CREATE INDEX IF NOT EXISTS \"{id}\" ON messages (at);"),
            "[[table]]\nname = \"public.messages\"\nmay = \"schema\"\n",
        ),
    };
    let run = |change: &str| scene.command(&["guard", "run", change, "--jobs", "1", "--break-glass", "a test"]);
    // Without a death: which points there are.
    let passed = scene.place.path(&format!("passed-{mode}"));
    let output = run(&sql(&format!("{mode}-0"))).env("RESTANTE_FAILPOINTS_PASSED", &passed).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let said = std::fs::read_to_string(&passed).unwrap();
    // What is done for one command or role is done for the next in the same way.
    let mut deaths: Vec<&str> = Vec::new();
    for point in said.lines().filter(|point| point.starts_with("guard:")) {
        if !deaths.contains(&point) {
            deaths.push(point);
        }
    }
    for (number, point) in deaths.iter().enumerate() {
        let change = sql(&format!("{mode}-{}", number + 1));
        let output = run(&change).env("RESTANTE_FAILPOINT", format!("{point}:1")).output().unwrap();
        assert_eq!(output.status.code(), None, "{point}: {}", text(&output));
        if let Some(supervisor) = &mut supervisor {
            let paused = scene.status()["paused"].as_array().is_some_and(|paused| !paused.is_empty());
            assert!(!supervisor.paused.exists() || paused, "{point}: what is paused is told");
            if REBOOTS.contains(point) {
                supervisor.reboot();
            }
        }
        let step = look(scene, point, is_offline).await;
        if number % 5 == 0 {
            assert!(scene.run(4, &["guard", "run", &change]).contains("has not ended"), "{point}");
        }
        if step == "commands" {
            // What its commands started ends by itself here.
            until("its commands end", || scene.status()["commands_running"].as_array().unwrap().is_empty());
            let said = scene.run(4, &["guard", "release", "--jobs", "1"]);
            assert!(said.contains("--half-done") && said.contains("psql -f back.sql"), "{point}: {said}");
            assert!(!is_offline || !scene.is_running());
            scene.run(0, &["guard", "release", "--half-done", "--jobs", "1"]);
        } else {
            // The release is killed too, wherever it can be.
            if number % 3 == 0 {
                let mut command = scene.command(&["guard", "release", "--jobs", "1"]);
                let point = if is_offline { "guard:starting:1" } else { "guard:opening:1" };
                let output = command.env("RESTANTE_FAILPOINT", point).output().unwrap();
                if output.status.code().is_none() {
                    look(scene, point, is_offline).await;
                }
            }
            if scene.status()["id"] != serde_json::Value::Null {
                scene.run(0, &["guard", "release", "--jobs", "1"]);
            }
        }
        assert!(scene.is_open().await, "{point}: applications may come in again");
        assert!(!is_offline || scene.is_running() && scene.data().join("postmaster.pid").is_file(), "{point}");
        assert!(supervisor.as_ref().is_none_or(|one| !one.paused.exists()), "{point}: it watches again");
        assert_eq!(scene.status()["id"], serde_json::Value::Null, "{point}");
    }
    scene.run(5, &["guard", "release"]);
    scene.run(0, &["verify"]);
    deaths.into_iter().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_every_step_of_an_offline_change_leaves_a_safe_state() {
    let server = server();
    let scene = Scene::new(&server).await;
    let mut supervisor = Loop::new(&scene);
    supervisor.start();
    let deaths = every_step("offline", &scene, Some(supervisor)).await;
    for step in Step::ALL {
        assert!(deaths.contains(step.failpoint()), "nobody died at {step:?}: {deaths:?}");
    }
    let rows = scene.database.superuser().await.query_one("SELECT count(*) FROM messages", &[]).await.unwrap();
    assert_eq!(rows.get::<_, i64>(0), 600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_every_step_of_an_exclusive_change_lets_applications_in_again() {
    let server = server();
    let scene = Scene::new(&server).await;
    // As on another host, or on a managed server: nothing is known of files, and nothing need be.
    scene.database.execute(&format!("REVOKE pg_read_all_settings FROM {}", scene.role)).await;
    // Rights that are not everybody's come back as they were.
    let (name, application) = (scene.database.name().to_owned(), scene.application());
    scene.database.execute(&format!("GRANT CONNECT ON DATABASE {name} TO {application} WITH GRANT OPTION")).await;
    let rights = format!(
        "SELECT (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(datacl) a) FROM pg_database WHERE datname = '{name}'"
    );
    let before = server.ask(&rights);
    let deaths = every_step("exclusive", &scene, None).await;
    assert!(deaths.contains("guard:closing") && deaths.contains("guard:commands"), "{deaths:?}");
    assert_eq!(server.ask(&rights), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_ends_the_command_and_leaves_the_server_down_until_somebody_decides() {
    let server = server();
    let mut scene = Scene::new(&server).await;
    let asked =
        Asked { id: "LONG", mode: "offline", commands: "[[\"sh\", \"-c\", \"sleep 321 & sleep 322\"]]", more: "" };
    let change = scene.approved(scene.change(&asked));
    for (signal, id) in [("INT", "LONG"), ("TERM", "LONG-2"), ("HUP", "LONG-3")] {
        let change = if id == "LONG" {
            change.clone()
        } else {
            scene.approved(scene.change(&Asked { id, ..asked_like(&asked) }))
        };
        let guard = scene.spawn(&["guard", "run", &change, "--jobs", "1"]);
        while scene.status()["commands_running"].as_array().is_none_or(|running| running.len() < 2) {
            std::thread::sleep(Duration::from_millis(100));
        }
        let pid = guard.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        let output = guard.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{signal}: {}", text(&output));
        let status = scene.status();
        assert_eq!(
            (&status["half_done"], &status["fenced"], &status["server_running"]),
            (&true.into(), &true.into(), &false.into()),
            "{status}"
        );
        assert_eq!(
            status["commands_running"],
            serde_json::json!([]),
            "what it started was ended, with what that started"
        );
        scene.run(4, &["guard", "release"]);
        scene.run(0, &["guard", "release", "--half-done", "--jobs", "1"]);
        assert!(scene.is_running() && scene.is_open().await);
    }
    // Before the first command everything is put back.
    let change = scene.approved(scene.change(&Asked { id: "EARLY", ..asked_like(&asked) }));
    let mut command = scene.command(&["guard", "run", &change, "--jobs", "1"]);
    let output = Stdio::piped;
    let guard = command.env("RESTANTE_STORAGE_DELAY", "40").stdout(output()).stderr(output()).spawn().unwrap();
    while scene.status()["step"] != "snapshot" {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!scene.is_open().await);
    assert!(Command::new("kill").args(["-s", "INT", &guard.id().to_string()]).status().unwrap().success());
    assert_eq!(guard.wait_with_output().unwrap().status.code(), Some(130));
    assert_eq!(scene.status()["id"], serde_json::Value::Null);
    assert!(scene.is_running() && scene.is_open().await);
    scene.run(0, &["guard", "check", &change]);
    // A guard that is killed leaves its command behind: nothing goes on before that has ended.
    let change = scene.approved(scene.change(&Asked { id: "LONG-4", ..asked_like(&asked) }));
    let mut command = scene.command(&["guard", "run", &change, "--jobs", "1"]);
    let output = command.env("RESTANTE_FAILPOINT", "guard:command:running:1").output().unwrap();
    assert_eq!(output.status.code(), None);
    assert!(scene.run(3, &["guard", "status"]).contains("its command still runs without a guard"));
    assert!(scene.run(4, &["guard", "release", "--half-done"]).contains("still runs"));
    // Nor with another server, whatever answers where it is looked for.
    let other = Scene::empty(&TestServer::shared()).await;
    let store = std::mem::replace(&mut scene.store, other.store.clone());
    let said = scene.run(1, &["guard", "release", "--half-done", "--end-commands", "--jobs", "1"]);
    assert!(said.contains("the server: another one answers"), "{said}");
    scene.store = store;
    scene.run(0, &["guard", "release", "--half-done", "--jobs", "1"]);
    assert!(scene.is_running());
}

fn asked_like<'a>(asked: &Asked<'a>) -> Asked<'a> {
    Asked { id: asked.id, mode: asked.mode, commands: asked.commands, more: asked.more }
}
