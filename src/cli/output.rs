//! What commands print: text for people on standard output, or JSON lines. Names of mailboxes, tables and tags are other
//! people's text; nothing of it reaches a terminal as a control sequence.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

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
            println!("{}", serde_json::Value::Object(object));
        }
        Ok(())
    }

    /// A line of a result; nothing in JSON mode.
    pub fn line(&self, text: impl AsRef<str>) {
        if !self.json {
            println!("{}", inert(text.as_ref()));
        }
    }

    /// A line that is no result; not with `-q`.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.json && !self.quiet {
            eprintln!("{}", inert(text.as_ref()));
        }
    }

    pub fn table(&self, table: &Table) {
        if !self.json {
            println!("{}", table.trim_fmt());
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

/// The text without anything that a terminal would obey: control characters, and those that turn the direction of writing.
/// Line ends stay.
pub fn inert(text: &str) -> String {
    let hostile = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    if !text.contains(hostile) {
        return text.to_owned();
    }
    text.chars().map(|c| if hostile(c) { format!("\\u{{{:x}}}", u32::from(c)) } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::inert;

    #[test]
    fn no_escape_sequence_reaches_the_terminal() {
        let hostile = "a\u{1b}[31mred\u{7}\u{9b}2J\u{202e}txt\r";
        let shown = inert(hostile);
        assert!(!shown.chars().any(|c| c.is_control() || c == '\u{202e}'), "{shown:?}");
        assert!(shown.contains("red") && shown.contains("\\u{1b}"));
    }
}
