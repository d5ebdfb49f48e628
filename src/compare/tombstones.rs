//! What users deleted themselves.
//!
//! A tombstone proves a deletion by the key *and* the creation evidence that it recorded; its key alone may have been issued again.
//! Under another key the mailbox and the evidence must agree: so a restored copy that its user deleted stays deleted, whatever became
//! of the journal. Where a tombstone keeps the content, the content is its record. Each tombstone stands for one message. Memory: those
//! tombstones alone whose evidence a lost row has.

use std::collections::{HashMap, HashSet};

use super::error::CompareError;
use super::layout::{Layout, Tombstone, sent_key};
use super::live;
use super::past::Past;
use super::row::{Print, Printer, Reason, Row};
use crate::postgres::session::Session;
use crate::postgres::sql;

#[derive(Debug, Default)]
pub struct Tombstones {
    /// Key and evidence.
    exact: HashMap<Print, u32>,
    /// Mailbox and evidence, and of which exact ones.
    loose: HashMap<Print, Vec<Print>>,
}

/// The prints by which a lost row asks for its tombstone.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub exact: Print,
    pub loose: Print,
}

impl Wanted {
    /// `mailbox` is the live key of the mailbox that the row belongs to.
    pub fn of(layout: &Layout, row: &Row, mailbox: &[u8]) -> Option<Self> {
        if !layout.records_deletions() {
            return None;
        }
        let key = row[layout.message.table.single_key().ok()?].bytes();
        let evidence: Vec<_> = layout.buried_evidence().into_iter().map(|at| row[at].bytes()).collect();
        Some(Self::from(key, Some(mailbox), &evidence))
    }

    fn from(key: Option<&[u8]>, mailbox: Option<&[u8]>, evidence: &[Option<&[u8]>]) -> Self {
        let print = |first: Option<&[u8]>| Printer::default().add(first).all(evidence.iter().copied()).finish();
        Self { exact: print(key), loose: print(mailbox) }
    }
}

impl Tombstones {
    /// Reads all tombstones and keeps those that somebody asks for.
    pub async fn read(
        session: &Session,
        layout: &Layout,
        wanted: &[Wanted],
        past: &Past,
    ) -> Result<Self, CompareError> {
        let exact: HashSet<Print> = wanted.iter().map(|wanted| wanted.exact).collect();
        let loose: HashSet<Print> = wanted.iter().map(|wanted| wanted.loose).collect();
        let mut found = Self::default();
        // All tables of tombstones must record the same of a message; the first one says what.
        let tables =
            layout.tombstones.iter().filter(|one| one.message.is_some() && !one.proves(&layout.message).is_empty());
        let mut selects = tables.map(|table| select(layout, table)).collect::<Result<Vec<_>, _>>()?;
        let evidence = layout.buried_evidence();
        if layout.buried.as_ref().is_some_and(|_| !evidence.is_empty()) {
            let message = &layout.message;
            let mut columns = vec![message.table.single_key()?, message.mailbox];
            columns.extend(&evidence);
            let columns = message.table.select(&columns, "m");
            selects.push(format!("SELECT {columns} FROM {} m WHERE NOT ({})", message.table.quoted(), layout.shown()));
        }
        for select in selects {
            let row = &mut |row: &[Option<&[u8]>]| {
                let own = Wanted::from(row[0], row[1], &row[2..]);
                if past.is_undone(&own.exact) {
                    return Ok(());
                }
                if exact.contains(&own.exact) || loose.contains(&own.loose) {
                    *found.exact.entry(own.exact).or_default() += 1;
                    found.loose.entry(own.loose).or_default().push(own.exact);
                }
                Ok(())
            };
            live::copy(session, "reading the tombstones", &select, 2 + evidence.len(), row).await?;
        }
        Ok(found)
    }

    /// Takes the tombstone of exactly this row.
    pub fn take_exact(&mut self, wanted: &Wanted) -> Option<Reason> {
        let left = self.exact.get_mut(&wanted.exact).filter(|left| **left > 0)?;
        *left -= 1;
        Some(Reason::Tombstone)
    }

    /// Takes a tombstone of another key; call it when every row has asked for its own.
    pub fn take_by_evidence(&mut self, wanted: &Wanted) -> Option<Reason> {
        let list = self.loose.get_mut(&wanted.loose)?;
        let free = list.iter().find(|exact| self.exact.get(exact).is_some_and(|left| *left > 0)).copied()?;
        *self.exact.get_mut(&free)? -= 1;
        Some(Reason::TombstoneByEvidence)
    }
}

fn select(layout: &Layout, tombstone: &Tombstone) -> Result<String, CompareError> {
    let message = &layout.message;
    let content = message.content.as_ref().filter(|_| tombstone.keeps_content);
    let copied = |at: usize| {
        let name = tombstone.copied(message, at)?;
        Some(format!("t.{}::{}", sql::identifier(name), wire_type(&message.table, at)))
    };
    // What the content itself says.
    let kept = |at: usize| {
        let content = content?;
        Some(content.table.expression(at.checked_sub(content.first)?, "c"))
    };
    let key = message.table.single_key()?;
    let sent = if message.link.key.len() > 1 { sent_key(&message.link, copied)? } else { copied(key) };
    let null = |at: usize| format!("NULL::{}", wire_type(&message.table, at));
    let mut list = vec![sent.unwrap_or_else(|| null(key))];
    let proves = tombstone.proves(message);
    list.extend(
        std::iter::once(message.mailbox)
            .chain(proves)
            .map(|at| copied(at).or_else(|| kept(at)).unwrap_or_else(|| null(at))),
    );
    let join = match (content, &tombstone.message) {
        (Some(content), Some(own)) => format!(
            "JOIN {} c ON c.{} = t.{}",
            content.table.quoted(),
            content.table.ident(content.table.single_key()?),
            sql::identifier(own)
        ),
        _ => String::new(),
    };
    Ok(format!("SELECT {} FROM {} t {join}", list.join(", "), tombstone.name.quoted()))
}

fn wire_type(table: &super::layout::Table, column: usize) -> &str {
    let column = &table.columns[column];
    if column.text { "text" } else { &column.type_name }
}
