//! The command line as scripts and people meet it: exit codes, JSON lines, and no secret in any of its words.

use super::support::{Place, snapshot_role, text};
use crate::server::{TestDatabase, TestServer};

async fn store() -> (TestDatabase, String) {
    let database = TestServer::shared().database(None).await;
    database.execute("CREATE TABLE t (a int, b text); INSERT INTO t VALUES (1, 'SECRET-OF-A-MAIL')").await;
    let role = snapshot_role(&database).await;
    let dsn = database.dsn_as(&role);
    (database, dsn)
}

fn run(place: &Place, store: &str, arguments: &[&str]) -> (i32, String) {
    let output = place.program(store).args(arguments).output().unwrap();
    (output.status.code().unwrap(), text(&output))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_say_what_kind_of_failure_it_was() {
    let (place, (_database, store)) = (Place::new().await, store().await);
    let reader = place.path("reader.key");
    let reader = reader.to_str().unwrap();
    let stranger = place.path("stranger.key");
    let stranger = stranger.to_str().unwrap();
    let expect = |wanted: i32, arguments: &[&str]| {
        let (code, said) = run(&place, &store, arguments);
        assert_eq!(code, wanted, "{arguments:?}: {said}");
        said
    };
    expect(0, &["key", "generate", "-o", stranger]);
    expect(0, &["--help"]);
    expect(0, &["--version"]);
    expect(3, &["verify"]);
    expect(0, &["snapshots"]);
    expect(0, &["snapshot", "-n"]);
    expect(5, &["show"]);
    expect(0, &["snapshot", "--tag", "nightly"]);
    expect(0, &["show", "latest:tag=nightly"]);
    expect(0, &["verify"]);
    expect(0, &["verify", "--data"]);
    expect(0, &["verify", "--data", "-i", reader]);
    // 2: the caller's mistake.
    expect(2, &["snapshot", "--no-such-flag"]);
    expect(2, &["snapshot", "--memory", "lots"]);
    expect(2, &["snapshot", "--memory", "1MiB"]);
    expect(2, &["snapshot", "--jobs", "0"]);
    expect(2, &["snapshot", "--exclude", "a*b"]);
    expect(2, &["snapshot", "-d", "postgres://["]);
    expect(2, &["restore", "latest", "--full"]);
    expect(2, &["restore", "latest", "--full", "--into", "dbname=x"]);
    expect(2, &["dump", "latest", "t"]);
    expect(2, &["-r", "s3://", "snapshots"]);
    expect(2, &["init", "--reader", "age1x"]);
    // 5: not there.
    expect(5, &["show", "0123456789ab"]);
    expect(5, &["show", "latest:tag=weekly"]);
    expect(5, &["dump", "latest", "nope", "-i", reader]);
    expect(5, &["restore", "latest", "--table", "nope", "--into", "dbname=x", "-i", reader]);
    expect(5, &["-r", place.path("nowhere").to_str().unwrap(), "snapshots"]);
    // 6: the wrong key.
    expect(6, &["dump", "latest", "t", "-i", stranger]);
    expect(6, &["snapshots", "--expect-repository", &"0".repeat(64)]);
    expect(6, &["-k", place.path("nowhere").to_str().unwrap(), "snapshot"]);
    // 1: it failed.
    expect(1, &["snapshot", "-d", "host=/nonexistent dbname=x"]);
    // 4: refused.
    let ring = place.objects().into_keys().find(|name| name.starts_with("keys/")).unwrap();
    let strange = place.path("repository").join("keys/1").join("2-".to_owned() + &"0".repeat(64) + ".age");
    std::fs::copy(place.path("repository").join(ring), strange).unwrap();
    expect(4, &["snapshot"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_of_json_output_is_an_object_with_a_type() {
    let (place, (_database, store)) = (Place::new().await, store().await);
    let reader = place.path("reader.key");
    let reader = reader.to_str().unwrap();
    let target = TestServer::shared().database(None).await;
    let into = target.superuser_dsn();
    let other = place.path("other.key");
    let commands: &[(&str, &[&str])] = &[
        ("identity_generated", &["key", "generate", "-o", other.to_str().unwrap()]),
        ("snapshot", &["snapshot"]),
        ("snapshot_listed", &["snapshots"]),
        ("snapshot_shown", &["show"]),
        ("verified", &["verify", "--data"]),
        ("key_ring", &["key", "list"]),
        ("restored_full", &["restore", "latest", "--full", "--into", &into, "-i", reader]),
        ("restored_table", &["restore", "latest", "--table", "t", "--into", &into, "-i", reader]),
        ("error", &["show", "0123456789ab"]),
        ("error", &["-c", "/nonexistent.toml", "snapshots"]),
    ];
    for (kind, arguments) in commands {
        let output = place.program(&store).arg("--json").args(*arguments).output().unwrap();
        let said = String::from_utf8(output.stdout.clone()).unwrap();
        let types: Vec<String> = said
            .lines()
            .map(|line| {
                let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
                value["type"].as_str().unwrap_or_else(|| panic!("{line}")).to_owned()
            })
            .collect();
        assert!(types.iter().any(|found| found == kind), "{arguments:?}: {}", text(&output));
        assert!(output.stderr.is_empty(), "{arguments:?}: {}", text(&output));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_and_no_mail_is_in_any_output_or_log() {
    let (place, (database, _)) = (Place::new().await, store().await);
    let role = snapshot_role(&database).await;
    let store = format!(
        "postgres://{role}:PASSWORD-IN-A-URL@127.0.0.1:{}/{}?application_name=x",
        database.server().port(),
        database.name()
    );
    let reader = place.path("reader.key");
    let reader = reader.to_str().unwrap();
    let target = TestServer::shared().database(None).await;
    let into = format!("{} password=PASSWORD-OF-THE-TARGET", target.superuser_dsn());
    let mut said = String::new();
    let commands: &[&[&str]] = &[
        &["snapshot", "-n"],
        &["snapshot"],
        &["snapshots"],
        &["show"],
        &["key", "list"],
        &["verify", "--data"],
        &["verify", "--data", "-i", reader],
        &["restore", "latest", "--full", "--into", &into, "-i", reader, "-n"],
        &["restore", "latest", "--full", "--into", &into, "-i", reader],
        &["restore", "latest", "--full", "--into", &into, "-i", reader],
        &["restore", "latest", "--table", "t", "--into", &into, "-i", reader],
        &["doctor"],
        &["snapshot", "-d", "postgres://u:PASSWORD-IN-A-URL@127.0.0.1:1/x"],
        &["snapshot", "-d", "postgres://u:PASSWORD-IN-A-URL@[/x"],
        &["snapshot", "--help"],
    ];
    for json in [false, true] {
        for arguments in commands {
            let mut program = place.program(&store);
            if json {
                program.arg("--json");
            }
            said += &text(&program.arg("-vvv").args(*arguments).output().unwrap());
        }
    }
    assert!(said.contains("certified"), "{said}");
    let mut secrets = vec!["PASSWORD-IN-A-URL".to_owned(), "PASSWORD-OF-THE-TARGET".into(), "SECRET-OF-A-MAIL".into()];
    let key = std::fs::read_to_string(place.path("writer.key")).unwrap();
    for line in key.lines().filter(|line| line.contains("_secret") || line.contains("_seed")) {
        secrets.push(line.split('"').nth(1).unwrap().to_owned());
    }
    let identity = std::fs::read_to_string(reader).unwrap();
    secrets.extend(identity.lines().filter(|line| line.starts_with("AGE-SECRET-KEY")).map(str::to_owned));
    assert_eq!(secrets.len(), 3 + 3 + 1);
    for secret in secrets {
        assert!(!said.contains(&secret), "{}… is in the output", &secret[..8]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_never_overwrites_and_never_takes_an_identity_for_a_recipient() {
    let place = Place::new().await;
    let identity = std::fs::read_to_string(place.path("reader.key")).unwrap();
    let secret = identity.lines().find(|line| line.starts_with("AGE-SECRET-KEY")).unwrap();
    let (_, one) = run(&place, "", &["key", "generate", "-o", "one.key"]);
    let (_, two) = run(&place, "", &["key", "generate", "-o", "two.key"]);
    let (one, two) = (one.trim(), two.trim());
    let new = ["-r", "new", "-k", "new.key"];
    let init = |arguments: &[&str]| run(&place, "", &[&new[..], &["init"], arguments].concat());
    let (code, said) = init(&["--reader", secret, "--single-reader"]);
    assert_eq!(code, 2, "{said}");
    assert!(!said.contains(secret), "{said}");
    assert_eq!(init(&["--reader", one]).0, 2);
    assert_eq!(init(&["--reader", one, "--reader", two, "-n"]).0, 0);
    assert!(!place.path("new.key").exists());
    assert_eq!(init(&["--reader", one, "--reader", two]).0, 0);
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(place.path("new.key")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // Neither over a key nor over a repository.
    let key = std::fs::read(place.path("new.key")).unwrap();
    assert_ne!(init(&["--reader", one, "--reader", two]).0, 0);
    let again = run(&place, "", &["-r", "new", "-k", "other.key", "init", "--reader", one, "--single-reader"]);
    assert_ne!(again.0, 0, "{}", again.1);
    assert!(!place.path("other.key").exists());
    assert_eq!(std::fs::read(place.path("new.key")).unwrap(), key);
    // Nor a key over a key.
    assert_ne!(run(&place, "", &["key", "generate", "-o", "one.key"]).0, 0);
}
