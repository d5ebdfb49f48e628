//! The one way in for settings that outlive a command: a TOML file. Flags and environment come before it
//! (`cli` asks clap for those); `restante.toml` in the working directory, then the user's, then `/etc`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What a file may say. All of it can also be said on the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Directory or `s3://…`.
    pub repo: Option<String>,
    /// Connection string of the store.
    pub store: Option<String>,
    /// Writer key file.
    pub key: Option<PathBuf>,
    /// Identity files of a reader.
    #[serde(default)]
    pub identity: Vec<PathBuf>,
    /// Name of a built-in profile or a file.
    pub profile: Option<String>,
    pub jobs: Option<usize>,
    /// As `256MiB`.
    pub memory: Option<String>,
    #[serde(default)]
    pub exclude: Vec<String>,
    #[serde(default)]
    pub tags: Vec<String>,
    pub pg_dump: Option<PathBuf>,
    #[serde(default)]
    pub hooks: Hooks,
    /// Several stores in one file, by name: `[stores.NAME]`. What one of them does not say is said above for all.
    #[serde(default)]
    pub stores: BTreeMap<String, Config>,
}

/// Shell commands around `snapshot`, `verify`, `drill`, `forget` and `prune`. They are told `RESTANTE_COMMAND` and, all but the first, `RESTANTE_OUTCOME`
/// (`done`, `findings`, `failed`, …) and `RESTANTE_EXIT_CODE`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    /// If it fails, the command is not run.
    pub before: Option<String>,
    /// When the command is done, with findings or without.
    pub after: Option<String>,
    /// When it failed, was refused or interrupted.
    pub failed: Option<String>,
    /// After any of these.
    pub finally: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("configuration file {path}: {message}")]
    Unreadable { path: PathBuf, message: String },
    #[error("configuration file {path}, line {line}: {message}")]
    Invalid { path: PathBuf, line: usize, message: String },
    #[error("the configuration file has no store {name:?}; it has: {known}")]
    NoStore { name: String, known: String },
}

impl Config {
    /// `given` must exist; without it the usual places are looked at, and none need exist.
    pub fn load(given: Option<&Path>) -> Result<Self, ConfigError> {
        if let Some(path) = given {
            return Self::read(path);
        }
        let user = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
        let places = [Some(PathBuf::new()), user.map(|user| user.join("restante")), Some("/etc/restante".into())];
        match places.into_iter().flatten().map(|folder| folder.join("restante.toml")).find(|path| path.is_file()) {
            Some(path) => Self::read(&path),
            None => Ok(Self::default()),
        }
    }

    /// What counts for the store of a name.
    pub fn of(mut self, name: &str) -> Result<Self, ConfigError> {
        let known = self.names();
        let Some(one) = self.stores.remove(name) else {
            return Err(ConfigError::NoStore { name: name.to_owned(), known });
        };
        let or = |list: Vec<String>, all: Vec<String>| if list.is_empty() { all } else { list };
        Ok(Self {
            repo: one.repo.or(self.repo),
            store: one.store.or(self.store),
            key: one.key.or(self.key),
            identity: if one.identity.is_empty() { self.identity } else { one.identity },
            profile: one.profile.or(self.profile),
            jobs: one.jobs.or(self.jobs),
            memory: one.memory.or(self.memory),
            exclude: or(one.exclude, self.exclude),
            tags: or(one.tags, self.tags),
            pg_dump: one.pg_dump.or(self.pg_dump),
            hooks: if one.hooks == Hooks::default() { self.hooks } else { one.hooks },
            stores: BTreeMap::new(),
        })
    }

    /// Of the stores, for people.
    pub fn names(&self) -> String {
        if self.stores.is_empty() {
            "none".to_owned()
        } else {
            self.stores.keys().cloned().collect::<Vec<_>>().join(", ")
        }
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| ConfigError::Unreadable { path: path.to_owned(), message: e.to_string() })?;
        let config: Self = toml::from_str(&text).map_err(|e| ConfigError::Invalid {
            path: path.to_owned(),
            line: e.span().map_or(1, |span| text[..span.start].lines().count().max(1)),
            // Only the message: the line itself may hold a password.
            message: e.message().to_owned(),
        })?;
        let is_plain = |name: &String| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        match config.stores.iter().find(|(name, one)| !one.stores.is_empty() || !is_plain(name)) {
            None => Ok(config),
            Some((name, _)) => Err(ConfigError::Unreadable {
                path: path.to_owned(),
                message: format!(
                    "stores.{name}: a name has letters, digits, - _ . and a store has no stores of its own"
                ),
            }),
        }
    }
}
