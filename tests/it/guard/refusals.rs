//! What is refused, each with its reason; nothing is touched then.

use std::time::{Duration, SystemTime};

use super::scene::{Asked, SIGNERS, Scene, keygen};
use crate::server::{ServerOptions, TestServer};

const NOTHING: &str = "[[\"true\"]]";

fn online(id: &str) -> Asked<'_> {
    Asked { id, mode: "online", commands: NOTHING, more: "" }
}

/// What `guard check` has against a change.
fn refused(scene: &Scene, change: &str, why: &str) {
    let said = scene.run(4, &["guard", "check", change]);
    assert!(said.contains(why), "{change}: {why:?} is not in: {said}");
}

fn age(scene: &Scene, prefix: &str, by: Duration) {
    for name in scene.place.objects().into_keys().filter(|name| name.starts_with(prefix)) {
        let file = std::fs::File::options().write(true).open(scene.place.path("repository").join(name)).unwrap();
        file.set_modified(SystemTime::now() - by).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn approvals_are_over_exactly_this_change() {
    let scene = Scene::new(&TestServer::shared()).await;
    scene.policy("signatures = 2").await;
    scene.run(0, &["snapshot"]);
    let change = scene.sql("CHG-1", "online", "SELECT 1", "");
    refused(&scene, &change, "0 of 2 signatures are there; missing: ada, bob");
    scene.approve(&change, &["ada"]);
    refused(&scene, &change, "missing: bob");
    // A stranger's, one for another purpose, and one over another text.
    scene.run(0, &["guard", "plan", &change, "-o", "plan.txt"]);
    let strange = scene.sign("eve", "plan.txt", "restante");
    assert!(scene.run(4, &["guard", "approve", &change, "-s", &strange]).contains("belongs to nobody who may sign"));
    let other = scene.sign("bob", "plan.txt", "git");
    assert!(scene.run(4, &["guard", "approve", &change, "-s", &other]).contains("made for \"git\""));
    scene.write("other.txt", "something else");
    let other = scene.sign("bob", "other.txt", "restante");
    assert!(scene.run(4, &["guard", "approve", &change, "-s", &other]).contains("over another text"));
    scene.write("no.sig", "no signature");
    scene.run(4, &["guard", "approve", &change, "-s", "no.sig"]);
    let bob = scene.sign("bob", "plan.txt", "restante");
    scene.run(0, &["guard", "approve", &change, "-s", &bob]);
    scene.run(0, &["guard", "check", &change]);
    let checked = scene.json(0, "guard_check", &["guard", "check", &change]);
    assert_eq!((&checked["allowed"], &checked["approved_by"]), (&true.into(), &serde_json::json!(["ada", "bob"])));
    // Another script, told by its hash; with the hash fitted it is another change.
    scene.write("CHG-1.sql", "DROP TABLE messages");
    let said = scene.run(2, &["guard", "check", &change]);
    assert!(said.contains("CHG-1.toml, line") && said.contains("has not the BLAKE3 that is declared"), "{said}");
    scene.sql("CHG-1", "online", "DROP TABLE messages", "");
    refused(&scene, &change, "2 signatures are over another form of CHG-1");
    scene.sql("CHG-1", "online", "SELECT 1", "");
    // Approvals name the time until which they stand, so the file cannot be made the same again; it is approved anew.
    scene.approve(&change, &SIGNERS);
    scene.run(0, &["guard", "check", &change]);
    // Another policy voids them.
    scene.policy("signatures = 2\nlongest_approval = \"20d\"").await;
    refused(&scene, &change, "signatures are over another form of CHG-1");
    scene.approve(&change, &SIGNERS);
    scene.run(0, &["guard", "check", &change]);
    // Once it was run its approvals are used up, and so is its id.
    scene.run(0, &["guard", "run", &change, "--jobs", "1"]);
    refused(&scene, &change, "was run already");
    assert!(scene.run(4, &["guard", "run", &change]).contains("was run already"));
    let change = scene.approved(scene.sql("CHG-1", "online", "SELECT 2", ""));
    refused(&scene, &change, "another change with the id CHG-1 was run");
    // The log says all of it, and a link that is taken out is seen.
    let said = scene.run(0, &["guard", "log"]);
    for words in [
        "approved  CHG-1",
        "by ada",
        "begun",
        "approved by ada, bob",
        "commands",
        "ended",
        "no finding",
        "policy 2 is in force",
    ] {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    // A reader sees the same plan, without the writer's key.
    scene.run(0, &["guard", "plan", &change, "-i", "reader.key"]);
    scene.run(0, &["verify"]);
    let objects = scene.place.objects();
    for kind in ["policies", "approvals", "log"] {
        let of_kind = |name: &&String| name.starts_with(&format!("changes/{kind}/"));
        let (name, bytes) = objects.get_key_value(objects.keys().rfind(of_kind).unwrap()).unwrap();
        let path = scene.place.path("repository").join(name);
        let mut broken = bytes.clone();
        broken[bytes.len() / 2] ^= 4;
        std::fs::write(&path, broken).unwrap();
        let said = scene.run(3, &["verify"]);
        assert!(said.contains(name.as_str()), "{name}: {said}");
        std::fs::write(&path, bytes).unwrap();
    }
    scene.run(0, &["verify"]);
    let names: Vec<String> =
        scene.place.objects().into_keys().filter(|name| name.starts_with("changes/log/")).collect();
    let path = |name: &String| scene.place.path("repository").join(name);
    let last = std::fs::read(path(names.last().unwrap())).unwrap();
    std::fs::remove_file(path(names.last().unwrap())).unwrap();
    assert!(scene.run(3, &["guard", "log"]).contains("behind this writer"), "the writer remembers his last entry");
    scene.run(4, &["guard", "check", &change]);
    std::fs::write(path(names.last().unwrap()), last).unwrap();
    std::fs::remove_file(path(&names[1])).unwrap();
    assert!(scene.run(3, &["guard", "log"]).contains("does not follow the one before it"));
    assert!(scene.run(3, &["verify"]).contains("does not follow the one before it"));
    refused(&scene, &change, "the log is damaged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_approvals_closed_windows_and_other_servers_are_refused() {
    let scene = Scene::new(&TestServer::shared()).await;
    scene.run(0, &["snapshot"]);
    let past = "expires = \"2026-01-01T00:00:00Z\"";
    let change = scene.approved(scene.change(&Asked { more: past, ..online("EXPIRED") }));
    refused(&scene, &change, "the change expired at 2026-01-01");
    let far = "expires = \"2099-01-01T00:00:00Z\"";
    let change = scene.approved(scene.change(&Asked { more: far, ..online("FAR") }));
    refused(&scene, &change, "14 days at most");
    // A wrong target, and tables that are not there.
    let change = scene.change(&online("OTHER"));
    let text = std::fs::read_to_string(scene.place.path(&change)).unwrap();
    scene.write(&change, &text.replace(&scene.system, "7000000000000000001"));
    let change = scene.approved(change);
    refused(&scene, &change, "this is another server");
    refused(
        &scene,
        &change,
        &format!(
            "there is no snapshot of database {} of the server 7000000000000000001; the newest in the repository are of database",
            scene.database.name()
        ),
    );
    // An approval is for one server and one database; it counts for no other.
    let change = scene.approved(scene.change(&online("TARGET")));
    scene.run(0, &["guard", "check", &change]);
    let text = std::fs::read_to_string(scene.place.path(&change)).unwrap();
    for (here, other) in [(&*scene.system, "7000000000000000001"), (scene.database.name(), "other")] {
        scene.write(&change, &text.replace(here, other));
        refused(
            &scene,
            &change,
            "0 of 1 signatures are there; missing: ada, bob; 1 signatures are over another form of TARGET: since then the change, a script, its target or the policy was changed",
        );
        assert!(scene.run(4, &["guard", "run", &change]).contains("over another form"));
    }
    scene.write(&change, &text);
    scene.run(0, &["guard", "check", &change]);
    let tables = "[[table]]\nname = \"public.nope\"\nmay = \"rows\"\n";
    let change = scene.approved(scene.change(&Asked { more: tables, ..online("NOPE") }));
    refused(&scene, &change, "the declared table public.nope does not exist");
    let change = scene.approved(scene.change(&Asked { commands: "[[\"no-such-program\"]]", ..online("PROGRAM") }));
    refused(&scene, &change, "no-such-program is not in PATH");
    // From another host there is nothing to stop or fence; here the server's files are another account's.
    let change = scene.approved(scene.change(&Asked { mode: "offline", ..online("ELSEWHERE") }));
    scene.database.execute(&format!("REVOKE pg_read_all_settings FROM {}", scene.role)).await;
    refused(&scene, &change, "a managed server does not allow mode offline");
    // Windows; the glass is broken only where the policy allows it, and loudly.
    let window = "[[window]]\ndays = [\"mon\"]\nfrom = \"03:00\"\nto = \"03:01\"\nzone = \"UTC\"";
    scene.policy(window).await;
    let change = scene.approved(scene.change(&online("WINDOW")));
    refused(&scene, &change, "no change window of the policy is open");
    let glass = ["guard", "check", &change, "--break-glass", "mail is down"];
    assert!(scene.run(4, &glass).contains("lets nobody break the glass"));
    scene.policy(&format!("break_glass = true\n{window}")).await;
    let change = scene.change(&online("GLASS"));
    let glass = ["guard", "check", &change, "--break-glass", "mail is down"];
    assert!(scene.run(0, &glass).contains("BREAK GLASS"));
    scene.run(0, &["guard", "run", &change, "--break-glass", "mail is down", "--jobs", "1"]);
    let log = scene.run(0, &["guard", "log", "GLASS"]);
    assert!(log.contains("BREAK GLASS: 0 of 1 signatures") && log.contains("waived: mail is down"), "{log}");
    // Never the snapshot.
    let change = scene.change(&online("GLASS-2"));
    age(&scene, "packs/", Duration::from_secs(40 * 86_400));
    let glass = ["guard", "check", &change, "--break-glass", "mail is down"];
    assert!(scene.run(4, &glass).contains("were not hashed within 30 days"));
    scene.run(0, &["guard", "check", &change, "--hash", "--break-glass", "mail is down"]);
    scene.run(0, &["guard", "check", &change, "--break-glass", "mail is down"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_put_in_force_by_those_who_may() {
    let scene = Scene::empty(&TestServer::shared()).await;
    scene.policy("signatures = 2").await;
    scene.write(
        "mine.toml",
        &format!("allowed_signers = [\"eve {}\"]\nsnapshot_age = \"1h\"\nhash_age = \"1d\"\n", scene.public_key("eve")),
    );
    scene.run(0, &["guard", "policy", "mine.toml", "-o", "mine.txt"]);
    let eve = scene.sign("eve", "mine.txt", "restante");
    let said = scene.run(4, &["guard", "policy", "mine.toml", "-s", &eve]);
    assert!(said.contains("belongs to nobody who may sign"), "{said}");
    let ada = scene.sign("ada", "mine.txt", "restante");
    let said = scene.run(4, &["guard", "policy", "mine.toml", "-s", &ada]);
    assert!(said.contains("missing are bob"), "{said}");
    let bob = scene.sign("bob", "mine.txt", "restante");
    scene.run(0, &["guard", "policy", "mine.toml", "-s", &ada, "-s", &bob]);
    // Signed for one place in the history, it counts in no other.
    scene.run(4, &["guard", "policy", "mine.toml", "-s", &eve]);
    assert!(scene.run(0, &["guard", "policy"]).contains("eve ssh-ed25519"));
    for (wrong, why) in [
        (
            "allowed_signers = []\nsnapshot_age = \"1h\"\nhash_age = \"1h\"\n",
            "line 1: allowed_signers: name at least one",
        ),
        ("allowed_signers = [\"x\"]\nsnapshot_age = \"1h\"\nhash_age = \"1h\"\n", "line 1: allowed_signers: \"x\""),
        ("allowed_signers = []\nsnapshot_age = \"soon\"\nhash_age = \"1h\"\n", "line 2: \"soon\" is no duration"),
        ("allowed_signers = []\nfrobnicate = 1\n", "line 2: unknown field `frobnicate`"),
    ] {
        scene.write("wrong.toml", wrong);
        let said = scene.run(2, &["guard", "policy", "wrong.toml"]);
        assert!(said.contains("wrong.toml") && said.contains(why), "{why}: {said}");
    }
    // Keys of other kinds sign too.
    let mut lines = vec![format!("\"eve {}\"", scene.public_key("eve"))];
    for kind in ["ecdsa", "rsa"] {
        let mut call = std::process::Command::new("ssh-keygen");
        call.args(["-q", "-t", kind, "-N", "", "-C", "", "-f"]).arg(scene.place.path(kind));
        assert!(call.status().unwrap().success());
        lines.push(format!("\"{kind} namespaces=\\\"restante\\\" {}\"", scene.public_key(kind)));
    }
    scene.write(
        "kinds.toml",
        &format!("allowed_signers = [{}]\nsnapshot_age = \"1h\"\nhash_age = \"1d\"\n", lines.join(", ")),
    );
    scene.run(0, &["guard", "policy", "kinds.toml", "-o", "kinds.txt"]);
    let eve = scene.sign("eve", "kinds.txt", "restante");
    scene.run(0, &["guard", "policy", "kinds.toml", "-s", &eve]);
    scene.write("mine.toml", &std::fs::read_to_string(scene.place.path("kinds.toml")).unwrap().replace("1d", "2d"));
    scene.run(0, &["guard", "policy", "mine.toml", "-o", "mine.txt"]);
    let signatures: Vec<String> =
        ["eve", "ecdsa", "rsa"].iter().map(|name| scene.sign(name, "mine.txt", "restante")).collect();
    let signatures: Vec<&str> = signatures.iter().flat_map(|file| ["-s", file.as_str()]).collect();
    scene.run(0, &[&["guard", "policy", "mine.toml"], &signatures[..]].concat());
    // A policy that is taken away leaves no older one in force.
    let names: Vec<String> =
        scene.place.objects().into_keys().filter(|name| name.starts_with("changes/policies/")).collect();
    std::fs::remove_file(scene.place.path("repository").join(&names[0])).unwrap();
    assert!(scene.run(1, &["guard", "policy"]).contains("does not follow the policy before it"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_fresh_sound_whole_snapshot_of_this_server_will_do() {
    let scene = Scene::new(&TestServer::shared()).await;
    scene.policy("snapshot_age = \"2s\"").await;
    let change = scene.approved(scene.change(&online("SNAPSHOT")));
    refused(&scene, &change, "there is no snapshot of database");
    scene.run(0, &["snapshot"]);
    scene.run(0, &["guard", "check", &change]);
    // Not certified.
    let objects = scene.place.objects();
    let certificate = objects.keys().find(|name| name.starts_with("certificates/")).unwrap();
    std::fs::remove_file(scene.place.path("repository").join(certificate)).unwrap();
    refused(&scene, &change, "is not certified");
    std::fs::write(scene.place.path("repository").join(certificate), &objects[certificate]).unwrap();
    // Stale: `run` takes a fresh one by itself.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    refused(&scene, &change, "and the policy wants one of the last 2 seconds");
    scene.run(0, &["guard", "run", &change, "--jobs", "1"]);
    // A damaged pack.
    scene.policy("snapshot_age = \"1h\"").await;
    let change = scene.approved(scene.change(&online("DAMAGED")));
    age(&scene, "packs/", Duration::from_secs(40 * 86_400));
    refused(&scene, &change, "were not hashed within 30 days");
    let objects = scene.place.objects();
    let (pack, bytes) =
        objects.iter().filter(|(name, _)| name.starts_with("packs/")).max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let mut broken = bytes.clone();
    broken[bytes.len() / 2] ^= 1;
    std::fs::write(scene.place.path("repository").join(pack), broken).unwrap();
    age(&scene, "packs/", Duration::from_secs(40 * 86_400));
    let said = scene.run(4, &["guard", "check", &change, "--hash"]);
    assert!(said.contains("does not have the hash that it is named by"), "{said}");
    std::fs::write(scene.place.path("repository").join(pack), bytes).unwrap();
    scene.run(0, &["guard", "check", &change, "--hash"]);
    scene.run(0, &["guard", "check", &change]);
    // Incomplete.
    scene.database.execute("SELECT lo_create(0)").await;
    scene.run(3, &["snapshot"]);
    refused(&scene, &change, "is incomplete");
    let said = scene.run(4, &["guard", "run", &change]);
    assert!(said.contains("is incomplete"), "{said}");
    scene.database.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata").await;
    scene.run(0, &["snapshot"]);
    // Suspect: most of a table went.
    scene.database.execute("DELETE FROM messages WHERE id > 100").await;
    scene.run(3, &["snapshot"]);
    refused(&scene, &change, "is suspect");
    assert!(scene.run(4, &["guard", "run", &change]).contains("is suspect"));
    scene.run(0, &["snapshot", "--accept-loss"]);
    scene.run(0, &["guard", "check", &change]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_file_says_what_is_wrong_with_it_and_where() {
    let scene = Scene::empty(&TestServer::shared()).await;
    let good = scene.change(&Asked { more: "[[table]]\nname = \"public.t\"\nmay = \"rows\"\n", ..online("GOOD") });
    let good = std::fs::read_to_string(scene.place.path(&good)).unwrap();
    scene.write("loose.sql", "SELECT 1");
    for (from, to, why) in [
        ("id = \"GOOD\"", "id = \"a b\"", "line 1: id \"a b\""),
        ("title = \"A test\"", "titel = \"A test\"", "line 2: unknown field `titel`"),
        ("mode = \"online\"", "mode = \"offlin\"", "line 3: unknown variant `offlin`"),
        (NOTHING, "[]", "line 5: commands: give at least one"),
        (NOTHING, "[[\"psql\", \"-f\", \"loose.sql\"]]", "is a file beside the change that no [[script]] declares"),
        ("public.t", "t", "name it with its schema, as public.t"),
        ("way_back = \"psql -f back.sql\"", "way_back = \"\"", "way_back: say how to go back"),
        ("A test", "A \u{202e}test", "line 2: it holds control characters"),
        ("duration = \"1m\"", "duration = \"0s\"", "longer than nothing"),
        ("may = \"rows\"", "may = \"schema\"\nmost_removed = 1", "go with may = \"rows\""),
    ] {
        assert!(good.contains(from), "{from} in {good}");
        scene.write("wrong.toml", &good.replace(from, to));
        let said = scene.run(2, &["guard", "plan", "wrong.toml"]);
        assert!(said.contains("wrong.toml, line ") && said.contains(why), "{why}: {said}");
    }
    assert!(scene.run(1, &["guard", "plan", "absent.toml"]).contains("absent.toml"));
    // The plan says what would be done, and the very text to sign.
    scene.write("good.toml", &good);
    let plan = scene.json(0, "guard_plan", &["guard", "plan", "good.toml"]);
    scene.run(0, &["guard", "plan", "good.toml", "-o", "good.txt"]);
    assert_eq!(plan["to_sign"], std::fs::read_to_string(scene.place.path("good.txt")).unwrap());
    keygen(&scene.place.path("unused"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_excluded_or_stopped_is_refused_before_anything_is_touched() {
    let options = ServerOptions { in_memory: true, ..ServerOptions::default() };
    let server = TestServer::dedicated(options.set("max_prepared_transactions", "5"));
    let scene = Scene::new(&server).await;
    scene.run(0, &["snapshot"]);
    let change = scene.approved(scene.sql("CHG-2", "exclusive", "SELECT 1", ""));
    scene.run(0, &["guard", "check", &change]);
    // A session of the guard's own role, and a superuser's.
    let own = scene.database.connect_as(&scene.role).await;
    refused(&scene, &change, "other sessions use the guard's own role");
    drop(own);
    let superuser = scene.database.superuser().await;
    refused(&scene, &change, "a session of the superuser postgres, which only a superuser can end");
    drop(superuser);
    scene.database.execute(&format!("REVOKE pg_signal_backend FROM {}", scene.role)).await;
    refused(&scene, &change, "may not end the sessions of others");
    scene.database.execute(&format!("GRANT pg_signal_backend TO {}", scene.role)).await;
    scene
        .database
        .execute(&format!(
            "ALTER DATABASE {} OWNER TO postgres; GRANT CONNECT ON DATABASE {0} TO {}",
            scene.database.name(),
            scene.role
        ))
        .await;
    refused(&scene, &change, "does not own the database");
    scene.database.execute(&format!("ALTER DATABASE {} OWNER TO {}", scene.database.name(), scene.role)).await;
    // A transaction that waits for its second phase, and a slot that keeps WAL.
    let waiting = "BEGIN; UPDATE messages SET seen = true WHERE id = 1; PREPARE TRANSACTION 'half'";
    scene.database.execute(waiting).await;
    refused(&scene, &change, "the prepared transaction \"half\" of postgres holds its locks");
    scene.database.execute("ROLLBACK PREPARED 'half'").await;
    scene.database.execute("SELECT pg_create_physical_replication_slot('forgotten', true)").await;
    let said = scene.run(0, &["guard", "check", &change]);
    assert!(said.contains("replication slot forgotten is used by nobody"), "{said}");
    // A supervisor that the policy insists on.
    scene.policy("must_pause = [\"monit\"]").await;
    let offline = scene.approved(scene.change(&Asked { mode: "offline", ..online("STOP") }));
    refused(&scene, &offline, "the policy wants monit paused");
    scene.run(0, &["guard", "check", &offline, "--supervisor-paused", "monit"]);
    let change = scene.approved(change);
    assert!(scene.is_open().await, "nothing was touched");
    scene.run(0, &["guard", "check", &change]);
}
