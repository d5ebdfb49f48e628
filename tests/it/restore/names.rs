//! What the store's schema, tables, columns and sequences are called: as the reference profile has them, or each by another name.
//!
//! No name of a mail store stands in the engine. To prove it, [`Names::rename`] gives everything a new, hostile name in the
//! database, and [`Names::profile`] says the same in the profile. Columns of one name in two tables get two names, so nothing that
//! mixes them up goes by unseen. The statements of the tests keep the old names, by temporary views of their own session alone.

use std::collections::BTreeMap;

use restante::postgres::sql;
use tokio_postgres::Client;

#[derive(Debug, Clone)]
struct Table {
    name: String,
    /// By their names in the reference store, in the order of the table.
    columns: Vec<(String, String)>,
    /// The column that draws from it, and its name there and now.
    sequence: Option<(String, String, String)>,
}

#[derive(Debug, Clone)]
pub struct Names {
    schema: String,
    tables: BTreeMap<String, Table>,
}

/// The schema, and then every table and column in turn: quotes, capitals and spaces, keywords, 63 bytes, SQL, other alphabets. Dots are
/// left out, because a profile writes `schema.table`.
const SCHEMA: &str = "Mail \"Store\" of 'O''Brien'; --";
const KEYWORDS: [&str; 17] = [
    "select", "from", "user", "order", "table", "where", "group", "column", "primary", "null", "default", "all",
    "check", "grant", "end", "case", "limit",
];

fn hostile(number: usize, word: &str) -> String {
    match number % 6 {
        0 => format!("{} \"of\" '{word}'", word.to_uppercase()),
        1 => KEYWORDS[number / 6 % KEYWORDS.len()].to_owned(),
        2 => format!("{word}{:_<63}", "").chars().take(63).collect(),
        3 => format!("x\"; DROP TABLE {word}; --"),
        4 => format!("größe_{word}_邮件"),
        _ => format!("\\{word} $1 $${{}}%s"),
    }
}

impl Names {
    /// As they are in the database.
    pub async fn of(client: &Client) -> Self {
        let columns = "SELECT c.relname, a.attname, pg_get_serial_sequence(quote_ident(c.relname), a.attname)
                       FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
                       WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
                       ORDER BY 1, a.attnum";
        let mut tables: BTreeMap<String, Table> = BTreeMap::new();
        for row in client.query(columns, &[]).await.unwrap() {
            let (table, column): (String, String) = (row.get(0), row.get(1));
            let new = Table { name: table.clone(), columns: Vec::new(), sequence: None };
            let entry = tables.entry(table).or_insert(new);
            if let Some(sequence) = row.get::<_, Option<String>>(2) {
                let sequence = sequence.trim_start_matches("public.").to_owned();
                entry.sequence = Some((column.clone(), sequence.clone(), sequence));
            }
            entry.columns.push((column.clone(), column));
        }
        assert!(!tables.is_empty(), "no tables");
        Self { schema: "public".to_owned(), tables }
    }

    /// Another name for everything.
    pub fn renamed(&self) -> Self {
        let mut new = self.clone();
        new.schema = SCHEMA.to_owned();
        for (number, (word, table)) in new.tables.iter_mut().enumerate() {
            table.name = hostile(number, word);
            if let Some((_, _, sequence)) = &mut table.sequence {
                *sequence = hostile(number + 62, sequence);
            }
            for (at, (word, name)) in table.columns.iter_mut().enumerate() {
                // Another one in each table, and a keyword not twice in one.
                *name = hostile(number * 7 + at * 5, word);
            }
            let mut all: Vec<&String> = table.columns.iter().map(|(_, name)| name).collect();
            all.sort_unstable();
            assert!(all.windows(2).all(|two| two[0] != two[1]), "{all:?}");
        }
        new
    }

    /// `"schema"."table"` of a table of the reference store.
    pub fn table(&self, table: &str) -> String {
        sql::qualified(&self.schema, &self.tables[table].name)
    }

    /// The quoted name of a column.
    pub fn column(&self, table: &str, column: &str) -> String {
        sql::identifier(self.plain(table, column).unwrap_or_else(|| panic!("no column {table}.{column}")))
    }

    fn plain(&self, table: &str, column: &str) -> Option<&str> {
        let columns = &self.tables.get(table)?.columns;
        columns.iter().find(|(old, _)| old == column).map(|(_, new)| &**new)
    }

    /// Renames everything in a store that has the reference's names, and gives this session the old ones as views.
    pub async fn rename(&self, client: &Client) {
        let mut statements = vec![format!("ALTER SCHEMA public RENAME TO {}", sql::identifier(&self.schema))];
        let schema = sql::identifier(&self.schema);
        for (old, table) in &self.tables {
            let before = sql::qualified(&self.schema, old);
            for (from, to) in &table.columns {
                let (from, to) = (sql::identifier(from), sql::identifier(to));
                statements.push(format!("ALTER TABLE {before} RENAME COLUMN {from} TO {to}"));
            }
            if let Some((_, from, to)) = &table.sequence {
                let from = sql::qualified(&self.schema, from);
                statements.push(format!("ALTER SEQUENCE {from} RENAME TO {}", sql::identifier(to)));
            }
            statements.push(format!("ALTER TABLE {before} RENAME TO {}", sql::identifier(&table.name)));
            let list: Vec<String> = table
                .columns
                .iter()
                .map(|(old, new)| format!("{} AS {}", sql::identifier(new), sql::identifier(old)))
                .collect();
            let (list, new) = (list.join(", "), self.table(old));
            statements.push(format!("CREATE TEMPORARY VIEW {} AS SELECT {list} FROM {new}", sql::identifier(old)));
        }
        statements.push(format!("SET search_path = {schema}"));
        statements.push(self.fill(include_str!("renamed.sql")));
        client.batch_execute(&statements.join(";\n")).await.unwrap_or_else(|error| panic!("{error:?}"));
    }

    /// Puts names in for `{table}` and `{table.column}`.
    fn fill(&self, template: &str) -> String {
        let mut filled = String::new();
        for (at, piece) in template.split(['{', '}']).enumerate() {
            match (at % 2, piece.split_once('.')) {
                (0, _) => filled += piece,
                (_, Some((table, column))) => filled += &self.column(table, column),
                (_, None) => filled += &self.table(piece),
            }
        }
        filled
    }

    /// The profile of the store under these names. Nothing but names changes.
    pub fn profile(&self, reference: &str) -> String {
        let mut root: toml::Table = reference.parse().unwrap();
        let message = root["message"]["table"].as_str().unwrap().to_owned();
        root.insert("schema".to_owned(), self.schema.clone().into());
        for table in root["never"].as_array_mut().unwrap() {
            *table = self.tables[table.as_str().unwrap()].name.clone().into();
        }
        for mark in root["recognise"]["columns"].as_array_mut().unwrap() {
            let (table, column) = mark.as_str().unwrap().split_once('.').unwrap();
            *mark = format!("{}.{}", self.tables[table].name, self.plain(table, column).unwrap()).into();
        }
        for (_, part) in root.iter_mut().filter(|(key, _)| *key != "recognise") {
            match part {
                toml::Value::Table(part) => self.part(part, &message, &message),
                toml::Value::Array(parts) => {
                    parts.iter_mut().filter_map(|part| part.as_table_mut()).for_each(|part| {
                        self.part(part, &message, &message);
                    });
                }
                _ => {}
            }
        }
        toml::to_string(&root).unwrap()
    }

    /// A part of the profile that is about `table`, if it does not name another one.
    fn part(&self, part: &mut toml::Table, table: &str, message: &str) {
        let table = part.get("table").and_then(|table| table.as_str()).unwrap_or(table).to_owned();
        let renamed = |name: &str| self.plain(&table, name).map(str::to_owned);
        let keys = |part: &mut toml::Table| {
            *part =
                std::mem::take(part).into_iter().map(|(key, value)| (renamed(&key).unwrap_or(key), value)).collect();
        };
        for (key, value) in part.iter_mut() {
            match (&**key, value) {
                ("table", value) => *value = self.tables[&table].name.clone().into(),
                // SQL over the row.
                ("live" | "over_quota", toml::Value::String(text)) => {
                    let words =
                        text.split(' ').map(|word| renamed(word).map_or(word.to_owned(), |new| sql::identifier(&new)));
                    *text = words.collect::<Vec<_>>().join(" ");
                }
                ("set", toml::Value::Table(set)) => keys(set),
                ("evidence", toml::Value::Table(evidence)) => {
                    keys(evidence);
                    for (_, of) in evidence.iter_mut() {
                        *of = self.plain(message, of.as_str().unwrap()).unwrap().into();
                    }
                }
                ("kind" | "clock" | "assembly", _) => {}
                (_, toml::Value::String(name)) => *name = renamed(name).unwrap_or(name.clone()),
                (_, toml::Value::Table(inner)) => self.part(inner, &table, message),
                (_, toml::Value::Array(list)) => {
                    for one in list {
                        match one {
                            toml::Value::String(name) => *name = renamed(name).unwrap_or(name.clone()),
                            toml::Value::Table(inner) => self.part(inner, &table, message),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// Beside the model over a renamed store: names that are no words of their own are looked for in the text of the engine.
#[test]
fn no_name_of_the_reference_store_stands_in_the_engine() {
    fn words(text: &str) -> impl Iterator<Item = &str> {
        text.split(|c: char| !(c.is_ascii_lowercase() || c == '_')).filter(|word| word.contains('_'))
    }
    // Mail itself has these two.
    let statements = restante_fixtures::store::SCHEMA.lines().filter_map(|line| line.split("--").next());
    let names: std::collections::BTreeSet<&str> =
        statements.flat_map(words).filter(|word| !matches!(*word, "message_id" | "content_type")).collect();
    assert!(names.contains("saved_at") && names.contains("message_attachments"), "{names:?}");
    let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") && !path.ends_with("profile/tests.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let found: Vec<&str> = words(&text).filter(|word| names.contains(word)).collect();
                assert!(found.is_empty(), "{} names {found:?} of a mail store", path.display());
                files += 1;
            }
        }
    }
    assert!(files > 50, "{files} files");
}
