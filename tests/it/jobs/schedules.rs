//! The files in `docs/schedules`, and what a schedule needs of the program: hooks that hear of the outcome, and a lock against itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::retention::commands::Small;
use crate::server::TestServer;
use crate::snapshot::support::{snapshot_role, text};

fn files() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schedules");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// Every command in them is one that the program understands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_schedules_are_ones_that_there_are() {
    let small = Small::new().await;
    let mut commands = 0;
    for (path, text) in files() {
        for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
            let rest = line.split_once("bin/restante ").or_else(|| line.split_once("; restante "));
            let rest = rest.or_else(|| line.split_once("restante  restante ")).map(|(_, rest)| rest.to_owned());
            let of_yaml =
                line.trim().strip_prefix("command: [\"restante\", ").map(|list| list.replace(['"', ',', ']'], ""));
            for command in rest.or(of_yaml).iter().flat_map(|rest| rest.split("&& restante ")) {
                let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
                let said = small.run(0, &arguments);
                assert!(said.contains("Usage: restante "), "{}: {command}: {said}", path.display());
                commands += 1;
            }
        }
    }
    assert!(commands >= 10, "{commands}");
}

/// As systemd reads them, where it is installed; the program itself is somewhere else here.
#[test]
fn systemd_understands_its_units() {
    for (path, _) in files()
        .iter()
        .filter(|(path, _)| path.extension().is_some_and(|ending| ending == "service" || ending == "timer"))
    {
        let Ok(output) = Command::new("systemd-analyze").arg("verify").arg(path).output() else { return };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let ours = |line: &&str| line.contains("restante") && !line.contains("is not executable");
        assert_eq!(said.lines().filter(ours).collect::<Vec<_>>(), Vec::<&str>::new(), "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_hear_how_it_ended() {
    let small = Small::new().await;
    let (heard, config) = (small.place.path("heard"), small.place.path("restante.toml"));
    let hook = |name: &str| {
        let line = format!("{name} $RESTANTE_COMMAND $RESTANTE_OUTCOME $RESTANTE_EXIT_CODE");
        format!("{name} = 'echo {line} >> {}'\n", heard.display())
    };
    let all: String = ["before", "after", "failed", "finally"].map(hook).concat();
    std::fs::write(&config, format!("[hooks]\n{all}")).unwrap();
    let said = || std::mem::take(&mut std::fs::read_to_string(&heard).unwrap_or_default());
    let heard_of = |wanted: i32, arguments: &[&str]| {
        let _ = std::fs::remove_file(&heard);
        small.run(wanted, arguments);
        said()
    };
    assert_eq!(heard_of(0, &["snapshot"]), "before snapshot\nafter snapshot done 0\nfinally snapshot done 0\n");
    assert_eq!(
        heard_of(3, &["verify", "--expect-head", "0123456789ab"]),
        "before verify\nafter verify findings 3\nfinally verify findings 3\n"
    );
    assert_eq!(
        heard_of(5, &["drill", "-i", "reader.key", "0123456789ab"]),
        "before drill\nfailed drill not-found 5\nfinally drill not-found 5\n"
    );
    // Only around jobs, and not in a dry run.
    assert_eq!(heard_of(0, &["snapshots"]) + &heard_of(0, &["snapshot", "-n"]), "");
    // One that fails before it stops it; one that fails after it is a failure.
    std::fs::write(&config, format!("[hooks]\nbefore = 'exit 7'\n{}", hook("failed"))).unwrap();
    assert_eq!(heard_of(1, &["snapshot"]), "failed snapshot failed 1\n");
    assert_eq!(small.listed(&[]).len(), 1);
    std::fs::write(&config, format!("[hooks]\nafter = 'exit 7'\n{}", hook("finally"))).unwrap();
    assert_eq!(heard_of(1, &["snapshot"]), "finally snapshot done 0\n");
    assert_eq!(small.listed(&[]).len(), 2);
    std::fs::write(&config, "[hooks]\nduring = 'true'\n").unwrap();
    small.run(1, &["snapshots"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exclusive_run_refuses_a_second_one() {
    let small = Small::new().await;
    let lock = std::fs::File::create(small.place.path("writer.key.lock")).unwrap();
    lock.try_lock().unwrap();
    let said = small.run(4, &["snapshot", "--exclusive"]);
    assert!(said.contains("is running"), "{said}");
    small.run(0, &["snapshot"]);
    drop(lock);
    small.run(0, &["snapshot", "--exclusive"]);
    small.run(0, &["snapshot", "--exclusive"]);
    small.run(2, &["verify", "--exclusive", "-i", "reader.key", "-k", ""]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_stores_of_one_file_each_have_their_turn() {
    let (small, other) = (Small::new().await, TestServer::shared().database(None).await);
    other.execute("CREATE TABLE u (a int); INSERT INTO u VALUES (1), (2)").await;
    let (role, repository) = (snapshot_role(&other).await, small.place.path("repository"));
    // Neither repository nor store from the environment.
    let run = |config: &str, arguments: &[&str]| {
        std::fs::write(small.place.path("restante.toml"), config).unwrap();
        let mut command = small.place.program("");
        let output = command.env_remove("RESTANTE_STORE").env_remove("RESTANTE_REPO").args(arguments).output().unwrap();
        (output.status.code().unwrap(), text(&output))
    };
    let stores = |second: &str| {
        let repository = repository.display();
        let (one, two) = (small.store(), other.dsn_as(&role));
        format!(
            "repo = '{repository}'\ntags = ['all']\n[stores.one]\nstore = {one:?}\ntags = ['first']\n[stores.two]\nstore = {two:?}\n{second}"
        )
    };
    let sound = stores("");
    for wrong in [
        &["snapshot"][..],
        &["snapshot", "--of", "three"],
        &["restore", "--all"],
        &["snapshot", "--all", "--of", "one"],
    ] {
        let (code, said) = run(&sound, wrong);
        assert_eq!(code, 2, "{wrong:?}: {said}");
    }
    assert_eq!(run("repo = 'x'", &["snapshot", "--all"]).0, 2);
    assert_eq!(run("[stores.a.stores.b]\nrepo = 'x'", &["snapshots"]).0, 1);
    let metrics = small.place.path("restante.prom");
    let (code, said) = run(&sound, &["snapshot", "--all", "--metrics", metrics.to_str().unwrap()]);
    assert!(code == 0 && said.contains("== one") && said.contains("== two"), "{said}");
    for store in ["one", "two"] {
        assert!(small.place.path(&format!("restante-{store}.prom")).exists());
    }
    // The second fails, the first has its snapshot; and the other way round.
    let (code, said) = run(&stores("repo = '/nowhere/at/all'\n"), &["snapshot", "--all"]);
    assert!(code != 0 && code != 3 && said.contains("snapshot "), "{code}: {said}");
    let broken = stores("").replacen(&format!("{:?}", small.store()), "'host=/nowhere dbname=x'", 1);
    let (code, said) = run(&broken, &["snapshot", "--all"]);
    assert!(code != 0 && said.contains("snapshot "), "{code}: {said}");
    // Each has its own latest, and none without saying whose.
    let database = |said: &str| {
        let shown: serde_json::Value = said.lines().find_map(|line| serde_json::from_str(line).ok()).unwrap();
        shown["manifest"]["store"]["database"].as_str().unwrap().to_owned()
    };
    for (name, wanted) in [("one", small.database.name()), ("two", other.name())] {
        let (code, said) = run(&sound, &["--json", "show", "latest", "--of", name]);
        assert_eq!((code, database(&said).as_str()), (0, wanted), "{said}");
    }
    let (code, said) = run(&sound, &["show", "latest"]);
    assert!(code == 2 && said.contains("several stores"), "{said}");
    let (code, said) = run(&sound, &["--json", "snapshots", "--of", "one"]);
    assert_eq!(code, 0);
    let tags: Vec<serde_json::Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let tagged =
        |tag: &str| tags.iter().filter(|one: &&serde_json::Value| one["tags"] == serde_json::json!([tag])).count();
    assert_eq!((tagged("first"), tagged("all")), (2, 2), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_new_makes_no_snapshot_if_it_need_not() {
    let small = Small::with("CREATE SEQUENCE s; GRANT SELECT ON s TO PUBLIC").await;
    let taken = |wanted: bool| {
        let one = small.lines(0, "snapshot", &["snapshot", "--skip-if-unchanged"]).remove(0);
        assert_eq!(one["unchanged"], wanted, "{one}");
        one["snapshot"].as_str().unwrap().to_owned()
    };
    let first = taken(false);
    let objects = small.place.objects();
    // pg_dump's archive says when it was made, to the second.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(taken(true), first);
    assert!(small.place.objects() == objects, "nothing is left behind");
    for change in [
        "UPDATE t SET b = b",
        "SELECT nextval('s')",
        "ALTER TABLE t ADD COLUMN c int",
        "CREATE TABLE more (a int)",
        "COMMENT ON COLUMN t.a IS 'said in the dump alone'",
        "DELETE FROM t",
    ] {
        small.database.execute(change).await;
        taken(false);
        taken(true);
    }
    small.run(2, &["snapshot", "--skip-if-unchanged", "--full"]);
}
