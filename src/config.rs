//! The one way in for settings that outlive a command: a TOML file. Flags and environment come before it
//! (`cli` asks clap for those); `restante.toml` in the working directory, then the user's, then `/etc`.

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

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| ConfigError::Unreadable { path: path.to_owned(), message: e.to_string() })?;
        toml::from_str(&text).map_err(|e| ConfigError::Invalid {
            path: path.to_owned(),
            line: e.span().map_or(1, |span| text[..span.start].lines().count().max(1)),
            // Only the message: the line itself may hold a password.
            message: e.message().to_owned(),
        })
    }
}
