//! What commands print: text for people on standard output, or JSON lines. Names of mailboxes, tables and tags are other
//! people's text; nothing of it reaches a terminal as a control sequence.

use std::io::{ErrorKind, Write};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

pub use crate::report::inert::inert;
use crate::report::inert::inert_json;

/// A line on standard output. Where nobody reads it any more (`| head`), the work goes on: it may be half of a restore.
pub fn print(line: impl std::fmt::Display) {
    if let Err(error) = writeln!(std::io::stdout().lock(), "{line}")
        && error.kind() != ErrorKind::BrokenPipe
    {
        complain(format!("restante: cannot write to standard output: {error}"));
    }
}

/// A line on standard error.
pub fn complain(line: impl std::fmt::Display) {
    // There is nobody left to tell.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Where results go.
#[derive(Debug, Clone)]
pub struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    pub fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    pub fn is_json(&self) -> bool {
        self.json
    }

    /// A JSON line of the given type; nothing in text mode.
    pub fn json<T: Serialize>(&self, kind: &str, value: &T) -> anyhow::Result<()> {
        if self.json {
            let mut object = serde_json::Map::new();
            object.insert("type".into(), kind.into());
            match serde_json::to_value(value)? {
                serde_json::Value::Object(fields) => object.extend(fields),
                other => {
                    object.insert("value".into(), other);
                }
            }
            print(inert_json(&serde_json::Value::Object(object)));
        }
        Ok(())
    }

    /// A line of a result; nothing in JSON mode.
    pub fn line(&self, text: impl AsRef<str>) {
        if !self.json {
            print(inert(text.as_ref()));
        }
    }

    /// Several lines of ours.
    pub fn lines(&self, text: &str) {
        text.lines().for_each(|line| self.line(line));
    }

    /// A line that is no result; not with `-q`.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.json && !self.quiet {
            complain(inert(text.as_ref()));
        }
    }

    pub fn table(&self, table: &Table) {
        if !self.json {
            print(table.trim_fmt());
        }
    }
}

/// A table without borders; columns named in `right` hold numbers.
pub fn table(columns: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(columns.iter().copied());
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
