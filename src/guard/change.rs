//! The file that says what a change is: who reads it knows what will be run, and what may be different afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};

use aws_lc_rs::digest;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::document;
use super::error::GuardError;
use crate::repository::id::ObjectId;

/// Scripts are read into memory to be hashed and copied.
const LARGEST_SCRIPT: u64 = 64 << 20;

/// What the server and its users do meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// All go on.
    Online,
    /// The server is up, applications are out.
    Exclusive,
    /// The server is stopped and fenced.
    Offline,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Online => "online",
            Self::Exclusive => "exclusive",
            Self::Offline => "offline",
        })
    }
}

/// What may become of a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum May {
    /// Nothing: every row stays what it is.
    #[default]
    None,
    /// Its columns, its files, the order of its rows; what the rows say stays.
    Schema,
    /// Its rows too.
    Rows,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredTable {
    /// `schema.table`
    pub name: String,
    pub may: May,
    /// With `rows`: so many rows fewer at most; 0 if left out.
    #[serde(default)]
    pub most_removed: u64,
    /// With `rows`: so many rows changed at most; any number if left out.
    #[serde(default)]
    pub most_changed: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// As `pg_controldata` and `pg_control_system()` tell it.
    pub system_identifier: String,
    pub database: String,
}

/// Where the server is after commands that make another one of it, as `pg_upgrade` does. It listens where the one of before did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct After {
    pub data: PathBuf,
    /// Where its `pg_ctl` is.
    pub programs: PathBuf,
    /// What it is started with besides, as `-c config_file=…`.
    #[serde(default)]
    pub arguments: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    file: PathBuf,
    blake3: Option<String>,
    sha256: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    id: String,
    title: String,
    mode: Mode,
    expires: Timestamp,
    commands: Vec<Vec<String>>,
    #[serde(deserialize_with = "document::duration")]
    duration: SignedDuration,
    way_back: String,
    target: Target,
    #[serde(default, rename = "script")]
    scripts: Vec<Script>,
    #[serde(default, rename = "table")]
    tables: Vec<DeclaredTable>,
    #[serde(default)]
    hand_over: bool,
    after: Option<After>,
}

/// A change as its file says, with the scripts that it runs.
#[derive(Debug, Clone)]
pub struct Change {
    pub path: PathBuf,
    pub canonical: Unbound,
    /// What is run: relative path and bytes, as they were when they were hashed.
    pub scripts: BTreeMap<PathBuf, Vec<u8>>,
}

/// What is signed but for the policy, which [`super::canonical`] adds. The order of the fields is that of the signed text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unbound {
    pub id: String,
    pub title: String,
    pub mode: Mode,
    pub target: Target,
    pub expires: Timestamp,
    pub commands: Vec<Vec<String>>,
    pub scripts: Vec<HashedScript>,
    pub tables: Vec<DeclaredTable>,
    pub duration_seconds: i64,
    pub way_back: String,
    /// The commands start the server themselves, as `pg_upgrade` does: it is stopped, but not fenced.
    pub hand_over: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<After>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashedScript {
    pub file: String,
    pub blake3: String,
}

impl Change {
    /// Reads a change and its scripts, and checks that these have their hashes.
    pub fn read(path: &Path) -> Result<Self, GuardError> {
        let (document, text) = document::read::<Document>(path)?;
        // Finds the line of what is wrong by the words that stand there.
        let wrong = |words: &str, message: String| {
            let line = text.lines().position(|line| line.contains(words)).unwrap_or(0) + 1;
            GuardError::Document { path: path.to_owned(), line, message }
        };
        let id = &document.id;
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if id.is_empty() || id.len() > 64 || id.starts_with('.') || !id.chars().all(fits) {
            return Err(wrong("id", format!("id {id:?}: write 1 to 64 letters, digits, - _ or ., as CHG-1042")));
        }
        if document.title.trim().is_empty() {
            return Err(wrong("title", "title: say in a line what is changed".into()));
        }
        if document.way_back.trim().is_empty() {
            return Err(wrong("way_back", "way_back: say how to go back if it fails".into()));
        }
        if document.commands.is_empty()
            || document.commands.iter().any(|command| command.first().is_none_or(String::is_empty))
        {
            return Err(wrong(
                "commands",
                "commands: give at least one, each a list of a program and its arguments".into(),
            ));
        }
        if document.hand_over && document.mode != Mode::Offline {
            return Err(wrong("hand_over", "hand_over: only a change in mode offline hands the server over".into()));
        }
        if let Some(after) = &document.after
            && (!document.hand_over || !after.data.is_absolute() || !after.programs.is_absolute())
        {
            return Err(wrong(
                "[after]",
                "after: goes with hand_over = true, and names data and programs by absolute paths".into(),
            ));
        }
        if document.target.system_identifier.parse::<u64>().is_err() {
            return Err(wrong(
                "system_identifier",
                "system_identifier: give the number that `pg_controldata` prints, in quotes".into(),
            ));
        }
        let mut names = BTreeSet::new();
        for table in &document.tables {
            if !table.name.contains('.') {
                return Err(wrong(
                    &table.name,
                    format!("table {:?}: name it with its schema, as public.{}", table.name, table.name),
                ));
            }
            if !names.insert(&table.name) {
                return Err(wrong(&table.name, format!("table {:?} is declared twice", table.name)));
            }
            if table.may != May::Rows && (table.most_removed > 0 || table.most_changed.is_some()) {
                return Err(wrong(
                    &table.name,
                    format!("table {:?}: most_removed and most_changed go with may = \"rows\"", table.name),
                ));
            }
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let wrong_file = |file: &str, message: String| {
            let names = |line: &str| line.trim_start().starts_with("file") && line.contains(file);
            let line = text.lines().position(names).unwrap_or(0) + 1;
            GuardError::Document { path: path.to_owned(), line, message }
        };
        let mut scripts = BTreeMap::new();
        let mut hashed = Vec::new();
        for script in &document.scripts {
            let shown = script.file.display().to_string();
            let inside = script.file.components().all(|part| matches!(part, Component::Normal(_)));
            if !inside || shown.is_empty() {
                return Err(wrong_file(
                    &shown,
                    format!("script {shown:?}: name a file beside or below the change file, without .."),
                ));
            }
            let bytes = read_script(&folder.join(&script.file))?;
            let blake3 = ObjectId::of(&bytes).to_hex();
            let sha256 = data_encoding::HEXLOWER.encode(digest::digest(&digest::SHA256, &bytes).as_ref());
            let declared = [(&script.blake3, &blake3, "BLAKE3"), (&script.sha256, &sha256, "SHA-256")];
            if declared.iter().all(|(declared, ..)| declared.is_none()) {
                return Err(wrong_file(&shown, format!("script {shown:?}: give its hash: blake3 = \"{blake3}\"")));
            }
            for (declared, found, kind) in declared {
                if declared.as_ref().is_some_and(|declared| !declared.eq_ignore_ascii_case(found)) {
                    return Err(wrong_file(
                        &shown,
                        format!(
                            "script {shown:?} has not the {kind} that is declared: the file has {found}; if that is the script you mean, write this hash and have the change approved again"
                        ),
                    ));
                }
            }
            hashed.push(HashedScript { file: shown.clone(), blake3 });
            if scripts.insert(script.file.clone(), bytes).is_some() {
                return Err(wrong_file(&shown, format!("script {shown:?} is declared twice")));
            }
        }
        // Whatever else lies there and is named by a command would be run without a hash.
        for argument in document.commands.iter().flatten() {
            let named = argument.strip_prefix("./").unwrap_or(argument);
            if folder.join(named).is_file()
                && !Path::new(named).is_absolute()
                && !scripts.contains_key(Path::new(named))
            {
                return Err(wrong(
                    argument,
                    format!(
                        "commands: {argument:?} is a file beside the change that no [[script]] declares: add it with its hash"
                    ),
                ));
            }
        }
        let canonical = Unbound {
            id: document.id,
            title: document.title,
            mode: document.mode,
            target: document.target,
            expires: document.expires,
            commands: document.commands,
            scripts: hashed,
            tables: document.tables,
            duration_seconds: document.duration.as_secs(),
            way_back: document.way_back,
            hand_over: document.hand_over,
            after: document.after,
        };
        Ok(Self { path: path.to_owned(), canonical, scripts })
    }
}

impl Unbound {
    pub fn declared(&self, table: &str) -> Option<&DeclaredTable> {
        self.tables.iter().find(|declared| declared.name == table)
    }
}

fn read_script(path: &Path) -> Result<Vec<u8>, GuardError> {
    let fail = |message: &dyn fmt::Display| GuardError::file(path, format!("the script cannot be read: {message}"));
    let size = std::fs::metadata(path).map_err(|e| fail(&e))?.len();
    if size > LARGEST_SCRIPT {
        return Err(fail(&"it is larger than 64 MiB"));
    }
    std::fs::read(path).map_err(|e| fail(&e))
}
