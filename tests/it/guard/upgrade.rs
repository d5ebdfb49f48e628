//! A real `pg_upgrade` to PostgreSQL 18 as a change: commands that make another server of the one that there is.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::scene::{Asked, Scene, server};
use super::supervisors::until;
use crate::server::{as_server_user, give_away};
use crate::snapshot::support::text;

/// As `scripts/test` has it.
fn new_binaries() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install-postgres");
    let output = Command::new(script).arg("18").output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap().trim_end().into()
}

struct Upgrade {
    scene: Scene,
    programs: PathBuf,
    data: PathBuf,
}

impl Upgrade {
    /// Makes a new server, upgrades to it, and does what else is asked.
    fn change(&self, id: &str, after: &str) -> String {
        let server = self.scene.database.server();
        let (programs, data) = (self.programs.display(), self.data.display());
        let (port, socket) = (server.port(), server.socket_directory().display());
        let script = format!(
            "set -e\n\
             \"$PGBINNEW/initdb\" --no-sync --no-data-checksums -U postgres -E UTF8 --locale=C -A trust -D \"$PGDATANEW\"\n\
             \"$PGBINNEW/pg_upgrade\" -U postgres --no-sync -s {socket}\n\
             cat >> \"$PGDATANEW/postgresql.conf\" <<END\nport = {port}\nunix_socket_directories = '{socket}'\nlisten_addresses = ''\nfsync = off\nEND\n\
             {after}\n"
        );
        self.scene.write("upgrade.sh", &script);
        let hash = blake3::hash(script.as_bytes()).to_hex();
        let more = format!(
            "hand_over = true\n[[script]]\nfile = \"upgrade.sh\"\nblake3 = \"{hash}\"\n[after]\ndata = \"{data}\"\nprograms = \"{programs}\"\n"
        );
        let commands = "[[\"sh\", \"upgrade.sh\"]]";
        let change = self.scene.change(&Asked { id, mode: "offline", commands, more: &more });
        self.scene.approve(&change, &["ada"]);
        change
    }

    fn pg_ctl(&self, words: &[&str]) -> bool {
        let mut call = as_server_user(Command::new(self.programs.join("pg_ctl")));
        call.arg("-D").arg(&self.data).args(["-l", "/dev/null", "-w", "-m", "fast"]).args(words);
        call.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    }

    fn version(&self) -> u32 {
        self.scene.database.server().version_num() / 10_000
    }

    /// The way back begins with the new server.
    fn remove(&self) {
        self.pg_ctl(&["stop"]);
        std::fs::remove_dir_all(&self.data).unwrap();
    }
}

impl Drop for Upgrade {
    fn drop(&mut self) {
        self.pg_ctl(&["stop"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_upgrade_to_another_major_version_is_compared_with_the_server_of_before() {
    let server = server();
    if server.version_num() >= 180_000 {
        eprintln!("skipped: there is nothing newer to upgrade to");
        return;
    }
    let old = server.version_num() / 10_000;
    let scene = Scene::new(&server).await;
    let data = scene.place.path("new");
    let upgrade = Upgrade { scene, programs: new_binaries(), data };
    let scene = &upgrade.scene;
    give_away(&scene.place.path(""));

    // Somebody else starts the new server before the upgrade is done with it.
    let wait = "sleep 20";
    let change = upgrade.change("STRANGER", &format!("touch made; {wait}"));
    let mut guard = scene.spawn(&["guard", "run", &change, "--jobs", "1"]);
    let within = || {
        let folder = std::fs::read_dir(scene.place.path("writer.key.guard")).unwrap().flatten();
        folder.map(|entry| entry.path().join("scripts/made")).any(|made| made.exists())
    };
    until("the upgrade is done", || within() || guard.try_wait().unwrap().is_some());
    upgrade.pg_ctl(&["start"]);
    let output = guard.wait_with_output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("was started in {}", upgrade.data.display())), "{said}");
    assert!(!upgrade.pg_ctl(&["status"]), "it was stopped");
    let nobody = !scene.pg_ctl(&["-w", "-t", "5", "start"]).status.success() && !upgrade.pg_ctl(&["start"]);
    assert!(nobody && scene.status()["fenced"] == true, "half done: nobody starts either");
    assert!(scene.run(4, &["guard", "release"]).contains("or `--went-back` to the server of before"));
    upgrade.remove();
    let said = scene.run(1, &["guard", "release", "--half-done"]);
    assert!(said.contains("pg_controldata"), "what is not there is not gone on with: {said}");
    scene.run(0, &["guard", "release", "--went-back", "--jobs", "1"]);
    assert!(upgrade.version() == old && scene.is_open().await);

    // An upgrade that loses rows.
    let lossy = format!(
        "\"$PGBINNEW/pg_ctl\" -D \"$PGDATANEW\" -l /dev/null -w start >/dev/null\n\"$PGBINNEW/psql\" -X -h {} -p {} -U postgres -d {} -c 'DELETE FROM messages WHERE id < 4'\n\
         \"$PGBINNEW/pg_ctl\" -D \"$PGDATANEW\" -m fast -w stop",
        server.socket_directory().display(),
        server.port(),
        scene.database.name()
    );
    let change = upgrade.change("LOSSY", &lossy);
    let said = scene.run(3, &["guard", "run", &change, "--jobs", "1"]);
    assert!(said.contains("3 of 600 rows are gone") && said.contains("--table public.messages"), "{said}");
    assert_eq!(upgrade.version(), 18);
    // Nobody starts the old one by mistake; whoever goes back takes the fence away.
    assert!(!scene.pg_ctl(&["-w", "-t", "5", "start"]).status.success());
    upgrade.remove();
    let fence = scene.data().join("postmaster.pid");
    let note = std::fs::read_to_string(fence.join("FENCED")).unwrap();
    std::fs::remove_dir_all(fence).unwrap();
    server.start();
    assert!(!scene.is_open().await);
    for sql in note.lines().filter(|line| line.starts_with("GRANT ") || line.starts_with("REVOKE ")) {
        server.ask(sql);
    }
    assert!(scene.is_open().await);

    let change = upgrade.change("UPGRADE", "");
    let plan = scene.run(0, &["guard", "plan", &change]);
    assert!(plan.contains(&format!("start the one in {}", upgrade.data.display())), "{plan}");
    let said = scene.run(0, &["guard", "run", &change, "--jobs", "1"]);
    assert!(said.contains("no finding"), "{said}");
    assert!(upgrade.version() == 18 && scene.is_open().await);
    // The next change is of the new server.
    let next = scene.sql("NEXT", "online", "SELECT 1", "");
    scene.approve(&next, &["ada"]);
    assert!(scene.run(4, &["guard", "check", &next]).contains("this is another server"));
}
