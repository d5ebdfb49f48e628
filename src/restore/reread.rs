//! Reading restored rows again, column by column, and completing the journal.

use std::collections::BTreeMap;

use super::batch::Batch;
use super::error::ReplayError;
use super::staging::Stage;
use super::write::live_type;
use crate::compare::classify::row_print;
use crate::compare::layout::Table;
use crate::compare::live;
use crate::compare::past::JOURNAL;
use crate::postgres::PostgresError;
use crate::postgres::session::Session;
use crate::repository::zone;

impl Batch<'_> {
    /// Reads every row back, column by column; content must be equal, other columns are reported.
    pub(super) async fn read_again(
        &self,
        session: &Session,
        messages: usize,
    ) -> Result<BTreeMap<String, u64>, ReplayError> {
        let layout = &self.plan.comparison.layout;
        let message = &layout.message;
        let mut changed = BTreeMap::new();
        let expected: Vec<usize> = message.set.keys().copied().chain(message.regenerate.iter().copied()).collect();
        let stage = Stage::Message.name().quoted();
        let all = "true".to_owned();
        let found = differences(
            session,
            &message.table,
            &stage,
            &message.table.key,
            &expected,
            message.body.columns(),
            &all,
            &mut changed,
        )
        .await?;
        if found != messages as i64 {
            let rows = messages as i64 - found;
            return Err(ReplayError::Altered { table: message.table.label(), columns: "their keys".to_owned(), rows });
        }
        let of = |child: usize, table: &Table| {
            format!(
                "EXISTS (SELECT FROM {stage} m WHERE m.{} = s.{})",
                message.table.ident(message.table.key[0]),
                table.ident(child)
            )
        };
        for (kind, part) in layout.parts.iter().enumerate() {
            let (via, stage) = (&part.via, Stage::Via(kind).name().quoted());
            let by: Vec<usize> = std::iter::once(via.of).chain(via.natural.iter().copied()).collect();
            differences(session, &via.table, &stage, &by, &[], &[part.part], &of(via.of, &via.table), &mut changed)
                .await?;
        }
        for (kind, child) in layout.children.iter().enumerate() {
            let stage = Stage::Child(kind).name().quoted();
            let by: Vec<usize> = std::iter::once(child.of).chain(child.natural.iter().copied()).collect();
            let expected: Vec<usize> = child.set.keys().chain(&child.issued).copied().collect();
            differences(session, &child.table, &stage, &by, &expected, &[], &of(child.of, &child.table), &mut changed)
                .await?;
        }
        Ok(changed)
    }

    /// Completes the journal: the new UID, the print of the row as it is now, and the state that undoing asks for.
    pub(super) async fn record(&self, session: &Session) -> Result<(), ReplayError> {
        let layout = &self.plan.comparison.layout;
        let message = &layout.message;
        let key = message.table.single_key()?;
        let mut columns = vec![key];
        columns.extend(&message.evidence);
        let uid = message.uid.map_or("NULL::int8".to_owned(), |at| format!("m.{}::int8", message.table.ident(at)));
        let select = format!(
            "SELECT m.{0}::text, {uid}, {1} FROM {2} m JOIN {3} s ON m.{0} = s.{0}",
            message.table.ident(key),
            message.table.select(&columns, "m"),
            message.table.quoted(),
            Stage::Message.name().quoted()
        );
        let (mut keys, mut uids, mut prints) = (Vec::new(), Vec::new(), Vec::new());
        live::copy(session, "reading restored mail", &select, 2 + columns.len(), &mut |row| {
            keys.push(String::from_utf8_lossy(row[0].unwrap_or_default()).into_owned());
            uids.push(row[1].and_then(|bytes| zone::integer(bytes, false)));
            prints.push(row_print(row[2], row[3..].iter().copied()).0.to_vec());
            Ok(())
        })
        .await?;
        let key_type = message.table.columns[key].live.as_ref().map_or("text", |live| &live.type_name);
        let sql = format!(
            "UPDATE {JOURNAL} j SET uid = v.u, restored = v.r, state = {} \
             FROM unnest($2::text[], $3::int8[], $4::bytea[]) v(k, u, r), {} m \
             WHERE m.{} = v.k::{key_type} AND j.key = v.k AND j.replay = $1 AND j.undone IS NULL",
            super::undo::state(layout)?,
            message.table.quoted(),
            message.table.ident(key)
        );
        let failed = PostgresError::server("completing the journal");
        session.client().execute(&sql, &[&self.replay, &keys, &uids, &prints]).await.map_err(failed)?;
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
