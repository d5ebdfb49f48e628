//! One connection to a server, with Restante's settings forced, a way to cancel what runs on it, and what the server is.
//!
//! The socket is read through a buffer of 256 KiB: the server sends 8 KiB at a time and the client library reads no more
//! at once, which costs a system call for each.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_postgres::config::{ChannelBinding as LibraryBinding, SslMode as LibrarySslMode};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{CancelToken, Client, Config, NoTls, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;

use super::dsn::{Address, ChannelBinding, Dsn, Endpoint, SslMode, TargetSession};
use super::error::{PostgresError, explained};
use super::tls;

mod facts;
pub use facts::ServerFacts;

const READ_BUFFER_BYTES: usize = 256 << 10;

/// What a session is for.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Shown in `pg_stat_activity` unless the connection string names another.
    pub application_name: String,
    /// How long a statement waits for a lock; zero waits without end.
    pub lock_timeout: Duration,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { application_name: "restante".to_owned(), lock_timeout: Duration::ZERO }
    }
}

/// One connection. Dropping it ends it, and its transaction with it.
pub struct Session {
    client: Client,
    canceller: Canceller,
    task: JoinHandle<()>,
    encrypted: bool,
    backend: i32,
    version: u32,
    /// Of rows, if not UTF-8.
    encoding: Mutex<Option<String>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session(process {} at {})", self.backend, self.canceller.endpoint)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Otherwise the task would read a running COPY to its end before it closes.
        self.task.abort();
    }
}

impl Session {
    /// Connects to the first server of the connection string that will do, checks its version and forces the settings.
    pub async fn connect(dsn: &Dsn, options: SessionOptions) -> Result<Self, PostgresError> {
        // On unix sockets `sslmode` means nothing, so a missing root certificate must not matter.
        let network = dsn.endpoints.iter().any(|endpoint| matches!(endpoint.address, Address::Tcp { .. }));
        let tls = if network { tls::connector(&dsn.ssl)? } else { None };
        let mut last = None;
        let passes: &[TargetSession] = match dsn.target {
            TargetSession::PreferStandby => &[TargetSession::Standby, TargetSession::Any],
            ref target => std::slice::from_ref(target),
        };
        for target in passes {
            for endpoint in &dsn.endpoints {
                match Self::open(dsn, endpoint, tls.as_ref(), &options).await {
                    Ok(mut session) => {
                        session.prepare(&options).await?;
                        if session.suits(*target).await? {
                            return Ok(session);
                        }
                    }
                    // As libpq: a server that answers and refuses ends the search, unless it is starting or stopping.
                    Err(error @ PostgresError::Refused { .. }) if !starting(&error) => return Err(error),
                    Err(error) => last = Some(error),
                }
            }
        }
        Err(last.unwrap_or_else(|| PostgresError::NoSuchServer {
            tried: dsn.endpoints.iter().map(Endpoint::to_string).collect::<Vec<_>>().join(", "),
            wanted: match dsn.target {
                TargetSession::ReadWrite => "open for writing",
                TargetSession::ReadOnly => "read-only",
                TargetSession::Primary => "a primary",
                TargetSession::Standby => "a standby",
                TargetSession::Any | TargetSession::PreferStandby => "to be had",
            },
        }))
    }

    /// The client library's connection, for plain statements.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Cancels whatever runs on this connection, from anywhere.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }

    /// The server's process for this connection.
    pub fn backend(&self) -> i32 {
        self.backend
    }

    /// As `server_version_num`: 150018.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Does TLS protect the connection?
    pub fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// Where it leads.
    pub fn endpoint(&self) -> &Endpoint {
        &self.canceller.endpoint
    }

    /// From now on rows travel in this encoding where [`Session::encoded`] is used. A snapshot has text as its own server stored it.
    pub fn carry(&self, encoding: &str) {
        let other = Some(encoding).filter(|encoding| !matches!(*encoding, "" | "UTF8"));
        *self.encoding.lock().unwrap_or_else(PoisonError::into_inner) = other.map(str::to_owned);
    }

    /// In which encoding rows travel.
    pub fn carried(&self) -> String {
        let encoding = self.encoding.lock().unwrap_or_else(PoisonError::into_inner);
        encoding.clone().unwrap_or_else(|| "UTF8".to_owned())
    }

    /// Does `work` while text comes and goes in the encoding that the session carries. Statements go as UTF-8: `work` gets one that is prepared.
    pub async fn encoded<T, E: From<PostgresError>>(
        &self,
        doing: &str,
        sql: &str,
        work: impl AsyncFnOnce(&Statement) -> Result<T, E>,
    ) -> Result<T, E> {
        let encoding = self.carried();
        let statement = self.client.prepare(sql).await.map_err(PostgresError::server(doing))?;
        if encoding == "UTF8" {
            return work(&statement).await;
        }
        self.execute(doing, &format!("SET client_encoding = {}", super::sql::literal(&encoding))).await?;
        let done = work(&statement).await;
        // A transaction that failed takes the setting back itself.
        let back = self.execute(doing, "SET client_encoding = 'UTF8'").await;
        let done = done?;
        back?;
        Ok(done)
    }

    /// Runs one or more statements without parameters or results.
    pub async fn execute(&self, doing: &str, sql: &str) -> Result<(), PostgresError> {
        self.client.batch_execute(sql).await.map_err(PostgresError::server(doing))
    }

    /// Waits for `work` on this connection; when `token` is cancelled, cancels it on the server first.
    pub async fn until<T>(
        &self,
        token: &CancellationToken,
        work: impl Future<Output = Result<T, PostgresError>>,
    ) -> Result<T, PostgresError> {
        tokio::select! {
            biased;
            () = token.cancelled() => {
                self.canceller.cancel().await;
                Err(PostgresError::Cancelled)
            }
            done = work => done,
        }
    }

    /// What the server is.
    pub async fn facts(&self) -> Result<ServerFacts, PostgresError> {
        facts::read(self).await
    }

    async fn open(
        dsn: &Dsn,
        endpoint: &Endpoint,
        tls: Option<&MakeRustlsConnect>,
        options: &SessionOptions,
    ) -> Result<Self, PostgresError> {
        let attempt = |tls: Option<&MakeRustlsConnect>, optional: bool| {
            let tls = tls.cloned();
            let work = Self::attempt(dsn, endpoint, tls, optional, options);
            async move {
                match dsn.connect_timeout {
                    None => work.await,
                    Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
                        let reason = format!("no answer within {} seconds", limit.as_secs());
                        Err(PostgresError::Unreachable { endpoint: endpoint.to_string(), reason })
                    }),
                }
            }
        };
        if matches!(endpoint.address, Address::Socket(_)) {
            return attempt(None, false).await;
        }
        match dsn.ssl.mode {
            SslMode::Disable => attempt(None, false).await,
            SslMode::Allow => match attempt(None, false).await {
                Err(PostgresError::Refused { .. }) => attempt(tls, false).await,
                done => done,
            },
            SslMode::Prefer => match attempt(tls, true).await {
                // A failed handshake, or an entry of pg_hba.conf that wants no TLS.
                Err(PostgresError::Refused { reason, .. })
                    if reason.contains("TLS") || reason.contains("pg_hba.conf") =>
                {
                    attempt(None, false).await
                }
                done => done,
            },
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => attempt(tls, false).await,
        }
    }

    async fn attempt(
        dsn: &Dsn,
        endpoint: &Endpoint,
        tls: Option<MakeRustlsConnect>,
        tls_optional: bool,
        options: &SessionOptions,
    ) -> Result<Self, PostgresError> {
        let mut config = Config::new();
        config
            .user(&dsn.user)
            .dbname(&dsn.database)
            .application_name(dsn.application_name.as_ref().unwrap_or(&options.application_name))
            .ssl_mode(match (&tls, tls_optional) {
                (None, _) => LibrarySslMode::Disable,
                (Some(_), true) => LibrarySslMode::Prefer,
                (Some(_), false) => LibrarySslMode::Require,
            })
            .channel_binding(match dsn.channel_binding {
                ChannelBinding::Disable => LibraryBinding::Disable,
                ChannelBinding::Prefer => LibraryBinding::Prefer,
                ChannelBinding::Require => LibraryBinding::Require,
            });
        if let Some(options) = &dsn.options {
            config.options(options);
        }
        if let Some(password) = endpoint.password() {
            config.password(password);
        }
        let stream = open_stream(endpoint).await.map_err(|error| PostgresError::Unreachable {
            endpoint: endpoint.to_string(),
            reason: error.to_string(),
        })?;
        let refused = |error: tokio_postgres::Error| PostgresError::Refused {
            endpoint: endpoint.to_string(),
            reason: explained(&error).replace("error performing TLS handshake", "the TLS handshake failed"),
        };
        let (client, task) = match &tls {
            None => {
                let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(refused)?;
                (client, spawn(connection))
            }
            Some(tls) => {
                let connector = tls_for(tls, endpoint);
                let (client, connection) = config.connect_raw(stream, connector).await.map_err(refused)?;
                (client, spawn(connection))
            }
        };
        let canceller = Canceller { token: client.cancel_token(), endpoint: endpoint.clone(), tls };
        Ok(Self { client, canceller, task, encrypted: false, backend: 0, version: 0, encoding: Mutex::default() })
    }

    /// Checks the version and forces the settings that decide over what is read (DESIGN §4), whatever the role or the
    /// database has as default.
    async fn prepare(&mut self, options: &SessionOptions) -> Result<(), PostgresError> {
        // First of all: a role may have a timeout that ends even the next question.
        self.execute("setting up the session", "SET statement_timeout = 0").await?;
        let facts = "SELECT current_setting('server_version_num')::int, current_setting('server_version'), \
             pg_backend_pid(), coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)";
        let row = self.client.query_one(facts, &[]).await.map_err(PostgresError::server("asking for the version"))?;
        self.version = row.get::<_, i32>(0).unsigned_abs();
        self.backend = row.get(2);
        self.encrypted = row.get(3);
        if !(140_000..190_000).contains(&self.version) {
            return Err(PostgresError::Version { version: row.get(1) });
        }
        let mut settings = format!(
            "SET row_security = off; SET idle_in_transaction_session_timeout = 0; \
             SET idle_session_timeout = 0; SET lock_timeout = {}; SET enable_tidscan = on; SET synchronize_seqscans = off; \
             SET search_path = ''; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; \
             SET extra_float_digits = 1; SET bytea_output = 'hex'; SET xmloption = 'content'; \
             SET standard_conforming_strings = on; SET max_parallel_workers_per_gather = 0;",
            options.lock_timeout.as_millis()
        );
        if self.version >= 170_000 {
            settings += " SET transaction_timeout = 0;";
        }
        self.execute("setting up the session", &settings).await
    }

    async fn suits(&self, target: TargetSession) -> Result<bool, PostgresError> {
        if matches!(target, TargetSession::Any | TargetSession::PreferStandby) {
            return Ok(true);
        }
        let state = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::bool";
        let row =
            self.client.query_one(state, &[]).await.map_err(PostgresError::server("asking for the server's role"))?;
        let (standby, read_only): (bool, bool) = (row.get(0), row.get(1));
        Ok(match target {
            TargetSession::ReadWrite => !read_only,
            TargetSession::ReadOnly => read_only,
            TargetSession::Primary => !standby,
            TargetSession::Standby => standby,
            TargetSession::Any | TargetSession::PreferStandby => true,
        })
    }
}

fn starting(error: &PostgresError) -> bool {
    // cannot_connect_now: starting up, shutting down, in recovery.
    matches!(error, PostgresError::Refused { reason, .. } if reason.contains("57P03"))
}

/// Cancels what runs on a [`Session`]; cheap to clone.
#[derive(Clone)]
pub struct Canceller {
    token: CancelToken,
    endpoint: Endpoint,
    tls: Option<MakeRustlsConnect>,
}

impl std::fmt::Debug for Canceller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Canceller({})", self.endpoint)
    }
}

impl Canceller {
    /// Asks the server to cancel. It may come too late or fail; the caller drops the session either way.
    pub async fn cancel(&self) {
        let work = async {
            let stream = open_stream(&self.endpoint).await.ok()?;
            match &self.tls {
                None => self.token.cancel_query_raw(stream, NoTls).await.ok(),
                Some(tls) => self.token.cancel_query_raw(stream, tls_for(tls, &self.endpoint)).await.ok(),
            }
        };
        // A server that does not answer must not hold up the one who gives up on it.
        let _ = tokio::time::timeout(Duration::from_secs(5), work).await;
    }
}

/// Refuses a pooler that hands one server connection to several clients in turn: the settings, the locks and the exported
/// snapshot of a session would be somebody else's.
///
/// Two sessions are compared: behind such a pooler the second gets the server connection that the first just gave back,
/// and the first gets another one while the second is in a transaction.
pub async fn refuse_pooler(dsn: &Dsn) -> Result<(), PostgresError> {
    let one = Session::connect(dsn, SessionOptions::default()).await?;
    let two = Session::connect(dsn, SessionOptions::default()).await?;
    let pid = "SELECT pg_backend_pid()";
    let ask = async |session: &Session| {
        let pid = session.client.query_one_scalar::<i32, _>(pid, &[]).await;
        pid.map_err(PostgresError::server("looking for a pooler"))
    };
    // PgBouncer's statement mode answers a BEGIN by closing the connection.
    two.execute("looking for a pooler", "BEGIN").await.map_err(|_| PostgresError::Pooler)?;
    let other = ask(&two).await?;
    let first = ask(&one).await?;
    two.execute("looking for a pooler", "ROLLBACK").await?;
    let constant = first == one.backend && other == two.backend && first != other;
    if constant { Ok(()) } else { Err(PostgresError::Pooler) }
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}
type Stream = BufReader<Box<dyn Wire>>;

async fn open_stream(endpoint: &Endpoint) -> std::io::Result<Stream> {
    let wire: Box<dyn Wire> = match &endpoint.address {
        Address::Socket(directory) => {
            Box::new(UnixStream::connect(directory.join(format!(".s.PGSQL.{}", endpoint.port))).await?)
        }
        Address::Tcp { name, address } => {
            let stream = match address {
                Some(address) => TcpStream::connect((*address, endpoint.port)).await?,
                None => TcpStream::connect((name.as_str(), endpoint.port)).await?,
            };
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
    };
    Ok(BufReader::with_capacity(READ_BUFFER_BYTES, wire))
}

fn tls_for(tls: &MakeRustlsConnect, endpoint: &Endpoint) -> <MakeRustlsConnect as MakeTlsConnect<Stream>>::TlsConnect {
    let name = match &endpoint.address {
        Address::Tcp { name, .. } => name.as_str(),
        // Never asked for: a unix socket has no TLS.
        Address::Socket(_) => "localhost",
    };
    match MakeTlsConnect::<Stream>::make_tls_connect(&mut tls.clone(), name) {
        Ok(connector) => connector,
        Err(never) => match never {},
    }
}

fn spawn<T>(connection: tokio_postgres::Connection<Stream, T>) -> JoinHandle<()>
where
    T: tokio_postgres::tls::TlsStream + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        // The error reaches whoever waits for an answer; notices are of no use here.
        let _ = connection.await;
    })
}
