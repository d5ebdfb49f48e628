//! Names, subjects, senders and flags that want to be obeyed: by the terminal, by a browser, by a shell, by SQL. Every command shows
//! them and nothing obeys.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use restante::storage::Storage;
use restante::storage::directory::Directory;
use tokio::process::Command;

use crate::matrix::incident::{Mail, granted, mails, program};
use crate::matrix::sample::Keys;
use crate::restore::store::{Content, Store};
use crate::server::{TestServer, connect};

/// Each is a mailbox, an account, a flag, a subject and a sender. `FORGED` begins what must never begin a line.
fn names() -> Vec<String> {
    let names = [
        "\u{1b}]0;owned\u{7}\u{1b}[2J\u{1b}[31mred",
        "<script>alert(1)</script><img src=x onerror=alert(1)>",
        "\"double\" 'single' `tick` \\back\\",
        "'; DROP TABLE messages; --",
        "two\r\nFORGED nothing is missing\nFORGED",
        "\u{202e}gnp.exe \u{2066}isolated\u{2069} \u{61c}",
        "%s%n%x {} {0} ${HOME}",
        "$(touch owned) `touch owned` ; touch owned & | > owned",
        "\u{9b}31mC1 \u{85}FORGED \u{90}",
        "--yes -rf",
        "line\u{2028}FORGED\u{2029}FORGED\u{b}\u{c}",
        "delete\u{7f}\u{8}\u{8}\u{8}",
        "</title></style><!-- ]]> &lt;b&gt; &#60;",
    ];
    names.iter().map(|name| (*name).to_owned()).chain(["x".repeat(1024), "\u{1b}[1m".repeat(256)]).collect()
}

/// What a terminal obeys, or shows at another place than it stands.
fn obeyed(c: char) -> bool {
    (c.is_control() && c != '\n')
        || ('\u{2028}'..='\u{202e}').contains(&c)
        || ('\u{2066}'..='\u{2069}').contains(&c)
        || c == '\u{61c}'
}

fn is_inert(what: &str, text: &str) {
    let found = text.chars().find(|c| obeyed(*c));
    assert!(found.is_none(), "{what} prints {found:?}: {text:?}");
    assert!(!text.lines().any(|line| line.starts_with("FORGED")), "{what}: a name makes a line of its own:\n{text}");
}

struct Scene {
    folder: tempfile::TempDir,
    keys: Keys,
    dsn: String,
}

impl Scene {
    /// Runs a command; `codes` are the exit codes that it may have. What it says is inert, in the terminal's form and as JSON.
    async fn run<A: AsRef<str>>(&self, codes: &[i32], arguments: &[A]) -> String {
        let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
        let mut command = program(self.folder.path());
        command.args(&arguments);
        self.check(codes, &format!("{arguments:?}"), command).await
    }

    async fn check(&self, codes: &[i32], what: &str, mut command: Command) -> String {
        let output = command.output().await.unwrap();
        let said = String::from_utf8([output.stdout.clone(), output.stderr].concat()).unwrap();
        assert!(codes.contains(&output.status.code().unwrap()), "{what}: {said}");
        is_inert(what, &said);
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same with `--json`: the objects that it prints.
    async fn json<A: AsRef<str>>(&self, codes: &[i32], arguments: &[A]) -> Vec<serde_json::Value> {
        let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).chain(["--json"]).collect();
        let said = self.run(codes, &arguments).await;
        said.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {line}")))
            .collect()
    }
}

async fn content(store: &Store) -> Vec<Mail> {
    let mut found: Vec<Mail> = mails(store).await.into_values().collect();
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_are_inert_in_every_command_and_come_back_exactly() {
    // The database is called something too.
    let server = TestServer::shared();
    let made = server.database(None).await;
    let called = format!("<b>it's \"$(touch owned)\" {}", std::process::id());
    let rename = format!("ALTER DATABASE {} RENAME TO \"{}\"", made.name(), called.replace('"', "\"\""));
    connect(&server.superuser_dsn("postgres")).await.batch_execute(&rename).await.unwrap();
    let store = Store::made(server.called(&called)).await;

    let mut ids = Vec::new();
    for (at, name) in names().iter().enumerate() {
        let account = store.account(&format!("{name}@{at}")).await;
        let mailbox = store.mailbox(account, name, 0).await;
        for number in 0..3 {
            let id = store.deliver(mailbox, Content(at as u32 * 3 + number), i64::from(number), 0).await;
            let head = format!("From: {name}\r\nSubject: {name}\r\n");
            let sql = "UPDATE messages SET body = convert_to($2, 'UTF8') || body, size = size + octet_length($2), message_id = $2 WHERE id = $1";
            store.client.execute(sql, &[&id, &head]).await.unwrap();
            store
                .client
                .execute(
                    "UPDATE message_attachments SET position = position + octet_length($2) WHERE message_id = $1",
                    &[&id, &head],
                )
                .await
                .unwrap();
            store.client.execute("INSERT INTO keywords VALUES ($1, $2)", &[&id, &name]).await.unwrap();
            ids.push(id);
        }
    }
    let role = granted(&store).await;
    store.database.execute(&format!("GRANT CREATE ON DATABASE \"{}\" TO {role}", called.replace('"', "\"\""))).await;
    let truth = content(&store).await;
    assert_eq!(truth.len(), 3 * names().len());

    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("it's \"$(touch owned)\" `x` \\ é");
    let storage: Arc<dyn Storage> = Arc::new(Directory::new(&place).unwrap());
    let keys = Keys::init(&*storage).await;
    let scene = Scene { folder, keys, dsn: store.database.dsn_as(&role) };
    let (key, reader, pg_dump) = (scene.keys.writer(), scene.keys.reader(), scene.keys.pg_dump());
    let [repository, key, reader, pg_dump] =
        [&place, &key, &reader, &pg_dump].map(|path| path.to_str().unwrap().to_owned());
    let tags: Vec<String> = names().iter().take(5).map(|name| format!("--tag={name}")).collect();
    let mut take = vec!["snapshot", "-k", &key, "-r", &repository, "-d", &scene.dsn, "--pg-dump", &pg_dump];
    take.extend(tags.iter().map(String::as_str));
    scene.json(&[0], &take).await;
    scene.run(&[0], &[&take[..], &["--dry-run"]].concat()).await;

    // Two of each three are lost, some accounts and mailboxes with all of theirs.
    let lost: Vec<i64> = ids.iter().copied().filter(|id| id % 3 != 0).collect();
    store.lose(&lost, &[], true).await;
    let damaged = content(&store).await;

    let places = ["-r", &repository, "-i", &reader, "-d", &scene.dsn].map(str::to_owned);
    let look = |arguments: &[&'static str]| -> Vec<String> {
        arguments.iter().map(|one| (*one).to_owned()).chain(places.clone()).collect()
    };
    for (codes, arguments) in [
        (&[0][..], &["snapshots"][..]),
        (&[0], &["show"]),
        (&[0], &["verify", "--data"]),
        (&[3], &["gap"]),
        (&[3], &["gap", "-vvv"]),
        (&[0, 3], &["restore", "-n"]),
        (&[0, 3], &["restore", "-n", "--per-account"]),
        (&[2], &["restore"]),
        (&[0], &["replays"]),
        (&[0, 1, 3], &["doctor", "--for", "restore"]),
        (&[0], &["grants", "--for", "restore", "--role", "somebody"]),
        (&[5], &["undo", "\u{1b}[31m\nFORGED", "--yes"]),
        (&[5], &["gap", "\u{1b}[31m\nFORGED"]),
        (&[1], &["gap", "--profile", "\u{1b}[31m\nFORGED"]),
        (&[5], &["dump", "latest", "\u{1b}[31m\nFORGED"]),
    ] {
        let arguments = look(arguments);
        scene.run(codes, &arguments).await;
        scene.json(codes, &arguments).await;
    }
    let gap = look(&["gap"]);
    let told = scene.json(&[3], &gap).await;
    let gaps = told.iter().find(|one| one["type"] == "gap").unwrap()["mailboxes"].as_array().unwrap();
    let exact: BTreeSet<String> = gaps.iter().map(|one| one["mailbox"].as_str().unwrap().to_owned()).collect();
    assert_eq!(exact, names().into_iter().collect(), "JSON gives the exact names back");

    // What a page shows.
    let page = scene.folder.path().join("report.html");
    let mut arguments = look(&["restore", "--yes"]);
    arguments.extend([format!("--mailbox={}", names()[1]), format!("--html={}", page.display())]);
    arguments.push("--per-account".to_owned());
    let said = scene.json(&[3], &arguments).await;
    let account = said.iter().find(|one| one["type"] == "account" && one["messages"] != 0).unwrap();
    assert!(account["account"].as_str().unwrap().starts_with(&names()[1]) && account["folders"][&names()[1]].is_u64());
    let replay = said.iter().find(|one| one["type"] == "replayed").unwrap()["replay"].as_str().unwrap().to_owned();
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(!html.chars().any(obeyed), "the page holds what would be obeyed");
    let shown = html.split_once("<h2>By mailbox</h2>").unwrap().1;
    let tags: BTreeSet<&str> = shown.split('<').skip(1).map(|rest| rest.split(['>', ' ']).next().unwrap()).collect();
    let ours = ["table", "/table", "tr", "/tr", "td", "/td", "th", "/th", "h2", "/h2", "/body", "/html"];
    assert!(tags.iter().all(|tag| ours.contains(tag)), "a name made a tag: {tags:?}");
    assert!(shown.contains("&lt;script&gt;") && shown.contains(&"x".repeat(1024)));
    let mut undo = look(&["undo", "--yes"]);
    undo.push(replay);
    scene.json(&[0], &undo).await;
    assert_eq!(content(&store).await, damaged);

    // What the store's own triggers say is no better.
    let raise = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           RAISE EXCEPTION E'no\\nFORGED \\x1b[31m' USING DETAIL = 'a subject', HINT = E'ask\\nFORGED'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION refuse()";
    store.client.batch_execute(raise).await.unwrap();
    let refused = scene.json(&[1], &look(&["restore", "--yes"])).await;
    let message = refused.last().unwrap()["message"].as_str().unwrap();
    assert!(
        message.contains("no FORGED") && message.contains("ask FORGED") && !message.contains("a subject"),
        "{message}"
    );
    scene.run(&[1], &look(&["restore", "--yes"])).await;
    store.client.batch_execute("DROP FUNCTION refuse CASCADE").await.unwrap();

    // The command that `gap` prints, in a shell, from a folder in which the program lies.
    symlink(env!("CARGO_BIN_EXE_restante"), scene.folder.path().join("restante")).unwrap();
    let shell = |line: String| {
        let mut command = Command::new("sh");
        let path = format!("{}:/usr/bin:/bin", scene.folder.path().display());
        command.args(["-c", &line]).env_clear().env("PATH", path).current_dir(scene.folder.path());
        command
    };
    let printed = |said: &str, before: &str| {
        let line = said.lines().find(|line| line.contains(before)).unwrap_or_else(|| panic!("no command in {said}"));
        line[line.find(before).unwrap()..].to_owned()
    };
    let said = scene.run(&[3], &gap).await;
    let line = printed(&said, "restante restore ");
    let said = scene.check(&[0], &line, shell(format!("{line} --yes"))).await;
    let restored = content(&store).await;
    assert_eq!(restored, truth);
    store.check_counters().await;
    let line = printed(&said, "restante undo ");
    scene.check(&[0], &line, shell(format!("{line} --yes"))).await;
    assert_eq!(content(&store).await, damaged);
    assert!(!scene.folder.path().join("owned").exists(), "a shell obeyed a name");
    scene.run(&[0], &look(&["replays"])).await;
    scene.run(&[0], &look(&["verify", "--data"])).await;

    // Bytes for COPY are the rows as they are; a terminal is refused them.
    let dump = look(&["dump", "latest", "public.mailboxes"]);
    let dumped = program(scene.folder.path()).args(&dump).output().await.unwrap().stdout;
    assert!(names().iter().all(|name| dumped.windows(name.len()).any(|window| window == name.as_bytes())));
    let line = shlex::try_join(["restante"].into_iter().chain(dump.iter().map(String::as_str))).unwrap();
    let line = shlex::try_join(["script", "-qec", &line, "/dev/null"]).unwrap();
    let refused = shell(line).output().await.unwrap();
    assert!(String::from_utf8_lossy(&refused.stdout).contains("do not belong on a terminal"), "{refused:?}");
}
