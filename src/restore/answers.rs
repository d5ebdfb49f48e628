//! References from message to message: an answer names the mail that it answers, a thread the one that began it.
//!
//! What was referred to is alive under its own key, was put back under a new one by this or an earlier batch or replay, or comes back later.
//! The journal knows the second and is asked again when the third happens; whatever key is found, the row under it must be that message by its
//! evidence. Otherwise the reference is NULL: whoever has the old key now may be a stranger.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::batch::{Batch, Key};
use super::dictionaries::{referring, snapshot_type};
use super::error::ReplayError;
use super::staging::Stage;
use super::write::live_type;
use crate::compare::classify::{live_fields, live_message, live_select};
use crate::compare::layout::{Message, Refers};
use crate::compare::live;
use crate::compare::past::JOURNAL;
use crate::compare::referred::Home;
use crate::compare::row::Print;
use crate::postgres::PostgresError;
use crate::postgres::session::Session;
use crate::postgres::sql;

/// The columns by which messages refer to each other.
fn answering(message: &Message) -> impl Iterator<Item = usize> {
    message.refers.iter().filter(|(_, refers)| *refers == Refers::Message).map(|(column, _)| *column)
}

impl Batch<'_> {
    /// Makes what is staged refer to where the messages are now; `claimed` are about to be there.
    pub(super) async fn lead_to_messages(
        &self,
        session: &Session,
        claimed: &[usize],
        keys: &[Key],
    ) -> Result<(), ReplayError> {
        let layout = &self.plan.comparison.layout;
        let places = referring(layout, Refers::Message);
        if places.is_empty() {
            return Ok(());
        }
        let referred = &self.plan.comparison.referred;
        let mut before = BTreeSet::new();
        for (stage, table, column) in &places {
            let ident = table.ident(*column);
            let select =
                format!("SELECT DISTINCT s.{ident} FROM {} s WHERE s.{ident} IS NOT NULL", stage.name().quoted());
            live::copy(session, "looking for what mail answers", &select, 1, &mut |row| {
                before.insert(row[0].unwrap_or_default().to_vec());
                Ok(())
            })
            .await?;
        }
        let own: HashMap<&[u8], &str> =
            claimed.iter().map(|at| (&self.items[*at].leftover.key[..], &*keys[*at].text)).collect();
        let mut homes: HashMap<&[u8], Home> = HashMap::new();
        let mut sources = Vec::new();
        for key in before.iter().filter(|key| !own.contains_key(&key[..])) {
            match (referred.homes.get(key), self.plan.leftover(key)) {
                (Some(home), _) => drop(homes.insert(key, home.clone())),
                (None, Some(at)) => sources.push(at),
                (None, None) => {}
            }
        }
        let put_back = self.put_back(session, &sources).await?;
        homes.extend(put_back.into_iter().map(|(at, home)| (&self.plan.comparison.leftovers[at].key[..], home)));
        let there = self.there(session, homes.values()).await?;
        homes.retain(|_, home| there.contains(&home.print));
        let homes = homes.iter().map(|(key, home)| (*key, &*home.key));
        let (mut from, mut to) = (Vec::new(), Vec::new());
        for (key, now) in own.iter().map(|(key, now)| (*key, *now)).chain(homes) {
            if let Some(text) = referred.keys.get(key) {
                from.push(&**text);
                to.push(now);
            }
        }
        for (stage, table, column) in places {
            let sql = format!(
                "UPDATE {} s SET {ident} = (SELECT v.t::{} FROM unnest($1::text[], $2::text[]) v(f, t) WHERE v.f = s.{ident}::text) \
                 WHERE s.{ident} IS NOT NULL",
                stage.name().quoted(),
                snapshot_type(table, column),
                ident = table.ident(column),
            );
            let failed = PostgresError::server("leading to what mail answers");
            session.client().execute(&sql, &[&from, &to]).await.map_err(failed)?;
        }
        Ok(())
    }

    /// What is put in place of a reference to another message of the batch until it is known which of them have a place.
    pub(super) fn answers_within_the_batch(&self) -> Result<BTreeMap<usize, String>, ReplayError> {
        let message = &self.plan.comparison.layout.message;
        let key = message.table.ident(message.table.single_key()?);
        let none = |column: usize| {
            let ident = message.table.ident(column);
            format!(
                "CASE WHEN s.{ident} = s.{key} OR NOT EXISTS (SELECT FROM {} o WHERE o.{key} = s.{ident}) THEN s.{ident}::{} END",
                Stage::Message.name().quoted(),
                live_type(&message.table, column)
            )
        };
        Ok(answering(message).map(|column| (column, none(column))).collect())
    }

    /// Now they are set. `left`: those that had no place.
    pub(super) async fn settle_answers(
        &self,
        session: &Session,
        left: &[usize],
        keys: &[Key],
    ) -> Result<(), ReplayError> {
        let layout = &self.plan.comparison.layout;
        let (message, failed) = (&layout.message, || PostgresError::server("leading to what mail answers"));
        let left: Vec<&str> = left.iter().map(|at| &*keys[*at].text).collect();
        if !left.is_empty() {
            for (stage, table, column) in referring(layout, Refers::Message) {
                let ident = table.ident(column);
                let sql = format!("UPDATE {} SET {ident} = NULL WHERE {ident}::text = ANY($1)", stage.name().quoted());
                session.client().execute(&sql, &[&left]).await.map_err(failed())?;
            }
        }
        let key = message.table.single_key()?;
        for column in answering(message) {
            let sql = format!(
                "UPDATE {} m SET {ident} = s.{ident}::{kind} FROM {} s WHERE m.{key} = s.{key}::{} AND m.{ident} IS DISTINCT FROM s.{ident}::{kind}",
                message.table.quoted(),
                Stage::Message.name().quoted(),
                live_type(&message.table, key),
                ident = message.table.ident(column),
                kind = live_type(&message.table, column),
                key = message.table.ident(key),
            );
            session.execute("leading to what mail answers", &sql).await?;
        }
        Ok(())
    }

    /// Lets messages that were put back before refer to those that are back now.
    pub(super) async fn answer(&self, session: &Session, placed: &[usize], keys: &[Key]) -> Result<(), ReplayError> {
        let message = &self.plan.comparison.layout.message;
        let now: HashMap<&[u8], &str> =
            placed.iter().map(|at| (&self.items[*at].leftover.key[..], &*keys[*at].text)).collect();
        let answers: Vec<usize> = now.keys().flat_map(|key| self.plan.answers(key)).copied().collect();
        let back = self.put_back(session, &answers).await?;
        let there = self.there(session, back.iter().map(|(_, home)| home)).await?;
        let key = message.table.single_key()?;
        for column in answering(message) {
            let (mut homes, mut to) = (Vec::new(), Vec::new());
            for (at, home) in back.iter().filter(|(_, home)| there.contains(&home.print)) {
                let referred = self.plan.comparison.leftovers[*at].row[column].bytes();
                if let Some(now) = referred.and_then(|referred| now.get(referred)) {
                    homes.push(&*home.key);
                    to.push(*now);
                }
            }
            if homes.is_empty() {
                continue;
            }
            let sql = format!(
                "UPDATE {} m SET {ident} = v.t::{} FROM unnest($1::text[], $2::text[]) v(k, t) WHERE m.{} = v.k::{} AND m.{ident} IS NULL",
                message.table.quoted(),
                live_type(&message.table, column),
                message.table.ident(key),
                live_type(&message.table, key),
                ident = message.table.ident(column),
            );
            let failed = PostgresError::server("leading to what mail answers");
            session.client().execute(&sql, &[&homes, &to]).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Where the journal says that these leftovers are.
    async fn put_back(&self, session: &Session, leftovers: &[usize]) -> Result<Vec<(usize, Home)>, ReplayError> {
        if leftovers.is_empty() {
            return Ok(Vec::new());
        }
        let all = &self.plan.comparison.leftovers;
        let by_source: HashMap<&[u8], usize> = leftovers.iter().map(|at| (&all[*at].source.0[..], *at)).collect();
        let sources: Vec<&[u8]> = by_source.keys().copied().collect();
        let sql = format!(
            "SELECT source, key, restored FROM {JOURNAL} WHERE source = ANY($1) AND restored IS NOT NULL AND undone IS NULL"
        );
        let failed = PostgresError::server("asking the journal");
        let rows = session.client().query(&sql, &[&sources]).await.map_err(failed)?;
        let home = |row: &tokio_postgres::Row| {
            let print = Print(row.get::<_, &[u8]>(2).try_into().ok()?);
            Some((*by_source.get(row.get::<_, &[u8]>(0))?, Home { key: row.get(1), print }))
        };
        Ok(rows.iter().filter_map(home).collect())
    }

    /// Those of the messages that are there, by their evidence. They stay until we are done.
    async fn there(
        &self,
        session: &Session,
        homes: impl Iterator<Item = &Home>,
    ) -> Result<HashSet<Print>, ReplayError> {
        let layout = &self.plan.comparison.layout;
        let keys: Vec<String> = homes.map(|home| sql::literal(&home.key)).collect();
        let mut there = HashSet::new();
        if keys.is_empty() {
            return Ok(there);
        }
        let table = &layout.message.table;
        let key = table.single_key()?;
        let from = format!(
            "{} m JOIN (VALUES ({})) q(restante_key) ON m.{} = restante_key::{}",
            table.quoted(),
            keys.join("), ("),
            table.ident(key),
            live_type(table, key)
        );
        let select = live_select(layout, &from)?;
        let select = format!("{select} FOR KEY SHARE OF m");
        live::copy(session, "looking for what mail answers", &select, live_fields(layout), &mut |row| {
            there.insert(live_message(layout, row).print);
            Ok(())
        })
        .await?;
        Ok(there)
    }
}
