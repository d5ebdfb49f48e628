//! What stands after `-r`/`--repo`: a path, `file:///path` or `s3://bucket/prefix?endpoint=…`, and how it is opened.
//!
//! An address holds no secrets: it ends in process lists, shell histories and logs. Credentials come from where every
//! AWS tool takes them (environment, profile, web identity, container or instance role, `credential_process`).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use secrecy::SecretString;

use super::{Storage, StorageError};

/// Where a repository is kept.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(try_from = "String")]
#[expect(clippy::large_enum_variant, reason = "a process has one or two")]
pub enum Location {
    Directory(PathBuf),
    S3(S3Location),
}

/// An S3 bucket, the prefix below which the objects of the repository are, and how the server is spoken to.
#[derive(Debug, Clone)]
pub struct S3Location {
    pub bucket: String,
    /// Without a slash at either end; empty for the whole bucket.
    pub prefix: String,
    /// `https://host[:port]` of a server that is not Amazon's.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// The bucket stands in the path, not in the host name. What most servers other than Amazon's need, so it is the
    /// default with `endpoint`.
    pub path_style: bool,
    /// Profile of `~/.aws/config` and `~/.aws/credentials`.
    pub profile: Option<String>,
    /// PEM file with certificate authorities to trust besides those of the system.
    pub ca_bundle: Option<PathBuf>,
    /// Requests that run at the same time.
    pub concurrency: usize,
    /// How often a request is tried before it fails.
    pub attempts: u32,
    /// Everything that is written once is put under object lock in compliance mode for so long.
    pub lock: Option<SignedDuration>,
    /// The bucket as it was then, from its versions; only to be read.
    pub as_of: Option<Timestamp>,
    /// Instead of the credential chain; never part of an address.
    pub credentials: Option<S3Credentials>,
}

/// A pair of keys that was handed over in memory.
#[derive(Debug, Clone)]
pub struct S3Credentials {
    pub access_key: String,
    pub secret_key: SecretString,
}

/// Enough for 64 MiB packs to fill a link of 10 Gbit/s at 40 ms, and the same that most servers allow without complaint.
const DEFAULT_CONCURRENCY: usize = 16;
/// With waits of up to 0.25, 0.5, 1, 2, 4, 8 and 16 s between them a server may be away for about 15 s.
const DEFAULT_ATTEMPTS: u32 = 8;

const PARAMETERS: &str = "endpoint, region, path_style, profile, ca_bundle, concurrency, attempts, lock, as_of";

impl S3Location {
    /// The bucket's root with all defaults.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: String::new(),
            endpoint: None,
            region: None,
            path_style: false,
            profile: None,
            ca_bundle: None,
            concurrency: DEFAULT_CONCURRENCY,
            attempts: DEFAULT_ATTEMPTS,
            lock: None,
            as_of: None,
            credentials: None,
        }
    }
}

/// Why an address was not understood. None repeats a part of the address that could hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LocationError {
    #[error("the address of the repository is empty: give a path, file:///path or s3://bucket/prefix")]
    Empty,
    #[error("{0}:// is not a kind of repository: give a path, file:///path or s3://bucket/prefix")]
    UnknownScheme(String),
    #[error("a file address is file:///path with three slashes and an absolute path")]
    FileNotAbsolute,
    #[error("an S3 address is s3://bucket/prefix?endpoint=https://host")]
    S3Form,
    #[error("{0:?} is not the name of an S3 bucket: 3 to 63 of a-z, 0-9, dot and hyphen")]
    Bucket(String),
    #[error("the prefix {0:?} must not have empty segments, `.`, `..` or control characters")]
    Prefix(String),
    #[error(
        "an address must not hold keys or passwords (it ends in process lists and logs): use the AWS_* environment \
         variables or profile=NAME"
    )]
    Secret,
    #[error("unknown parameter {0:?} in the S3 address; known are {PARAMETERS}")]
    UnknownParameter(String),
    #[error("parameter {0} stands twice in the S3 address")]
    Twice(&'static str),
    #[error("parameter {parameter} of the S3 address is {value:?}; allowed is {allowed}")]
    Parameter { parameter: &'static str, value: String, allowed: &'static str },
    #[error("a percent sign in the S3 address must be followed by two hexadecimal digits of UTF-8")]
    Percent,
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        if text.is_empty() {
            return Err(LocationError::Empty);
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            return parse_s3(rest).map(Self::S3);
        }
        if let Some(rest) = text.strip_prefix("file:") {
            let path =
                rest.strip_prefix("//").filter(|path| path.starts_with('/')).ok_or(LocationError::FileNotAbsolute)?;
            return Ok(Self::Directory(decode(path)?.into()));
        }
        // Other tools write `s3:https://host/bucket`; a folder of that name would be a nasty surprise.
        if text.starts_with("s3:") {
            return Err(LocationError::S3Form);
        }
        match text.split_once("://") {
            Some((scheme, _)) if !scheme.contains('/') => Err(LocationError::UnknownScheme(scheme.to_owned())),
            _ => Ok(Self::Directory(text.into())),
        }
    }
}

impl TryFrom<String> for Location {
    type Error = LocationError;
    fn try_from(text: String) -> Result<Self, LocationError> {
        text.parse()
    }
}

fn parse_s3(rest: &str) -> Result<S3Location, LocationError> {
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    if bucket.contains('@') || bucket.contains(':') {
        return Err(LocationError::Secret);
    }
    // Amazon allows less (no capitals since 2018); other servers and old buckets have them.
    let named = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(named) {
        return Err(LocationError::Bucket(bucket.to_owned()));
    }
    let mut location = S3Location::new(bucket);
    location.prefix = decode(prefix)?.trim_end_matches('/').to_owned();
    let wrong = |segment: &str| segment.is_empty() || segment == "." || segment == "..";
    if !location.prefix.is_empty()
        && (location.prefix.split('/').any(wrong) || location.prefix.chars().any(char::is_control))
    {
        return Err(LocationError::Prefix(location.prefix));
    }

    let mut path_style = None;
    let (mut concurrency, mut attempts) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value)?;
        match key {
            "endpoint" => once("endpoint", &mut location.endpoint, endpoint(value)?)?,
            "region" => {
                once("region", &mut location.region, not_empty("region", value, "a region such as eu-central-1")?)?
            }
            "profile" => once("profile", &mut location.profile, not_empty("profile", value, "the name of a profile")?)?,
            "ca_bundle" => {
                let file = not_empty("ca_bundle", value, "the path of a PEM file")?;
                once("ca_bundle", &mut location.ca_bundle, file.into())?;
            }
            "path_style" => {
                let allowed = "true or false";
                let on =
                    value.parse().map_err(|_| LocationError::Parameter { parameter: "path_style", value, allowed })?;
                once("path_style", &mut path_style, on)?;
            }
            "concurrency" => once("concurrency", &mut concurrency, number("concurrency", value, 1..=256, "1 to 256")?)?,
            "lock" => once("lock", &mut location.lock, lock(value)?)?,
            "as_of" => {
                let allowed = "a time such as 2026-11-27T03:00:00Z";
                let at = value.parse().map_err(|_| LocationError::Parameter { parameter: "as_of", value, allowed })?;
                once("as_of", &mut location.as_of, at)?;
            }
            "attempts" => once("attempts", &mut attempts, number("attempts", value, 1..=20, "1 to 20")?)?,
            // Only the name, and only if it looks like one: the text may be a secret that strayed here.
            _ if key.len() <= 32 && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') => {
                return Err(LocationError::UnknownParameter(key.to_owned()));
            }
            _ => return Err(LocationError::UnknownParameter("…".to_owned())),
        }
    }
    location.path_style = path_style.unwrap_or(location.endpoint.is_some());
    location.concurrency = concurrency.map_or(DEFAULT_CONCURRENCY, |n| n as usize);
    location.attempts = attempts.unwrap_or(DEFAULT_ATTEMPTS);
    Ok(location)
}

fn once<T>(name: &'static str, slot: &mut Option<T>, value: T) -> Result<(), LocationError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(LocationError::Twice(name)),
    }
}

fn not_empty(parameter: &'static str, value: String, allowed: &'static str) -> Result<String, LocationError> {
    if value.is_empty() { Err(LocationError::Parameter { parameter, value, allowed }) } else { Ok(value) }
}

fn number(
    parameter: &'static str,
    value: String,
    range: std::ops::RangeInclusive<u32>,
    allowed: &'static str,
) -> Result<u32, LocationError> {
    match value.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(LocationError::Parameter { parameter, value, allowed }),
    }
}

/// `30d`; a day has 24 hours.
fn lock(value: String) -> Result<SignedDuration, LocationError> {
    let days = SpanRelativeTo::days_are_24_hours();
    let time = value.parse::<Span>().and_then(|span| span.to_duration(days)).ok().filter(SignedDuration::is_positive);
    time.ok_or(LocationError::Parameter { parameter: "lock", value, allowed: "a time above zero such as 30d" })
}

fn endpoint(value: String) -> Result<String, LocationError> {
    if value.contains('@') {
        return Err(LocationError::Secret);
    }
    let host = value.strip_prefix("https://").or_else(|| value.strip_prefix("http://"));
    match host.map(|host| host.trim_end_matches('/')) {
        Some(host) if !host.is_empty() && !host.contains(['?', '#', ' ']) && !host.chars().any(char::is_control) => {
            Ok(value.trim_end_matches('/').to_owned())
        }
        _ => Err(LocationError::Parameter {
            parameter: "endpoint",
            value,
            allowed: "https://host[:port] or http://host[:port]",
        }),
    }
}

fn decode(text: &str) -> Result<String, LocationError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = after;
            continue;
        }
        let (digits, after) = after.split_at_checked(2).ok_or(LocationError::Percent)?;
        let decoded = data_encoding::HEXLOWER_PERMISSIVE.decode(digits).map_err(|_| LocationError::Percent)?;
        bytes.extend_from_slice(&decoded);
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| LocationError::Percent)
}

/// Encodes only what would be read differently again.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '%' => encoded.push_str("%25"),
            '&' => encoded.push_str("%26"),
            '?' => encoded.push_str("%3f"),
            _ => encoded.push(character),
        }
    }
    encoded
}

/// The address as it can be given again. It holds no secret: see [`LocationError::Secret`].
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::S3(location) => location.fmt(f),
        }
    }
}

impl fmt::Display for S3Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", encode(&self.prefix))?;
        }
        let mut parameters = Vec::new();
        let mut add =
            |name: &str, value: Option<String>| parameters.extend(value.map(|v| format!("{name}={}", encode(&v))));
        add("endpoint", self.endpoint.clone());
        add("region", self.region.clone());
        add("path_style", (self.path_style != self.endpoint.is_some()).then(|| self.path_style.to_string()));
        add("profile", self.profile.clone());
        add("ca_bundle", self.ca_bundle.as_ref().map(|path| path.display().to_string()));
        add("concurrency", (self.concurrency != DEFAULT_CONCURRENCY).then(|| self.concurrency.to_string()));
        add("attempts", (self.attempts != DEFAULT_ATTEMPTS).then(|| self.attempts.to_string()));
        add("lock", self.lock.map(|lock| format!("{lock:#}").replace(' ', "")));
        add("as_of", self.as_of.map(|at| at.to_string()));
        if !parameters.is_empty() {
            write!(f, "?{}", parameters.join("&"))?;
        }
        Ok(())
    }
}

/// Opens the place. Neither a missing directory nor a missing bucket is an error yet: the first call tells.
pub async fn open(location: &Location) -> Result<Arc<dyn Storage>, StorageError> {
    let storage: Arc<dyn Storage> = match location {
        Location::Directory(path) => Arc::new(super::directory::Directory::new(path)?),
        #[cfg(feature = "s3")]
        Location::S3(location) => {
            let s3 = super::s3::S3::connect(location).await?;
            match location.as_of {
                None => Arc::new(s3),
                Some(at) => Arc::new(super::s3::Past::new(s3, at)),
            }
        }
        #[cfg(not(feature = "s3"))]
        Location::S3(location) => {
            return Err(StorageError::Failed {
                address: location.to_string(),
                doing: "open the storage".into(),
                message: "this program was built without S3 (cargo feature `s3`)".into(),
            });
        }
    };
    #[cfg(feature = "failpoints")]
    let storage: Arc<dyn Storage> = Arc::new(super::layers::Dying::new(storage));
    Ok(storage)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn s3(text: &str) -> S3Location {
        match text.parse().unwrap() {
            Location::S3(location) => location,
            Location::Directory(path) => panic!("{path:?}"),
        }
    }

    #[test]
    fn a_path_stays_as_it_is() {
        for (text, path) in
            [("backup", "backup"), ("/srv/a b", "/srv/a b"), ("file:///srv/a%20b", "/srv/a b"), ("./a://b", "./a://b")]
        {
            match text.parse().unwrap() {
                Location::Directory(parsed) => assert_eq!(parsed, PathBuf::from(path)),
                Location::S3(location) => panic!("{location}"),
            }
        }
    }

    #[test]
    fn every_parameter_is_taken() {
        let location = s3("s3://mail-backup/prod/a/?endpoint=https://s3.example:9000/&region=eu-1&path_style=false\
             &profile=backup&ca_bundle=/etc/my%20ca.pem&concurrency=4&attempts=2&lock=30d&as_of=2026-11-27T03:00:00Z");
        assert_eq!((location.bucket.as_str(), location.prefix.as_str()), ("mail-backup", "prod/a"));
        assert_eq!(location.endpoint.as_deref(), Some("https://s3.example:9000"));
        assert_eq!(location.region.as_deref(), Some("eu-1"));
        assert!(!location.path_style);
        assert_eq!(location.profile.as_deref(), Some("backup"));
        assert_eq!(location.ca_bundle, Some("/etc/my ca.pem".into()));
        assert_eq!((location.concurrency, location.attempts), (4, 2));
        assert_eq!(location.lock, Some(SignedDuration::from_hours(720)));
        assert_eq!(location.as_of, Some("2026-11-27T03:00:00Z".parse().unwrap()));
        assert_eq!(s3(&location.to_string()).to_string(), location.to_string());
        assert_eq!(s3(&location.to_string()).lock, location.lock);
    }

    #[test]
    fn another_server_means_path_style_unless_said_otherwise() {
        assert!(!s3("s3://bucket").path_style);
        assert!(s3("s3://bucket?endpoint=http://localhost:1").path_style);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases = [
            ("", "is empty"),
            ("http://host/bucket", "http:// is not a kind of repository"),
            ("file://srv/a", "three slashes"),
            ("file:a", "three slashes"),
            ("s3:https://host/bucket", "s3://bucket/prefix"),
            ("s3://", "not the name of an S3 bucket"),
            ("s3://bu cket", "not the name of an S3 bucket"),
            ("s3://bucket/a//b", "empty segments"),
            ("s3://bucket/../b", "empty segments"),
            ("s3://bucket?retries=3", "unknown parameter \"retries\""),
            ("s3://bucket?retries=3", "known are endpoint, region"),
            ("s3://bucket?path_style=yes", "path_style of the S3 address is \"yes\"; allowed is true or false"),
            ("s3://bucket?concurrency=0", "allowed is 1 to 256"),
            ("s3://bucket?concurrency=many", "allowed is 1 to 256"),
            ("s3://bucket?attempts=21", "allowed is 1 to 20"),
            ("s3://bucket?endpoint=host:9000", "allowed is https://host[:port]"),
            ("s3://bucket?region=", "allowed is a region"),
            ("s3://bucket?region=a&region=b", "region stands twice"),
            ("s3://bucket?region=%e", "percent sign"),
            ("s3://bucket?lock=soon", "allowed is a time above zero such as 30d"),
            ("s3://bucket?lock=0d", "allowed is a time above zero"),
            ("s3://bucket?as_of=yesterday", "allowed is a time such as"),
        ];
        for (text, said) in cases {
            let error = text.parse::<Location>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_secret_in_an_address_is_refused_and_not_repeated() {
        for text in [
            "s3://AKIAKEY:hunter2@bucket/p",
            "s3://bucket?endpoint=https://me:hunter2@host",
            "s3://bucket?secret_access_key=hunter2",
            "s3://bucket?hunter2/+=",
        ] {
            let error = text.parse::<Location>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        let mut location = s3("s3://bucket");
        location.credentials = Some(S3Credentials { access_key: "AK".into(), secret_key: "hunter2".into() });
        assert!(!format!("{location} {location:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn what_is_displayed_can_be_given_again(
            prefix in "([a-zA-Z0-9%&?= é]{1,8}(/[a-zA-Z0-9%&?=+ ]{1,8}){0,2})?",
            endpoint in proptest::option::of("https?://[a-z]{1,8}(:[0-9]{2,4})?"),
            path_style in any::<bool>(),
            profile in proptest::option::of("[a-z%&?=+ ]{1,8}"),
            concurrency in 1usize..=256,
        ) {
            let mut location = S3Location::new("bucket");
            (location.prefix, location.endpoint, location.path_style) = (prefix, endpoint, path_style);
            (location.profile, location.concurrency) = (profile, concurrency);
            let shown = location.to_string();
            let again = s3(&shown);
            prop_assert_eq!(format!("{again:?}"), format!("{location:?}"), "{}", shown);
        }

        #[test]
        fn no_address_makes_it_panic(text in "(s3://)?[ -~é]{0,60}") {
            let _ = text.parse::<Location>();
        }
    }
}
