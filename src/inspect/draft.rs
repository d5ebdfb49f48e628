//! A draft while it is being made: guesses in the order of the profile, each with what speaks for it, and which table has a role already.

use std::collections::BTreeMap;

use serde::Serialize;
use toml::Value;

use super::counters::Counter;
use super::skeleton::{Point, Skeleton};
use super::store::{At, Store};

/// How far a guess can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// Something speaks for it, a person must look.
    Guess,
    /// Several things speak for it.
    Likely,
    /// The catalog says so, or the rows do without exception.
    Sure,
}

impl Confidence {
    pub fn of(points: &[Point]) -> Self {
        match points.iter().map(|(points, _)| points).sum::<i32>() {
            6.. => Self::Sure,
            3..=5 => Self::Likely,
            _ => Self::Guess,
        }
    }
}

/// One line of the profile.
#[derive(Debug, Clone, Serialize)]
pub struct Guess {
    pub key: String,
    /// None where a person must find it.
    pub value: Option<Value>,
    pub confidence: Confidence,
    /// Sentences; no value of any row.
    pub evidence: Vec<String>,
    /// What a person must decide.
    pub question: Option<String>,
}

/// A table of the profile: `[mailbox]`; without a header what stands above the first.
#[derive(Debug, Clone, Serialize)]
pub struct Section {
    pub header: String,
    pub guesses: Vec<Guess>,
}

impl Section {
    pub fn new(header: &str) -> Self {
        Self { header: header.to_owned(), guesses: Vec::new() }
    }

    /// Adds a line; what follows may say more about it.
    pub fn say(
        &mut self,
        key: &str,
        value: impl Into<Value>,
        confidence: Confidence,
        evidence: impl Into<String>,
    ) -> &mut Guess {
        let evidence: String = evidence.into();
        let evidence = if evidence.is_empty() { Vec::new() } else { vec![evidence] };
        self.push(Guess { key: key.to_owned(), value: Some(value.into()), confidence, evidence, question: None })
    }

    fn push(&mut self, guess: Guess) -> &mut Guess {
        self.guesses.push(guess);
        let last = self.guesses.len() - 1;
        &mut self.guesses[last]
    }

    /// Something that is not said, and a person may have to.
    pub fn ask(&mut self, key: &str, question: impl Into<String>) {
        let question = Some(question.into());
        self.push(Guess {
            key: key.to_owned(),
            value: None,
            confidence: Confidence::Guess,
            evidence: Vec::new(),
            question,
        });
    }
}

impl Guess {
    pub fn ask(&mut self, question: impl Into<String>) {
        self.question = Some(question.into());
    }
}

/// What is known so far.
pub struct Drafting<'a> {
    pub store: &'a Store<'a>,
    pub skeleton: &'a Skeleton,
    pub sections: Vec<Section>,
    /// Tables with a role.
    pub roles: BTreeMap<usize, &'static str>,
    pub uid: Option<Issued>,
    pub modseq: Option<Issued>,
    /// The time by which a row of mail was made, where it is the message's own column.
    pub saved: Option<At>,
    pub size: Option<At>,
    /// The column with mail or headers.
    pub raw: Option<At>,
}

/// How UIDs or MODSEQs are issued.
#[derive(Debug, Clone)]
pub struct Issued {
    pub content: At,
    pub counter: Option<Counter>,
}

impl<'a> Drafting<'a> {
    pub fn new(store: &'a Store<'a>, skeleton: &'a Skeleton) -> Self {
        let mut roles = BTreeMap::from([(skeleton.mailbox, "mailbox"), (skeleton.link.from, "link")]);
        roles.insert(skeleton.message, "message");
        roles.extend(skeleton.owner.iter().map(|owner| (owner.to, "owner")));
        Self {
            store,
            skeleton,
            sections: Vec::new(),
            roles,
            uid: None,
            modseq: None,
            saved: None,
            size: None,
            raw: None,
        }
    }

    pub fn is_free(&self, table: usize) -> bool {
        !self.roles.contains_key(&table)
    }

    /// The schema of the mail, for all tables that do not say another.
    pub fn schema(&self) -> &'a str {
        &self.store.table(self.skeleton.message).name.schema
    }

    pub fn name(&self, table: usize) -> String {
        let name = &self.store.table(table).name;
        if name.schema == self.schema() && !name.name.contains('.') { name.name.clone() } else { name.to_string() }
    }

    pub fn column(&self, at: At) -> String {
        self.store.column(at).name.clone()
    }

    /// One name, or a list of them.
    pub fn columns(&self, table: usize, columns: &[usize]) -> Value {
        let name = |at: &usize| Value::String(self.column((table, *at)));
        if let [only] = columns { name(only) } else { Value::Array(columns.iter().map(name).collect()) }
    }

    pub fn list(&self, table: usize, columns: &[usize]) -> Value {
        Value::Array(columns.iter().map(|at| Value::String(self.column((table, *at)))).collect())
    }

    /// The name of a column in SQL.
    pub fn sql(&self, at: At) -> String {
        let name = &self.store.column(at).name;
        let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        let quoted = || crate::postgres::sql::identifier(name);
        // A word that SQL keeps for itself is quoted like any other: there is no harm in it.
        if plain && name.contains('_') { name.clone() } else { quoted() }
    }

    /// The columns by which a table without a primary key tells its rows apart, if any does.
    pub fn other_key(&self, table: usize) -> Option<Vec<usize>> {
        let found = self.store.table(table);
        if !found.primary_key.is_empty() {
            return None;
        }
        found.unique.iter().find(|key| key.iter().all(|at| found.columns[*at].not_null)).cloned()
    }
}

pub fn sentences(points: &[Point]) -> Vec<String> {
    points.iter().filter(|(points, _)| *points > 0).map(|(_, sentence)| sentence.clone()).collect()
}

pub fn table(pairs: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    Value::Table(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}
