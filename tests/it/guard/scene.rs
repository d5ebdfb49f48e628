//! A store, a repository, approvers with SSH keys, and the guard as the account that the server runs as: ordinary, not root.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use crate::server::{ServerOptions, TestDatabase, TestServer, as_server_user, binaries, give_away};
use crate::snapshot::support::{Place, text};

/// The program where the server's account may run it.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let built = PathBuf::from(env!("CARGO_BIN_EXE_restante"));
        let may =
            as_server_user(Command::new(&built)).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if may.is_ok_and(|status| status.success()) {
            return built;
        }
        let copy = for_everybody(&built);
        let age = |path: &Path| std::fs::metadata(path).and_then(|found| found.modified()).ok();
        if age(&copy) < age(&built) {
            // Another test process may run the one that is there.
            let new = tempfile::NamedTempFile::new_in(copy.parent().unwrap()).unwrap();
            std::fs::copy(&built, new.path()).unwrap();
            std::fs::set_permissions(new.path(), PermissionsExt::from_mode(0o755)).unwrap();
            new.persist(&copy).unwrap();
        }
        copy
    })
}

/// Where a copy of something lies that the server's account cannot reach, as below `/root`.
pub fn for_everybody(path: &Path) -> PathBuf {
    let folder = Path::new("/var/tmp/restante-tests");
    std::fs::create_dir_all(folder).unwrap();
    let _ = std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755));
    let (name, place) =
        (path.file_name().unwrap().to_string_lossy(), blake3::hash(path.as_os_str().as_encoded_bytes()));
    folder.join(format!("{name}-{}", &place.to_hex()[..12]))
}

pub const TABLES: &str = "
    CREATE TABLE messages (id int PRIMARY KEY, mailbox int NOT NULL, at timestamptz NOT NULL, seen bool NOT NULL DEFAULT false, body text NOT NULL);
    CREATE TABLE parts (message int NOT NULL, part int NOT NULL, content text NOT NULL, PRIMARY KEY (message, part));
    CREATE TABLE notes (a text, b text);
    INSERT INTO messages SELECT i, i % 5, timestamptz '2026-11-01 00:00:00Z' + i * interval '10 minutes', i % 3 = 0, repeat('mail ' || i, 1 + i % 120) FROM generate_series(1, 600) i;
    INSERT INTO parts SELECT i, 0, repeat('part ' || i, 1 + i % 150) FROM generate_series(1, 600, 2) i;
    INSERT INTO notes SELECT 'a' || i, 'b' || i FROM generate_series(1, 50) i";

pub struct Scene {
    pub place: Place,
    pub database: TestDatabase,
    /// The guard's: owns the database and may end sessions.
    pub role: String,
    pub store: String,
    pub system: String,
    /// On which host the program runs, if not on the server's.
    pub host: Option<Host>,
}

/// Makes a command one of another host.
pub type Host = Box<dyn Fn(&Command) -> Command + Send + Sync>;

/// What a change file says besides what all have.
pub struct Asked<'a> {
    pub id: &'a str,
    pub mode: &'a str,
    /// TOML.
    pub commands: &'a str,
    pub more: &'a str,
}

pub const SIGNERS: [&str; 2] = ["ada", "bob"];

/// A server of one's own, for changes that stop it.
pub fn server() -> Arc<TestServer> {
    TestServer::dedicated(ServerOptions { in_memory: true, ..ServerOptions::default() })
}

impl Scene {
    pub async fn new(server: &Arc<TestServer>) -> Self {
        let scene = Self::empty(server).await;
        let client = scene.database.connect_as(&scene.role).await;
        client.batch_execute(TABLES).await.unwrap();
        scene
    }

    pub async fn empty(server: &Arc<TestServer>) -> Self {
        Self::over(server.database(None).await).await
    }

    pub async fn over(database: TestDatabase) -> Self {
        let role = database.owning_role().await;
        let name = database.name();
        // Applications come as everybody may.
        database
            .execute(&format!(
                "GRANT pg_signal_backend, pg_read_all_settings TO {role}; GRANT CONNECT, TEMPORARY ON DATABASE {name} TO PUBLIC"
            ))
            .await;
        let place = Place::in_memory().await;
        let folder = place.path("");
        for signer in SIGNERS.iter().chain(&["eve"]) {
            keygen(&place.path(signer));
        }
        give_all_away(&folder);
        let store = database.dsn_as(&role);
        let system = database.server().ask("SELECT system_identifier FROM pg_control_system()");
        let scene = Self { place, database, role, store, system, host: None };
        scene.policy("").await;
        scene
    }

    pub fn public_key(&self, name: &str) -> String {
        let key = std::fs::read_to_string(self.place.path(&format!("{name}.pub"))).unwrap();
        key.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    pub fn policy_text(&self, more: &str) -> String {
        let lines: Vec<String> = SIGNERS.iter().map(|name| format!("\"{name} {}\"", self.public_key(name))).collect();
        let age = if more.contains("snapshot_age") { "" } else { "snapshot_age = \"1h\"\n" };
        let one = if more.contains("signatures") { "" } else { "signatures = 1\n" };
        format!("allowed_signers = [{}]\n{one}{age}hash_age = \"30d\"\n{more}\n", lines.join(", "))
    }

    /// Puts a policy in force, signed by both; one of them is enough for a change if it does not say otherwise.
    pub async fn policy(&self, more: &str) {
        self.write("policy.toml", &self.policy_text(more));
        self.run(0, &["guard", "policy", "policy.toml", "-o", "policy.txt"]);
        let signatures: Vec<String> = SIGNERS.iter().map(|name| self.sign(name, "policy.txt", "restante")).collect();
        let signatures: Vec<&str> = signatures.iter().flat_map(|file| ["-s", file.as_str()]).collect();
        self.run(0, &[&["guard", "policy", "policy.toml"], &signatures[..]].concat());
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.place.path(name), text).unwrap();
        give_away(&self.place.path(name));
    }

    /// Signs a file; the name of the signature.
    pub fn sign(&self, name: &str, file: &str, namespace: &str) -> String {
        let signature = self.place.path(&format!("{file}.sig"));
        let _ = std::fs::remove_file(&signature);
        let mut call = Command::new("ssh-keygen");
        call.args(["-q", "-Y", "sign", "-n", namespace, "-f"]).arg(self.place.path(name)).arg(self.place.path(file));
        assert!(call.stdin(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
        let kept = format!("{file}.{name}.sig");
        std::fs::rename(signature, self.place.path(&kept)).unwrap();
        give_away(&self.place.path(&kept));
        kept
    }

    /// Writes a change file.
    pub fn change(&self, asked: &Asked<'_>) -> String {
        let Asked { id, mode, commands, more } = asked;
        let file = format!("{id}.toml");
        let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(5);
        let expires = if more.contains("expires =") { String::new() } else { format!("expires = \"{expires}\"\n") };
        // Keys of the document come before its tables.
        let (keys, tables) =
            more.split_once("[[").map_or((*more, String::new()), |(keys, rest)| (keys, format!("[[{rest}")));
        let (database, system) = (self.database.name(), &self.system);
        self.write(
            &file,
            &format!(
                "id = \"{id}\"\ntitle = \"A test\"\nmode = \"{mode}\"\n{expires}commands = {commands}\nduration = \"1m\"\nway_back = \"psql -f back.sql\"\n{keys}\n\
                 [target]\nsystem_identifier = \"{system}\"\ndatabase = \"{database}\"\n{tables}"
            ),
        );
        file
    }

    /// A change that runs SQL.
    pub fn sql(&self, id: &str, mode: &str, sql: &str, tables: &str) -> String {
        let script = format!("{id}.sql");
        self.write(&script, sql);
        let hash = blake3::hash(sql.as_bytes()).to_hex();
        let more = format!("[[script]]\nfile = \"{script}\"\nblake3 = \"{hash}\"\n{tables}");
        let commands = format!("[[\"psql\", \"-X\", \"-q\", \"-v\", \"ON_ERROR_STOP=1\", \"-f\", \"{script}\"]]");
        self.change(&Asked { id, mode, commands: &commands, more: &more })
    }

    pub fn approve(&self, change: &str, who: &[&str]) {
        for name in who {
            self.run(0, &["-y", "guard", "approve", change, "--ssh-key", name]);
        }
    }

    pub fn approved(&self, change: String) -> String {
        self.approve(&change, &["ada"]);
        change
    }

    /// The program as the server's account, in the scene's folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut plain = self.place.program(&self.store);
        let mut command = Command::new(program());
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        plain.arg("");
        let mut command = as_server_user(command);
        command.current_dir(self.place.path("")).args(arguments).stdin(Stdio::null());
        self.host.as_ref().map(|host| host(&command)).unwrap_or(command)
    }

    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs the program; what it said.
    pub fn run(&self, wanted: i32, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(wanted), "{arguments:?}: {said}");
        said
    }

    pub fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The first JSON line of a type.
    pub fn json(&self, wanted: i32, kind: &str, arguments: &[&str]) -> Value {
        let said = self.run(wanted, &[&["--json"], arguments].concat());
        let mut lines = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| line["type"] == kind).unwrap_or_else(|| panic!("no {kind} in {said}"))
    }

    pub fn status(&self) -> Value {
        let said = text(&self.output(&["--json", "guard", "status"]));
        said.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["type"] == "guard_status")
            .unwrap()
    }

    /// The state file, changed by hand: as time would.
    pub fn data(&self) -> PathBuf {
        self.database.server().data_directory()
    }

    /// May an application connect?
    pub async fn is_open(&self) -> bool {
        let application = self.application();
        tokio_postgres::connect(&self.database.dsn_as(&application), tokio_postgres::NoTls).await.is_ok()
    }

    /// A role that owns nothing and comes as everybody may.
    pub fn application(&self) -> String {
        let server = self.database.server();
        if server.ask("SELECT count(*) FROM pg_roles WHERE rolname = 'application'") == "0" {
            server.ask(&format!(
                "CREATE ROLE application LOGIN PASSWORD '{}'",
                crate::server::PASSWORD.replace('\'', "''")
            ));
        }
        "application".into()
    }

    pub fn is_running(&self) -> bool {
        self.pg_ctl(&["status"]).status.success()
    }

    pub fn answers(&self) -> bool {
        let mut call = as_server_user(Command::new(binaries().join("pg_isready")));
        let server = self.database.server();
        call.arg("-q").arg("-h").arg(server.socket_directory()).args(["-p", &server.port().to_string()]);
        call.status().unwrap().success()
    }

    pub fn pg_ctl(&self, arguments: &[&str]) -> Output {
        let mut call = as_server_user(Command::new(binaries().join("pg_ctl")));
        call.arg("-D").arg(self.data()).args(["-l", "/dev/null"]).args(arguments).stdin(Stdio::null());
        // What a server inherits it keeps, and `output` would wait for it.
        let log = tempfile::NamedTempFile::new().unwrap();
        call.stdout(log.reopen().unwrap()).stderr(log.reopen().unwrap());
        let status = call.status().unwrap();
        Output { status, stdout: std::fs::read(log.path()).unwrap(), stderr: Vec::new() }
    }
}

pub fn keygen(path: &Path) {
    let mut call = Command::new("ssh-keygen");
    call.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(path).stdin(Stdio::null());
    assert!(call.status().unwrap().success());
}

/// A folder with all that is in it.
pub fn give_all_away(folder: &Path) {
    give_away(folder);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { give_all_away(&path) } else { give_away(&path) }
    }
}
