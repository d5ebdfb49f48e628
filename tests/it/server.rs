//! Real PostgreSQL servers for the tests.
//!
//! [`TestServer::shared`] is one server per test process, started by the first test that asks; each test takes a fresh
//! database of it. [`TestServer::dedicated`] is a server of one's own, for tests that stop, kill or configure it.
//! A server lives in a temporary directory and listens on a unix socket there and on a loopback port. It dies with the
//! test process, even when that is killed: a small `sh` holds the reading end of a pipe of ours and cleans up at its end.
//!
//! `scripts/postgres-binaries` says where the programs are; `RESTANTE_PG_BIN` chooses others.
#![allow(dead_code)] // Every test file uses another part of it.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

/// How clients of a [`TestServer`] prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    Trust,
    /// SCRAM-SHA-256 on TCP and on the socket alike; every role's password is [`PASSWORD`].
    Scram,
}

/// The password of every role that the tests make.
pub const PASSWORD: &str = "pass:w\\ord 'x'";

#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Does the server flush to disk? Only tests of crashes need it.
    pub fsync: bool,
    pub auth: Auth,
    /// `(name, value)` for `postgresql.conf`, after ours, so that they win.
    pub settings: Vec<(String, String)>,
    /// Lines for the head of `pg_hba.conf`.
    pub hba: Vec<String>,
    /// In `/dev/shm`, where there is room: making and emptying tables is five times as fast. For small stores alone.
    pub in_memory: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { fsync: false, auth: Auth::Trust, settings: Vec::new(), hba: Vec::new(), in_memory: false }
    }
}

impl ServerOptions {
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }
}

pub struct TestServer {
    directory: PathBuf,
    port: u16,
    auth: Auth,
    postmaster: Mutex<Option<Child>>,
    /// When this closes, the watching `sh` stops the server and removes the directory.
    lifeline: Mutex<Option<ChildStdin>>,
    watcher: Mutex<Option<Child>>,
}

impl TestServer {
    /// The server of this test process.
    pub fn shared() -> Arc<TestServer> {
        static SHARED: OnceLock<Arc<TestServer>> = OnceLock::new();
        // `get_or_init` makes the other tests wait, which is wanted.
        SHARED.get_or_init(|| TestServer::dedicated(ServerOptions::default().set("max_connections", "200"))).clone()
    }

    /// A server of one's own; gone when the last handle is dropped.
    pub fn dedicated(options: ServerOptions) -> Arc<TestServer> {
        let server = Self::prepare(options.auth, options.in_memory);
        let password_file = server.directory.join("password");
        fs::write(&password_file, format!("{PASSWORD}\n")).unwrap();
        give_away(&password_file);
        let auth = if options.auth == Auth::Trust { "trust" } else { "scram-sha-256" };
        run(server
            .command("initdb")
            .args(["--no-sync", "--username=postgres", "--encoding=UTF8", "--locale=C"])
            .arg(format!("--auth={auth}"))
            .arg(format!("--pwfile={}", password_file.display()))
            .arg("-D")
            .arg(server.data_directory()));
        let mut settings = server.base_settings();
        let fsync = if options.fsync { "on" } else { "off" };
        settings += &format!("fsync = {fsync}\nfull_page_writes = {fsync}\n");
        for (name, value) in &options.settings {
            settings += &format!("{name} = '{value}'\n");
        }
        server.append("postgresql.conf", &settings);
        let hba = server.data_directory().join("pg_hba.conf");
        let rest = fs::read_to_string(&hba).unwrap();
        fs::write(&hba, format!("{}\n{rest}", options.hba.join("\n"))).unwrap();
        server.start();
        Arc::new(server)
    }

    /// A streaming standby of this server, ready to answer.
    pub fn standby(&self, options: ServerOptions) -> Arc<TestServer> {
        let standby = Self::prepare(self.auth, options.in_memory);
        run(standby
            .command("pg_basebackup")
            .args(["--no-sync", "--checkpoint=fast", "--write-recovery-conf", "--username=postgres"])
            .arg(format!("--host={}", self.socket_directory().display()))
            .arg(format!("--port={}", self.port))
            .arg("-D")
            .arg(standby.data_directory()));
        let mut settings = standby.base_settings();
        for (name, value) in &options.settings {
            settings += &format!("{name} = '{value}'\n");
        }
        standby.append("postgresql.conf", &settings);
        standby.start();
        // It answers before it follows, and one that never follows would be waited for without end by any test that
        // lets something happen on the primary.
        let until = Instant::now() + Duration::from_secs(60);
        while self.ask("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "0" {
            assert!(Instant::now() < until, "the standby does not follow: {}", standby.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Arc::new(standby)
    }

    /// As `server_version_num`: 150018.
    pub fn version_num(&self) -> u32 {
        self.ask("SHOW server_version_num").parse().unwrap()
    }

    /// The one value that a statement gives to the superuser.
    pub fn ask(&self, sql: &str) -> String {
        let output = self.command("psql").args(["-XAtc", sql, "-d", &self.superuser_dsn("postgres")]).output().unwrap();
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    fn prepare(auth: Auth, in_memory: bool) -> TestServer {
        let parent = if in_memory && roomy(MEMORY) { MEMORY.into() } else { std::env::temp_dir() };
        let directory = tempfile::Builder::new().prefix("restante-pg-").tempdir_in(parent).unwrap().keep();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        give_away(&directory);
        let mut server = TestServer {
            directory,
            port: free_port(),
            auth,
            postmaster: Mutex::new(None),
            lifeline: Mutex::new(None),
            watcher: Mutex::new(None),
        };
        // `read` ends with the last writing end of the pipe. Its own process group keeps Ctrl-C away from it.
        let script = r#"read -r _; "$1"/pg_ctl -D "$2/data" -m immediate -w stop; rm -rf "$2""#;
        let mut watcher = as_server_user(Command::new("sh"))
            .args(["-c", script, "sh"])
            .arg(binaries())
            .arg(&server.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        *server.lifeline.get_mut().unwrap() = watcher.stdin.take();
        *server.watcher.get_mut().unwrap() = Some(watcher);
        server
    }

    fn base_settings(&self) -> String {
        format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nshared_buffers = '32MB'\njit = off\n\
             max_wal_size = '512MB'\nwal_level = replica\nautovacuum_naptime = '1h'\nlog_statement = none\n",
            self.port,
            self.directory.display()
        )
    }

    pub fn append(&self, file: &str, text: &str) {
        use std::io::Write;
        let path = self.data_directory().join(file);
        fs::OpenOptions::new().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn command(&self, program: &str) -> Command {
        as_server_user(Command::new(binaries().join(program)))
    }

    pub fn start(&self) {
        let log_path = self.directory.join("log");
        let log = fs::OpenOptions::new().create(true).append(true).open(&log_path).unwrap();
        let mut postmaster = self
            .command("postgres")
            .arg("-D")
            .arg(self.data_directory())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = self
                .command("pg_isready")
                .arg("-q")
                .arg("-h")
                .arg(self.socket_directory())
                .arg("-p")
                .arg(self.port.to_string())
                .status();
            if answer.unwrap().success() {
                break;
            }
            let gone = postmaster.try_wait().unwrap();
            assert!(
                gone.is_none() && Instant::now() < until,
                "the test server did not start: {}",
                fs::read_to_string(&log_path).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        *self.postmaster.lock().unwrap() = Some(postmaster);
    }

    /// Stops the server as an administrator would.
    pub fn stop(&self) {
        run(self.command("pg_ctl").args(["-m", "fast", "-w", "stop", "-D"]).arg(self.data_directory()));
        if let Some(mut postmaster) = self.postmaster.lock().unwrap().take() {
            postmaster.wait().unwrap();
        }
    }

    /// Lets the server crash: every process ends at once, nothing is flushed.
    pub fn crash(&self) {
        let _ =
            self.command("pg_ctl").args(["-m", "immediate", "-w", "stop", "-D"]).arg(self.data_directory()).output();
        if let Some(mut postmaster) = self.postmaster.lock().unwrap().take() {
            postmaster.wait().unwrap();
        }
    }

    pub fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }

    pub fn socket_directory(&self) -> &Path {
        &self.directory
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// A connection string for the superuser over the unix socket.
    pub fn superuser_dsn(&self, database: &str) -> String {
        self.dsn("postgres", database)
    }

    pub fn dsn(&self, role: &str, database: &str) -> String {
        let password = match self.auth {
            Auth::Trust => String::new(),
            Auth::Scram => format!(" password={}", quoted_value(PASSWORD)),
        };
        format!(
            "host={} port={} user={role} dbname={}{password}",
            self.directory.display(),
            self.port,
            quoted_value(database)
        )
    }

    /// A fresh database, from `template` (another [`TestDatabase`]'s name) or empty. Nobody but the superuser may even connect.
    pub async fn database(self: &Arc<Self>, template: Option<&str>) -> TestDatabase {
        self.database_with(&format!("TEMPLATE {}", template.unwrap_or("template0"))).await
    }

    /// A database that is there.
    pub fn called(self: &Arc<Self>, name: &str) -> TestDatabase {
        TestDatabase { server: self.clone(), name: name.to_owned() }
    }

    /// A fresh database with other options of CREATE DATABASE.
    pub async fn database_with(self: &Arc<Self>, options: &str) -> TestDatabase {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name = format!("t{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let admin = connect(&self.superuser_dsn("postgres")).await;
        admin
            .batch_execute(&format!("CREATE DATABASE {name} {options}"))
            .await
            .unwrap_or_else(|error| panic!("cannot create a test database: {error:?}"));
        admin.batch_execute(&format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC")).await.unwrap();
        TestDatabase { server: self.clone(), name }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        drop(self.lifeline.get_mut().unwrap().take());
        if let Some(mut watcher) = self.watcher.get_mut().unwrap().take() {
            let _ = watcher.wait();
        }
        if let Some(mut postmaster) = self.postmaster.get_mut().unwrap().take() {
            let _ = postmaster.wait();
        }
    }
}

/// A database of a test. It is not dropped: the server goes as a whole.
pub struct TestDatabase {
    server: Arc<TestServer>,
    name: String,
}

impl TestDatabase {
    pub fn server(&self) -> &Arc<TestServer> {
        &self.server
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn superuser_dsn(&self) -> String {
        self.server.superuser_dsn(&self.name)
    }

    pub fn dsn_as(&self, role: &str) -> String {
        self.server.dsn(role, &self.name)
    }

    /// A superuser's connection.
    pub async fn superuser(&self) -> Client {
        connect(&self.superuser_dsn()).await
    }

    pub async fn connect_as(&self, role: &str) -> Client {
        connect(&self.dsn_as(role)).await
    }

    /// Runs SQL as the superuser: to lay out a schema, or to apply exactly what `grants` printed. The session ends with it,
    /// because one that falls idle keeps for itself how many rows it deleted: ten seconds since 15, before without end.
    pub async fn execute(&self, sql: &str) {
        let (client, connection) = tokio_postgres::connect(&self.superuser_dsn(), NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        if let Err(error) = client.batch_execute(sql).await {
            panic!("{error:?}\nin: {sql}");
        }
        drop(client);
        connection.await.unwrap().unwrap();
    }

    /// For tests that make hundreds.
    pub async fn drop(self) {
        let admin = connect(&self.server.superuser_dsn("postgres")).await;
        admin.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).await.unwrap();
    }

    /// An ordinary role that owns the database, for what is restored into it.
    pub async fn owning_role(&self) -> String {
        let role = self.ordinary_role().await;
        // The owner of the database owns `public` through a role that it is a member of.
        self.execute(&format!("ALTER ROLE {role} INHERIT; ALTER DATABASE {} OWNER TO {role}", self.name())).await;
        role
    }

    /// A new role that may log in and nothing else: no superuser, owns nothing, cannot even connect to this database.
    pub async fn ordinary_role(&self) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let role = format!("r{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        self.execute(&format!("CREATE ROLE {role} LOGIN NOSUPERUSER NOINHERIT PASSWORD {}", quoted_literal(PASSWORD)))
            .await;
        role
    }
}

/// The server has seen that nobody is there any more.
pub async fn sessions_end(client: &Client) {
    let ours =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'restante'";
    while client.query_one(ours, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Connects without TLS and lets the connection run.
pub async fn connect(dsn: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.unwrap_or_else(|error| panic!("{error:?}"));
    tokio::spawn(connection);
    client
}

/// Where the server's programs are, `psql` and `pg_dump` included.
pub fn binaries() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/postgres-binaries");
            let output = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
            assert!(output.status.success(), "there is no PostgreSQL to test with");
            String::from_utf8(output.stdout).unwrap().trim_end().into()
        })
        .clone()
}

/// PostgreSQL refuses to run as root: then the server is `postgres`, else `nobody`.
pub fn server_user() -> Option<(u32, u32)> {
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *USER.get_or_init(|| {
        use std::os::unix::fs::MetadataExt;
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            return None;
        }
        let accounts = fs::read_to_string("/etc/passwd").unwrap();
        let find = |name: &str| {
            accounts.lines().find_map(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                (fields.first() == Some(&name)).then(|| (fields[2].parse().unwrap(), fields[3].parse().unwrap()))
            })
        };
        Some(find("postgres").or_else(|| find("nobody")).expect("no account to run PostgreSQL as"))
    })
}

/// Lets a program run as the server's user, without `PG*` variables.
pub fn as_server_user(mut command: Command) -> Command {
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group);
    }
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.env("LC_ALL", "C").env("PGPASSWORD", PASSWORD).current_dir("/");
    command
}

/// A port that is free, below those that the kernel gives to connections and to whoever binds to port 0: one of these may be taken before the server has it.
pub fn free_port() -> u16 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut tries = (0..10_000).map(|_| {
        let number = u64::from(std::process::id()) * 131 + NEXT.fetch_add(1, Ordering::Relaxed);
        15_000 + (number % 15_000) as u16
    });
    tries.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a port is free")
}

const MEMORY: &str = "/dev/shm";

/// Are there 2 GB in a file system? Containers often have 64 MB of shared memory.
fn roomy(directory: &str) -> bool {
    let output = Command::new("df").args(["-B1", "--output=avail", directory]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().last().and_then(|line| line.trim().parse::<u64>().ok()).is_some_and(|free| free > 2 << 30)
}

/// Makes a file the server's own, when we are root.
pub fn give_away(path: &Path) {
    if let Some((user, group)) = server_user() {
        chown(path, Some(user), Some(group)).unwrap();
    }
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn quoted_value(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn quoted_literal(value: &str) -> String {
    // A backslash is an ordinary character with standard_conforming_strings.
    format!("'{}'", value.replace('\'', "''"))
}

#[tokio::test]
async fn databases_of_one_server_are_empty_and_apart() {
    let server = TestServer::shared();
    let one = server.database(None).await;
    one.execute("CREATE TABLE t (a int)").await;
    let copy = server.database(Some(one.name())).await;
    let other = server.database(None).await;
    let count = "SELECT count(*) FROM pg_class WHERE relname = 't'";
    assert_eq!(copy.superuser().await.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 1);
    assert_eq!(other.superuser().await.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test]
async fn a_server_of_ones_own_survives_a_crash_and_leaves_nothing_behind() {
    let server = TestServer::dedicated(ServerOptions { fsync: true, auth: Auth::Scram, ..Default::default() });
    let directory = server.socket_directory().to_owned();
    let database = server.database(None).await;
    database.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await;
    server.crash();
    server.start();
    let row = database.superuser().await.query_one("SELECT a FROM t", &[]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 1);
    drop(database);
    drop(server);
    assert!(!directory.exists());
}
