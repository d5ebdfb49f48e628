//! Reading restored rows again, column by column, and completing the journal.

use std::collections::BTreeMap;

use super::batch::Batch;
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
        for (kind, child) in layout.belonging().enumerate() {
            let stage = Stage::of(layout, kind);
            let content = if let Stage::Via(kind) = stage { vec![layout.parts[kind].part] } else { Vec::new() };
            let stage = stage.name().quoted();
            let expected: Vec<usize> = child.set.keys().chain(&child.issued).copied().collect();
            let held = is_held(layout, child, "s");
            differences(session, &child.table, &stage, &child.by(), &expected, &content, &held, &mut changed).await?;
        }
        Ok(changed)
    }

    /// Completes the journal: the new UID, the print of the row as it is now, and the state that undoing asks for.
    pub(super) async fn record(&self, session: &Session) -> Result<(), ReplayError> {
        let layout = &self.plan.comparison.layout;
        let message = &layout.message;
        let mut columns = vec![message.table.single_key()?];
        columns.extend(&message.evidence);
        let uid = message.uid.map_or("NULL::int8".to_owned(), |at| format!("m.{}::int8", message.table.ident(at)));
        let same = message.link.key.iter().map(|at| format!("m.{0} = s.{0}", message.link.ident(*at)));
        let rows = format!(
            "{} m JOIN {} s ON {}",
            message.table.quoted(),
            Stage::Message.name().quoted(),
            same.collect::<Vec<_>>().join(" AND ")
        );
        let select =
            format!("SELECT {}, {uid}, {} FROM {rows}", message.key_text("m"), message.table.select(&columns, "m"));
        let (mut keys, mut uids, mut prints) = (Vec::new(), Vec::new(), Vec::new());
        live::copy(session, "reading restored mail", &select, 2 + columns.len(), &mut |row| {
            keys.push(String::from_utf8_lossy(row[0].unwrap_or_default()).into_owned());
            uids.push(row[1].and_then(|bytes| zone::integer(bytes, false)));
            prints.push(row_print(row[2], row[3..].iter().copied()).0.to_vec());
            Ok(())
        })
        .await?;
        // Computed once for each row, and the journal is entered by its unique key: else the planner is free to do either again and again.
        let sql = format!(
            "WITH q AS MATERIALIZED (SELECT {} AS k, {} AS state FROM {rows}) \
             UPDATE {JOURNAL} j SET uid = v.u, restored = v.r, state = q.state \
             FROM q JOIN unnest($2::text[], $3::int8[], $4::bytea[]) v(k, u, r) ON v.k = q.k \
             WHERE j.source = ANY($5) AND j.key = q.k AND j.replay = $1 AND j.undone IS NULL",
            message.key_text("m"),
            super::undo::state(layout)?
        );
        let sources: Vec<&[u8]> = self.items.iter().map(|item| &item.leftover.source.0[..]).collect();
        let failed = PostgresError::server("completing the journal");
        session.client().execute(&sql, &[&self.replay, &keys, &uids, &prints, &sources]).await.map_err(failed)?;
        Ok(())
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
