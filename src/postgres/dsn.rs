//! Connection strings: URIs and `key=value` pairs with the environment, service files and the password file behind them,
//! read as libpq reads them, so that what works with `psql` works here and means the same server.
//!
//! Sources, in falling order as in libpq (`fe-connect.c`, `conninfo_add_defaults`): the string, the service file, the
//! environment (`PG*`), the defaults. Parameters that would weaken a promise if they were ignored (`sslcrl`,
//! `requirepeer`, `require_auth` …) are refused; those without influence here are accepted and ignored.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

mod files;
mod text;

/// Why a connection string is not understood. No variant holds a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DsnError {
    #[error("the connection string is not valid: {0}")]
    Syntax(String),
    #[error("{0:?} is not a connection parameter; see \"Parameter Key Words\" in the libpq documentation")]
    UnknownParameter(String),
    #[error("the connection parameter {0} is not supported, and ignoring it would weaken the connection: leave it out")]
    Unsupported(String),
    #[error("{value:?} is not a valid value for {parameter}: {expected}")]
    Value { parameter: &'static str, value: String, expected: &'static str },
    #[error("the connection names {hosts} hosts but {count} values of {parameter}; give one for each")]
    Count { parameter: &'static str, hosts: usize, count: usize },
    #[error("the service {service:?} is not in {}; check PGSERVICE or `service=`", .looked.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" nor in "))]
    NoService { service: String, looked: Vec<PathBuf> },
    #[error("the service file {} cannot be read: {reason}", .path.display())]
    ServiceFile { path: PathBuf, reason: String },
    #[error("no user name: this process's account has none; give `user=` or PGUSER")]
    NoUser,
}

/// What [`Dsn`] reads besides the string: so that tests need not change the process.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    pub variables: HashMap<String, String>,
    pub home: Option<PathBuf>,
    /// The name of the account that the process runs as.
    pub account: Option<String>,
}

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        // A variable that is not UTF-8 cannot be one of ours.
        let variables: HashMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let home = variables.get("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        Self { variables, home, account: whoami::username().ok() }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    fn home_file(&self, name: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(name))
    }
}

/// How much TLS, with libpq's meanings: see [`super::tls`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// Which certificates are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SslRoot {
    /// Those of the system (`sslrootcert=system`).
    System,
    /// A PEM file that was named.
    File(PathBuf),
    /// `~/.postgresql/root.crt`, if it is there.
    Default(Option<PathBuf>),
}

/// Everything that decides over TLS.
#[derive(Debug, Clone)]
pub struct SslSettings {
    pub mode: SslMode,
    pub root: SslRoot,
    /// The client's certificate and key; the defaults in `~/.postgresql` may be absent.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// Was the certificate named, so that programs of PostgreSQL must be told?
    pub certificate_named: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

/// Which of several servers will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetSession {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// The directory of a unix socket.
    Socket(PathBuf),
    /// A name (for certificates and look-up) and, if given, the address to use instead of looking it up.
    Tcp { name: String, address: Option<IpAddr> },
}

/// One server to try.
#[derive(Clone)]
pub struct Endpoint {
    pub address: Address,
    pub port: u16,
    password: Option<SecretString>,
}

impl Endpoint {
    pub fn password(&self) -> Option<&str> {
        self.password.as_ref().map(|password| password.expose_secret())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Socket(directory) => write!(f, "{}:{}", directory.display(), self.port),
            Address::Tcp { name, .. } if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Address::Tcp { name, .. } => write!(f, "{name}:{}", self.port),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self}, password: {})", if self.password.is_some() { "***" } else { "none" })
    }
}

/// A connection string, complete. [`fmt::Display`] shows no password.
///
/// ```
/// use restante::postgres::dsn::{Dsn, Environment};
/// let dsn = Dsn::parse("postgres://ada:secret@db1,db2:5433/mail?sslmode=require", &Environment::default()).unwrap();
/// assert_eq!(dsn.to_string(), "postgres://ada:***@db1:5432,db2:5433/mail?sslmode=require");
/// ```
#[derive(Debug, Clone)]
pub struct Dsn {
    pub endpoints: Vec<Endpoint>,
    pub user: String,
    pub database: String,
    pub ssl: SslSettings,
    pub channel_binding: ChannelBinding,
    /// For each address; `None` waits as long as the system does.
    pub connect_timeout: Option<Duration>,
    pub application_name: Option<String>,
    /// Server settings for the session, as in `options=-c geqo=off`.
    pub options: Option<String>,
    pub target: TargetSession,
    /// What was odd but no error: a password file that others may read.
    pub warnings: Vec<String>,
}

impl Dsn {
    /// Reads `text` with this process's environment behind it.
    pub fn from_process(text: &str) -> Result<Self, DsnError> {
        Self::parse(text, &Environment::of_process())
    }

    /// Reads `text`: a URI, `key=value` pairs, or (as with `psql`) a bare database name; empty means all defaults.
    pub fn parse(text: &str, environment: &Environment) -> Result<Self, DsnError> {
        let mut given = text::parameters(text)?;
        if let Some(service) = given.remove("service").or_else(|| environment.get("PGSERVICE").map(str::to_owned)) {
            for (name, value) in files::service(&service, environment)? {
                given.entry(name).or_insert(value);
            }
        }
        for (parameter, variable) in VARIABLES {
            if let Some(value) = environment.get(variable) {
                given.entry((*parameter).to_owned()).or_insert_with(|| value.to_owned());
            }
        }
        complete(given, environment)
    }

    /// The parameters for a program of PostgreSQL (`pg_dump`, `psql`) that shall reach `endpoint` of this string: for its
    /// environment, never for its arguments, which others can read.
    pub fn variables(&self, endpoint: &Endpoint) -> Vec<(&'static str, String)> {
        let mut variables = vec![
            ("PGPORT", endpoint.port.to_string()),
            ("PGUSER", self.user.clone()),
            ("PGDATABASE", self.database.clone()),
            ("PGSSLMODE", self.ssl.mode.as_str().to_owned()),
        ];
        match &endpoint.address {
            Address::Socket(directory) => variables.push(("PGHOST", directory.display().to_string())),
            Address::Tcp { name, address } => {
                variables.push(("PGHOST", name.clone()));
                variables.extend(address.map(|address| ("PGHOSTADDR", address.to_string())));
            }
        }
        match &self.ssl.root {
            SslRoot::System => variables.push(("PGSSLROOTCERT", "system".to_owned())),
            SslRoot::File(path) => variables.push(("PGSSLROOTCERT", path.display().to_string())),
            SslRoot::Default(_) => {}
        }
        if self.ssl.certificate_named {
            let files = [("PGSSLCERT", &self.ssl.certificate), ("PGSSLKEY", &self.ssl.key)];
            variables.extend(
                files.into_iter().filter_map(|(name, path)| Some((name, path.as_ref()?.display().to_string()))),
            );
        }
        variables.extend(endpoint.password().map(|password| ("PGPASSWORD", password.to_owned())));
        variables.extend(self.options.clone().map(|options| ("PGOPTIONS", options)));
        variables
    }
}

impl fmt::Display for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let masked = if self.endpoints.iter().any(|endpoint| endpoint.password.is_some()) { ":***" } else { "" };
        let endpoints: Vec<String> = self.endpoints.iter().map(Endpoint::to_string).collect();
        let (user, hosts, mode) = (&self.user, endpoints.join(","), self.ssl.mode.as_str());
        write!(f, "postgres://{user}{masked}@{hosts}/{}?sslmode={mode}", self.database)
    }
}

/// Parameter and variable, for those that have one.
const VARIABLES: &[(&str, &str)] = &[
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("options", "PGOPTIONS"),
    ("application_name", "PGAPPNAME"),
    ("sslmode", "PGSSLMODE"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    ("requirepeer", "PGREQUIREPEER"),
    ("require_auth", "PGREQUIREAUTH"),
    ("gssencmode", "PGGSSENCMODE"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
];

/// Parameters that change nothing here: rustls decides, the sessions set it themselves, or it is a matter of speed.
const IGNORED: &[&str] = &[
    "client_encoding",
    "fallback_application_name",
    "gssdelegation",
    "gsslib",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "sslcompression",
    "sslsni",
    "tcp_user_timeout",
];

/// Parameters whose wish would not be kept, with the value that wishes nothing.
const REFUSED: &[(&str, &str)] = &[
    ("gssencmode", "disable"),
    ("replication", "false"),
    ("require_auth", ""),
    ("requirepeer", ""),
    ("ssl_max_protocol_version", ""),
    ("ssl_min_protocol_version", "TLSv1.2"),
    ("sslcertmode", "allow"),
    ("sslcrl", ""),
    ("sslcrldir", ""),
    ("sslkeylogfile", ""),
    ("sslnegotiation", "postgres"),
    ("sslpassword", ""),
];

type Parameters = BTreeMap<String, String>;

fn complete(mut given: Parameters, environment: &Environment) -> Result<Dsn, DsnError> {
    for name in IGNORED {
        given.remove(*name);
    }
    for (name, harmless) in REFUSED {
        match given.remove(*name) {
            Some(value) if !value.is_empty() && value != *harmless && !(*name == "gssencmode" && value == "prefer") => {
                return Err(DsnError::Unsupported((*name).to_owned()));
            }
            _ => {}
        }
    }
    // libpq takes an empty value as none.
    let mut take = |name: &str| given.remove(name).filter(|value| !value.is_empty());
    let user = take("user").or_else(|| environment.account.clone()).ok_or(DsnError::NoUser)?;
    let database = take("dbname").unwrap_or_else(|| user.clone());
    let ssl = ssl_settings(&mut take, environment)?;
    let channel_binding = match take("channel_binding").as_deref() {
        Some("disable") => ChannelBinding::Disable,
        None | Some("prefer") => ChannelBinding::Prefer,
        Some("require") => ChannelBinding::Require,
        Some(value) => return Err(bad("channel_binding", value, "disable, prefer or require")),
    };
    let connect_timeout = match take("connect_timeout") {
        None => None,
        Some(text) => {
            let seconds: i32 =
                text.trim().parse().map_err(|_| bad("connect_timeout", &text, "a whole number of seconds"))?;
            // Below two seconds libpq rounds up; zero and less mean no limit.
            (seconds > 0).then(|| Duration::from_secs(seconds.max(2).unsigned_abs().into()))
        }
    };
    let target = match take("target_session_attrs").as_deref() {
        None | Some("any") => TargetSession::Any,
        Some("read-write") => TargetSession::ReadWrite,
        Some("read-only") => TargetSession::ReadOnly,
        Some("primary") => TargetSession::Primary,
        Some("standby") => TargetSession::Standby,
        Some("prefer-standby") => TargetSession::PreferStandby,
        Some(value) => {
            let expected = "any, read-write, read-only, primary, standby or prefer-standby";
            return Err(bad("target_session_attrs", value, expected));
        }
    };
    let mut warnings = Vec::new();
    let password = take("password").map(SecretString::from);
    let file = take("passfile").map(PathBuf::from).or_else(|| environment.home_file(".pgpass"));
    let (application_name, options) = (take("application_name"), take("options"));
    let mut endpoints = endpoints(take("host"), take("hostaddr"), take("port"))?;
    if let Some(password) = password {
        endpoints.iter_mut().for_each(|endpoint| endpoint.password = Some(password.clone()));
    } else if let Some(lines) = file.and_then(|file| files::password_file(&file, &mut warnings)) {
        for endpoint in &mut endpoints {
            let host = match &endpoint.address {
                Address::Socket(directory) if *directory == default_socket_directory() => "localhost".to_owned(),
                Address::Socket(directory) => directory.display().to_string(),
                Address::Tcp { name, .. } => name.clone(),
            };
            endpoint.password = files::password(&lines, [&host, &endpoint.port.to_string(), &database, &user]);
        }
    }
    if let Some(name) = given.into_keys().next() {
        return Err(DsnError::UnknownParameter(name));
    }
    Ok(Dsn {
        endpoints,
        user,
        database,
        ssl,
        channel_binding,
        connect_timeout,
        application_name,
        options,
        target,
        warnings,
    })
}

fn ssl_settings(
    take: &mut impl FnMut(&str) -> Option<String>,
    environment: &Environment,
) -> Result<SslSettings, DsnError> {
    let root = match take("sslrootcert").as_deref() {
        Some("system") => SslRoot::System,
        Some(path) => SslRoot::File(path.into()),
        None => SslRoot::Default(environment.home_file(".postgresql/root.crt")),
    };
    let mode = match take("sslmode").as_deref() {
        Some("disable") => SslMode::Disable,
        Some("allow") => SslMode::Allow,
        Some("prefer") => SslMode::Prefer,
        Some("require") => SslMode::Require,
        Some("verify-ca") => SslMode::VerifyCa,
        Some("verify-full") => SslMode::VerifyFull,
        None if root == SslRoot::System => SslMode::VerifyFull,
        None => SslMode::Prefer,
        Some(value) => {
            return Err(bad("sslmode", value, "disable, allow, prefer, require, verify-ca or verify-full"));
        }
    };
    if root == SslRoot::System && mode != SslMode::VerifyFull {
        // As libpq 16 and later: anybody can get a certificate from a public authority.
        return Err(bad("sslmode", mode.as_str(), "sslrootcert=system needs verify-full"));
    }
    let (certificate, key) = (take("sslcert").map(PathBuf::from), take("sslkey").map(PathBuf::from));
    let certificate_named = certificate.is_some();
    Ok(SslSettings {
        mode,
        root,
        certificate: certificate.or_else(|| environment.home_file(".postgresql/postgresql.crt")),
        key: key.or_else(|| environment.home_file(".postgresql/postgresql.key")),
        certificate_named,
    })
}

fn endpoints(
    hosts: Option<String>,
    addresses: Option<String>,
    ports: Option<String>,
) -> Result<Vec<Endpoint>, DsnError> {
    let split = |text: Option<String>| -> Vec<String> {
        text.map(|text| text.split(',').map(str::to_owned).collect()).unwrap_or_default()
    };
    let (hosts, addresses, ports) = (split(hosts), split(addresses), split(ports));
    let count = if addresses.is_empty() { hosts.len().max(1) } else { addresses.len() };
    if !hosts.is_empty() && hosts.len() != count {
        return Err(DsnError::Count { parameter: "hostaddr", hosts: hosts.len(), count: addresses.len() });
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(DsnError::Count { parameter: "port", hosts: count, count: ports.len() });
    }
    (0..count)
        .map(|index| {
            let port = ports.get(if ports.len() == 1 { 0 } else { index }).map_or("", String::as_str).trim();
            let port = match port {
                "" => 5432,
                text => text
                    .parse()
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or_else(|| bad("port", text, "a number from 1 to 65535"))?,
            };
            let address = match addresses.get(index).filter(|text| !text.is_empty()) {
                Some(text) => Some(text.parse::<IpAddr>().map_err(|_| bad("hostaddr", text, "an IP address"))?),
                None => None,
            };
            let host = hosts.get(index).map_or("", String::as_str);
            let address = match (host, address) {
                (host, None) if host.starts_with('@') => {
                    return Err(bad("host", host, "abstract sockets are not supported"));
                }
                ("", None) => Address::Socket(default_socket_directory()),
                (host, None) if host.starts_with('/') => Address::Socket(host.into()),
                ("", Some(address)) => Address::Tcp { name: address.to_string(), address: Some(address) },
                (host, address) => Address::Tcp { name: host.to_owned(), address },
            };
            Ok(Endpoint { address, port, password: None })
        })
        .collect()
}

/// Debian and Red Hat build libpq with `/var/run/postgresql`, PostgreSQL itself has `/tmp`.
fn default_socket_directory() -> PathBuf {
    let packaged = Path::new("/var/run/postgresql");
    if packaged.is_dir() { packaged.into() } else { "/tmp".into() }
}

fn bad(parameter: &'static str, value: &str, expected: &'static str) -> DsnError {
    DsnError::Value { parameter, value: value.to_owned(), expected }
}

#[cfg(test)]
mod tests;
