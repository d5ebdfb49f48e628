//! Reading restored rows again, column by column, and writing the journal.

use std::collections::{BTreeMap, HashMap};

use super::batch::{Batch, Item, Key};
use super::error::ReplayError;
use super::staging::Stage;
use super::write::{is_held, live_type};
use crate::compare::classify::row_print;
use crate::compare::layout::Table;
use crate::compare::live;
use crate::compare::past::JOURNAL;
use crate::postgres::PostgresError;
use crate::postgres::session::Session;
use crate::repository::zone;

impl Batch<'_> {
    /// Reads every row back, column by column; content must be equal, other columns are reported.
    pub(super) async fn read_again(&self, session: &Session) -> Result<BTreeMap<String, u64>, ReplayError> {
        let layout = &self.plan.comparison.layout;
        let message = &layout.message;
        let mut changed = BTreeMap::new();
        let body = message.body.columns();
        let links = (&message.link, Stage::Message, message.set.keys().chain(&message.regenerate));
        let content = message.content.as_ref();
        let contents = content.map(|one| (&one.table, Stage::Content, one.set.keys().chain(&one.regenerate)));
        for (table, stage, expected) in std::iter::once(links).chain(contents) {
            let stage = stage.name().quoted();
            let expected: Vec<usize> = expected.copied().collect();
            let first = content.filter(|_| table.label() != message.link.label()).map_or(0, |content| content.first);
            let body: Vec<usize> = body.iter().filter_map(|at| at.checked_sub(first)).collect();
            let found = differences(session, table, &stage, &table.key, &expected, &body, "true", &mut changed).await?;
            let sql = format!("SELECT count(*) FROM {stage}");
            let failed = PostgresError::server("reading restored rows again");
            let staged: i64 = session.client().query_one(&sql, &[]).await.map_err(failed)?.get(0);
            if found != staged {
                let (rows, columns) = (staged - found, "their keys".to_owned());
                return Err(ReplayError::Altered { table: table.label(), columns, rows });
            }
        }
        for (kind, child) in layout.belonging().enumerate().filter(|(kind, _)| self.has(*kind)) {
            let stage = Stage::of(layout, kind);
            let content = if let Stage::Via(kind) = stage { vec![layout.parts[kind].part] } else { Vec::new() };
            let stage = stage.name().quoted();
            let expected: Vec<usize> = child.set.keys().chain(&child.issued).copied().collect();
            let held = is_held(layout, child, "s");
            differences(session, &child.table, &stage, &child.by(), &expected, &content, &held, &mut changed).await?;
        }
        Ok(changed)
    }

    /// Writes the journal: the new UID, the print of the row as it is now, and the state that undoing asks for. Its unique key decides
    /// who restores a message.
    pub(super) async fn record(&self, session: &Session, placed: &[usize], keys: &[Key]) -> Result<(), ReplayError> {
        let layout = &self.plan.comparison.layout;
        let message = &layout.message;
        let mut columns = vec![message.table.single_key()?];
        columns.extend(&message.evidence);
        let uid = message.uid.map_or("NULL::int8".to_owned(), |at| format!("m.{}::int8", message.table.ident(at)));
        let same = message.link.key.iter().map(|at| format!("m.{0} = s.{0}", message.link.ident(*at)));
        let select = format!(
            "SELECT {}, {}, {uid}, {} FROM {} m JOIN {} s ON {}",
            message.key_text("m"),
            super::undo::state(layout)?,
            message.table.select(&columns, "m"),
            message.table.quoted(),
            Stage::Message.name().quoted(),
            same.collect::<Vec<_>>().join(" AND ")
        );
        let items: HashMap<&str, &Item<'_>> = placed.iter().map(|at| (&*keys[*at].text, &self.items[*at])).collect();
        let (mut sources, mut mailboxes, mut own, mut uids) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut prints, mut states) = (Vec::new(), Vec::new());
        live::copy(session, "reading restored mail", &select, 3 + columns.len(), &mut |row| {
            let text = |at: usize| String::from_utf8_lossy(row[at].unwrap_or_default()).into_owned();
            let key = text(0);
            let Some(item) = items.get(&*key) else { return Ok(()) };
            sources.push(&item.leftover.source.0[..]);
            mailboxes.push(&*item.target.key_text);
            own.push(key);
            states.push(text(1));
            uids.push(row[2].and_then(|bytes| zone::integer(bytes, false)));
            prints.push(row_print(row[3], row[4..].iter().copied()).0.to_vec());
            Ok(())
        })
        .await?;
        let sql = format!(
            "INSERT INTO {JOURNAL} (source, replay, mailbox, key, uid, restored, state) \
             SELECT s, $1, m, k, u, r, t FROM unnest($2::bytea[], $3::text[], $4::text[], $5::int8[], $6::bytea[], $7::text[]) q(s, m, k, u, r, t) \
             ORDER BY s ON CONFLICT (source, copy) WHERE undone IS NULL DO NOTHING"
        );
        let failed = PostgresError::server("writing the journal");
        let written = session
            .client()
            .execute(&sql, &[&self.replay, &sources, &mailboxes, &own, &uids, &prints, &states])
            .await
            .map_err(failed)?;
        if written == placed.len() as u64 { Ok(()) } else { Err(ReplayError::Overtaken) }
    }
}

/// Counts, column by column, the staged rows that live rows differ from; how many were found.
#[allow(clippy::too_many_arguments)]
async fn differences(
    session: &Session,
    table: &Table,
    stage: &str,
    by: &[usize],
    expected: &[usize],
    content: &[usize],
    condition: &str,
    changed: &mut BTreeMap<String, u64>,
) -> Result<i64, ReplayError> {
    let columns: Vec<usize> =
        table.all().into_iter().filter(|at| !expected.contains(at) && table.columns[*at].live.is_some()).collect();
    let differs = |at: &usize| {
        let (name, column) = (table.ident(*at), &table.columns[*at]);
        // Not every type has an equality; text has.
        if column.type_name == "bytea" {
            format!("count(*) FILTER (WHERE t.{name} IS DISTINCT FROM s.{name})")
        } else {
            format!("count(*) FILTER (WHERE t.{name}::text IS DISTINCT FROM s.{name}::{}::text)", live_type(table, *at))
        }
    };
    let join: Vec<String> =
        by.iter().map(|at| format!("t.{0} = s.{0}::{1}", table.ident(*at), live_type(table, *at))).collect();
    let sql = format!(
        "SELECT count(*){} FROM {stage} s JOIN {} t ON {} WHERE {condition}",
        columns.iter().map(|at| format!(", {}", differs(at))).collect::<String>(),
        table.quoted(),
        join.join(" AND ")
    );
    let row =
        session.client().query_one(&sql, &[]).await.map_err(PostgresError::server("reading restored rows again"))?;
    for (place, at) in columns.iter().enumerate() {
        let rows: i64 = row.get(1 + place);
        if rows == 0 {
            continue;
        }
        let column = &table.columns[*at].name;
        if content.contains(at) {
            return Err(ReplayError::Altered { table: table.label(), columns: column.clone(), rows });
        }
        *changed.entry(format!("{}.{column}", table.label())).or_default() += rows as u64;
    }
    Ok(row.get(0))
}
