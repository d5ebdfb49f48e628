//! Staging, numbering and inserting the messages of a batch.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;

use super::batch::Batch;
use super::dictionaries::{self, Entries};
use super::error::ReplayError;
use super::look::Locked;
use super::staging::{self, NUMBER, Stage, StagedRow};
use crate::compare::layout::{Layout, Table};
use crate::compare::past::JOURNAL;
use crate::postgres::PostgresError;
use crate::postgres::session::Session;
use crate::postgres::sql;

impl Batch<'_> {
    pub(super) async fn stage(&self, session: &Session) -> Result<(), ReplayError> {
        let layout = &self.plan.comparison.layout;
        let messages: Vec<StagedRow> = self.items.iter().map(|item| item.row.clone()).collect();
        let mut staged = vec![(Stage::Message, messages)];
        for kind in 0..layout.parts.len() {
            staged
                .push((Stage::Via(kind), self.items.iter().flat_map(|item| item.via[kind].iter().cloned()).collect()));
            staged.push((Stage::Part(kind), self.parts[kind].values().cloned().collect()));
        }
        for kind in 0..layout.children.len() {
            let rows = self.items.iter().flat_map(|item| item.children[kind].iter().cloned()).collect();
            staged.push((Stage::Child(kind), rows));
        }
        staged.retain(|(_, rows)| !rows.is_empty());
        for (stage, rows) in &staged {
            staging::fill(session, layout, *stage, rows).await?;
        }
        // Nobody else counts temporary tables; not knowing how few rows there are, the planner reads whole live tables to join them.
        let counted = staged.iter().map(|(stage, _)| format!("{} ({NUMBER})", stage.name().quoted()));
        let counted = counted.collect::<Vec<_>>().join(", ");
        session.execute("counting what is staged", &format!("ANALYZE {counted}")).await?;
        Ok(())
    }

    /// Assigns UIDs and MODSEQs as delivery does, and removes what was not claimed from the staging table.
    pub(super) async fn number(
        &self,
        session: &Session,
        claimed: &[usize],
        locked: &HashMap<Bytes, Locked>,
    ) -> Result<(), ReplayError> {
        let layout = &self.plan.comparison.layout;
        let (message, mailbox) = (&layout.message, &layout.mailbox);
        let mut counts: BTreeMap<&Bytes, i64> = BTreeMap::new();
        let (mut numbers, mut uids, mut modseqs) = (Vec::new(), Vec::new(), Vec::new());
        for at in claimed {
            let key = &self.items[*at].target.key;
            let Some(state) = locked.get(key) else { continue };
            let count = counts.entry(key).or_default();
            numbers.push(*at as i64);
            uids.push(state.uid + *count + i64::from(!mailbox.uid_is_next));
            modseqs.push(state.modseq + i64::from(!mailbox.modseq_is_next));
            *count += 1;
        }
        let stage = Stage::Message.name().quoted();
        let failed = || PostgresError::server("numbering mail");
        let delete = format!("DELETE FROM {stage} WHERE NOT ({NUMBER} = ANY($1))");
        session.client().execute(&delete, &[&numbers]).await.map_err(failed())?;
        let set = |at: Option<usize>, value: &str| {
            at.map(|at| format!("{} = v.{value}::{}", message.table.ident(at), message.table.columns[at].type_name))
        };
        let modseq = match (message.modseq, &layout.modseq_sequence) {
            (Some(at), Some(sequence)) => {
                let next = sql::literal(&sequence.quoted());
                let kind = &message.table.columns[at].type_name;
                Some(format!("{} = nextval({next}::regclass)::{kind}", message.table.ident(at)))
            }
            (at, _) => set(at, "m"),
        };
        let sets: Vec<String> = set(message.uid, "u").into_iter().chain(modseq).collect();
        if !sets.is_empty() {
            let update = format!(
                "UPDATE {stage} s SET {} FROM unnest($1::int8[], $2::int8[], $3::int8[]) v(n, u, m) WHERE s.{NUMBER} = v.n",
                sets.join(", ")
            );
            session.client().execute(&update, &[&numbers, &uids, &modseqs]).await.map_err(failed())?;
        }
        let (mut keys, mut uids, mut modseqs) = (Vec::new(), Vec::new(), Vec::new());
        for (key, count) in counts {
            let Some(state) = locked.get(key) else { continue };
            keys.push(&*state.key_text);
            uids.push(state.uid + count);
            modseqs.push(state.modseq + 1);
        }
        let counters = [(mailbox.uid, "restante_uid"), (mailbox.modseq, "restante_modseq")].into_iter();
        let counters = counters.filter_map(|(at, value)| Some(format!("{} = {value}", mailbox.table.ident(at?))));
        let set = mailbox.set.iter().map(|(at, sql)| format!("{} = ({sql})", mailbox.table.ident(*at)));
        let sets: Vec<String> = counters.chain(set).collect();
        if !sets.is_empty() {
            let key = mailbox.table.single_key()?;
            let update = format!(
                "UPDATE {} SET {} FROM unnest($1::text[], $2::int8[], $3::int8[]) q(restante_key, restante_uid, restante_modseq) \
                 WHERE {} = restante_key::{}",
                mailbox.table.quoted(),
                sets.join(", "),
                mailbox.table.ident(key),
                live_type(&mailbox.table, key)
            );
            let failed = PostgresError::server("counting restored mail");
            session.client().execute(&update, &[&keys, &uids, &modseqs]).await.map_err(failed)?;
        }
        Ok(())
    }

    /// What the rows refer to, messages, parts, then what belongs to the messages. Gives back those of `claimed` that had a place.
    pub(super) async fn insert(
        &self,
        session: &Session,
        claimed: Vec<usize>,
        entries: &Entries,
    ) -> Result<Vec<usize>, ReplayError> {
        let layout = &self.plan.comparison.layout;
        dictionaries::settle(session, layout, entries).await?;
        let message = &layout.message;
        let key = message.table.ident(message.table.single_key()?);
        let stage = Stage::Message.name().quoted();
        let mut set = message.set.clone();
        set.extend(self.answers_within_the_batch()?);
        let insert = staging::insert(&message.table, &set, &message.regenerate);
        // Another mail may have what a unique key gives to one alone.
        let sql = format!(
            "INSERT INTO {} ({}){} SELECT {} FROM {stage} s ORDER BY {NUMBER} ON CONFLICT DO NOTHING RETURNING {key}::text",
            message.table.quoted(),
            insert.columns,
            insert.overriding,
            insert.values
        );
        let failed = || PostgresError::server("restoring mail");
        let made = session.client().query(&sql, &[]).await.map_err(failed())?;
        let made: HashSet<&str> = made.iter().map(|row| row.get(0)).collect();
        let (placed, left): (Vec<usize>, Vec<usize>) =
            claimed.into_iter().partition(|at| made.contains(&*self.items[*at].key_text));
        if !left.is_empty() {
            let keys: Vec<&str> = left.iter().map(|at| &*self.items[*at].key_text).collect();
            let sql = format!("DELETE FROM {stage} WHERE {key}::text = ANY($1)");
            session.client().execute(&sql, &[&keys]).await.map_err(failed())?;
            // The claim is given back.
            let sql = format!(
                "UPDATE {JOURNAL} SET undone = clock_timestamp() WHERE replay = $1 AND key = ANY($2) AND undone IS NULL"
            );
            session.client().execute(&sql, &[&self.replay, &keys]).await.map_err(failed())?;
        }
        self.settle_answers(session, &left).await?;
        dictionaries::close(session, layout, entries).await?;
        for (kind, part) in layout.parts.iter().enumerate() {
            let of = |alias: &str| {
                format!("EXISTS (SELECT FROM {stage} m WHERE m.{key} = {alias}.{})", part.via.table.ident(part.via.of))
            };
            let needed = format!(
                "EXISTS (SELECT FROM {} v WHERE v.{} = s.{} AND {})",
                Stage::Via(kind).name().quoted(),
                part.via.table.ident(part.part),
                part.table.ident(part.table.single_key()?),
                of("v")
            );
            insert_parts(session, layout, kind, &needed).await?;
            let insert = staging::insert(&part.via.table, &part.via.set, &[]);
            let sql = format!(
                "INSERT INTO {} ({}){} SELECT {} FROM {} s WHERE {} ORDER BY {NUMBER}",
                part.via.table.quoted(),
                insert.columns,
                insert.overriding,
                insert.values,
                Stage::Via(kind).name().quoted(),
                of("s")
            );
            session.execute("restoring the parts of mail", &sql).await?;
        }
        for (kind, child) in layout.children.iter().enumerate() {
            let insert = staging::insert(&child.table, &child.set, &child.issued);
            let sql = format!(
                "INSERT INTO {} ({}){} SELECT {} FROM {} s WHERE EXISTS (SELECT FROM {stage} m WHERE m.{key} = s.{}) ORDER BY {NUMBER}",
                child.table.quoted(),
                insert.columns,
                insert.overriding,
                insert.values,
                Stage::Child(kind).name().quoted(),
                child.table.ident(child.of)
            );
            session.execute("restoring what belongs to mail", &sql).await?;
        }
        if let Some((keyword, restored)) =
            layout.keyword.as_ref().and_then(|keyword| Some((keyword, keyword.restored.as_ref()?)))
        {
            let child = &layout.children[keyword.child];
            let sql = format!(
                "INSERT INTO {} ({}, {}) SELECT m.{key}, {} FROM {stage} m ON CONFLICT DO NOTHING",
                child.table.quoted(),
                child.table.ident(child.of),
                child.table.ident(keyword.column),
                sql::literal(restored)
            );
            session.execute("marking restored mail", &sql).await?;
        }
        Ok(placed)
    }
}

/// Puts in the parts that are not there. Those that are must have the very bytes.
pub(super) async fn insert_parts(
    session: &Session,
    layout: &Layout,
    kind: usize,
    needed: &str,
) -> Result<(), ReplayError> {
    let part = &layout.parts[kind];
    let (stage, live) = (Stage::Part(kind).name().quoted(), part.table.quoted());
    let insert = staging::insert(&part.table, &BTreeMap::new(), &[]);
    let key = part.table.ident(part.table.single_key()?);
    // In the order of their keys, so that two who store the same parts wait for each other and do not lock each other out.
    let sql = format!(
        "INSERT INTO {live} ({}){} SELECT {} FROM {stage} s WHERE {needed} ORDER BY s.{key} ON CONFLICT DO NOTHING",
        insert.columns, insert.overriding, insert.values
    );
    session.execute("restoring parts", &sql).await?;
    let differ: Vec<String> = part
        .bytes
        .iter()
        .map(|at| format!("p.{0} IS DISTINCT FROM s.{0}::{1}", part.table.ident(*at), live_type(&part.table, *at)))
        .collect();
    let sql = format!(
        "SELECT count(*) FROM {stage} s LEFT JOIN {live} p ON p.{key} = s.{key} WHERE {needed} AND (p.{key} IS NULL OR {})",
        differ.join(" OR ")
    );
    let failed = PostgresError::server("comparing parts");
    let differ: i64 = session.client().query_one(&sql, &[]).await.map_err(failed)?.get(0);
    if differ == 0 { Ok(()) } else { Err(ReplayError::PartDiffers { table: part.table.label() }) }
}

pub(super) fn live_type(table: &Table, column: usize) -> &str {
    table.columns[column].live.as_ref().map_or("text", |live| &live.type_name)
}
