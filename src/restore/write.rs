//! Staging, numbering and inserting the messages of a batch.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;

use super::batch::{Batch, Item, Key, staged};
use super::contents::Held;
use super::dictionaries::{self, Entries};
use super::error::ReplayError;
use super::look::Locked;
use super::parents::Target;
use super::raise;
use super::staging::{self, NUMBER, Stage, StagedRow};
use crate::compare::Leftover;
use crate::compare::layout::{Child, Layout, Table};
use crate::compare::row::Row;
use crate::postgres::PostgresError;
use crate::postgres::catalog::TableName;
use crate::postgres::session::Session;
use crate::postgres::sql;

/// What rows hang on: a message or its content, the new key, and the mailbox that it goes into.
pub(super) struct Holder<'a> {
    pub leftover: &'a Leftover,
    /// Its fields.
    pub key: &'a [Bytes],
    pub own: Option<(usize, &'a Target)>,
}

impl Batch<'_> {
    /// Stages the rows that lie in mailboxes, under their new keys, with what hangs on them.
    pub(super) async fn stage(&self, session: &Session, keys: &[Key], held: &[Held]) -> Result<(), ReplayError> {
        let comparison = &self.plan.comparison;
        let (layout, message) = (&comparison.layout, &comparison.layout.message);
        let mut rows = Vec::with_capacity(self.items.len());
        for (item, key) in self.items.iter().zip(keys) {
            let mut row = staged(&item.leftover.row[..message.link.columns.len()], &self.found);
            row[message.mailbox] = Some(item.target.key.clone());
            for (at, field) in message.link.key.iter().zip(&key.fields) {
                row[*at] = Some(field.clone());
            }
            if let (Some(content), Some(at)) = (&message.content, item.content) {
                row[content.of] = Some(held[at].key.clone());
            }
            let own = Some((item.one.mailbox, item.target));
            dictionaries::lead_to_parents(&comparison.parents, &message.refers, own, &mut row);
            rows.push(row);
        }
        fn holder<'a>((item, key): (&'a Item<'a>, &'a Key)) -> Holder<'a> {
            Holder { leftover: item.leftover, key: &key.fields, own: Some((item.one.mailbox, item.target)) }
        }
        let with_key = self.items.iter().zip(keys).filter(|(_, key)| !key.fields.is_empty());
        let items: Vec<Holder<'_>> = with_key.map(holder).collect();
        let mut staged = self.belonging(false, &items);
        staged.push((Stage::Message, rows));
        staging::fill_all(session, layout, &staged).await
    }

    /// New keys by the default of the key's column.
    pub(super) async fn draw(&self, session: &Session) -> Result<Vec<Key>, ReplayError> {
        let keys = staging::new_keys(session, &self.plan.comparison.layout.message.link, self.items.len()).await?;
        Ok(keys.into_iter().map(|(field, text)| Key { fields: vec![field], text }).collect())
    }

    /// Keys of mailbox and UID for the items that are open.
    pub(super) fn next_uids(&self, open: &[usize], locked: &HashMap<Bytes, Locked>) -> Vec<Key> {
        let (message, mailbox) = (&self.plan.comparison.layout.message, &self.plan.comparison.layout.mailbox);
        let mut counts: BTreeMap<&Bytes, i64> = BTreeMap::new();
        let mut keys = vec![Key::default(); self.items.len()];
        for at in open {
            let target = &self.items[*at].target.key;
            let Some(state) = locked.get(target) else { continue };
            let count = counts.entry(target).or_default();
            let uid = state.uid + *count + i64::from(!mailbox.uid_is_next);
            *count += 1;
            let field = |at: &usize| match &*message.link.columns[*at].type_name {
                _ if *at == message.mailbox => target.clone(),
                "integer" => Bytes::copy_from_slice(&(uid as i32).to_be_bytes()),
                _ => Bytes::copy_from_slice(&uid.to_be_bytes()),
            };
            let fields: Vec<Bytes> = message.link.key.iter().map(field).collect();
            keys[*at] = Key { text: data_encoding::HEXLOWER.encode(&fields.concat()), fields };
        }
        keys
    }

    /// Does anything of this kind, by its place in [`Layout::belonging`], hang on these messages? Of what is not there nothing need be asked.
    pub(super) fn has(&self, kind: usize) -> bool {
        self.items.iter().any(|item| !rows_of(item.leftover, kind).is_empty())
    }

    /// What hangs on links, or on contents, to be staged.
    pub(super) fn belonging(&self, on_contents: bool, holders: &[Holder<'_>]) -> Vec<(Stage, Vec<StagedRow>)> {
        let comparison = &self.plan.comparison;
        let layout = &comparison.layout;
        let mut found = Vec::new();
        for (kind, child) in layout.belonging().enumerate().filter(|(_, child)| layout.is_shared(child) == on_contents)
        {
            let mut staging = Vec::new();
            for Holder { leftover, key, own } in holders {
                for row in rows_of(leftover, kind) {
                    let mut row = staged(row, &self.found);
                    for (at, field) in child.of.iter().zip(*key) {
                        row[*at] = Some(field.clone());
                    }
                    dictionaries::lead_to_parents(&comparison.parents, &child.refers, *own, &mut row);
                    staging.push(row);
                }
            }
            found.push((Stage::of(layout, kind), staging));
        }
        found
    }

    /// Assigns UIDs and MODSEQs as delivery does, a UID to each that is counted, and removes what was not claimed from the staging table.
    /// Gives back the UIDs, by mailbox: from, and before which.
    pub(super) async fn number(
        &self,
        session: &Session,
        counted: &[usize],
        claimed: &[usize],
        locked: &HashMap<Bytes, Locked>,
    ) -> Result<HashMap<Bytes, Vec<(i64, i64)>>, ReplayError> {
        let layout = &self.plan.comparison.layout;
        let (message, mailbox) = (&layout.message, &layout.mailbox);
        let mut counts: BTreeMap<&Bytes, i64> = BTreeMap::new();
        let (mut numbers, mut uids, mut modseqs) = (Vec::new(), Vec::new(), Vec::new());
        for at in counted {
            let key = &self.items[*at].target.key;
            let Some(state) = locked.get(key) else { continue };
            let count = counts.entry(key).or_default();
            if claimed.contains(at) {
                numbers.push(*at as i64);
                uids.push(state.uid + *count + i64::from(!mailbox.uid_is_next));
                modseqs.push(state.modseq + i64::from(!mailbox.modseq_is_next));
            }
            *count += 1;
        }
        let stage = Stage::Message.name().quoted();
        let failed = || PostgresError::server("numbering mail");
        let delete = format!("DELETE FROM {stage} WHERE NOT ({NUMBER} = ANY($1))");
        session.client().execute(&delete, &[&numbers]).await.map_err(failed())?;
        if let Some(content) = &message.content {
            let unclaimed = format!(
                "DELETE FROM {} c WHERE NOT EXISTS (SELECT FROM {stage} m WHERE m.{} = c.{})",
                Stage::Content.name().quoted(),
                message.link.ident(content.of),
                content.table.ident(content.table.single_key()?)
            );
            session.execute("numbering mail", &unclaimed).await?;
        }
        let set = |at: Option<usize>, sequence: &Option<TableName>, value: &str| {
            let value = match sequence {
                Some(sequence) => format!("nextval({}::regclass)", sql::literal(&sequence.quoted())),
                None => format!("v.{value}"),
            };
            at.map(|at| format!("{} = {value}::{}", message.link.ident(at), message.link.columns[at].type_name))
        };
        // A UID that is in the key was drawn with it.
        let uid = message.uid.filter(|at| !message.link.key.contains(at));
        let sets = set(uid, &layout.uid_sequence, "u").into_iter();
        let sets: Vec<String> = sets.chain(set(message.modseq, &layout.modseq_sequence, "m")).collect();
        if !sets.is_empty() {
            let update = format!(
                "UPDATE {stage} s SET {} FROM unnest($1::int8[], $2::int8[], $3::int8[]) v(n, u, m) WHERE s.{NUMBER} = v.n",
                sets.join(", ")
            );
            session.client().execute(&update, &[&numbers, &uids, &modseqs]).await.map_err(failed())?;
        }
        let (mut keys, mut uids, mut modseqs, mut collided) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut given = HashMap::new();
        for (key, count) in counts {
            let Some(state) = locked.get(key) else { continue };
            let first = state.uid + i64::from(!mailbox.uid_is_next);
            given.insert(key.clone(), vec![(first, first + count)]);
            keys.push(&*state.key_text);
            uids.push(state.uid + count);
            modseqs.push(state.modseq + 1);
            collided.push(state.collided);
        }
        let counters = [(mailbox.uid, "restante_uid"), (mailbox.modseq, "restante_modseq")].into_iter();
        let counters = counters.filter_map(|(at, value)| Some(format!("{} = {value}", mailbox.table.ident(at?))));
        let set = mailbox.set.iter().map(|(at, sql)| format!("{} = ({sql})", mailbox.table.ident(*at)));
        let validity = mailbox.uidvalidity.filter(|_| mailbox.uid_by_rows).map(|at| {
            let column = mailbox.table.ident(at);
            format!("{column} = {}", raise::another_uidvalidity(&column, "restante_collided", "true"))
        });
        let sets: Vec<String> = counters.chain(set).chain(validity).collect();
        if !sets.is_empty() {
            let key = mailbox.table.single_key()?;
            let update = format!(
                "UPDATE {} b SET {} FROM unnest($1::text[], $2::int8[], $3::int8[], $4::int8[]) \
                 q(restante_key, restante_uid, restante_modseq, restante_collided) WHERE b.{} = restante_key::{}",
                mailbox.table.quoted(),
                sets.join(", "),
                mailbox.table.ident(key),
                live_type(&mailbox.table, key)
            );
            let failed = PostgresError::server("counting restored mail");
            session.client().execute(&update, &[&keys, &uids, &modseqs, &collided]).await.map_err(failed)?;
        }
        Ok(given)
    }

    /// Who takes the highest UID of the rows without the mailbox's lock may have taken one of ours.
    async fn uids_are_ours(&self, session: &Session) -> Result<(), ReplayError> {
        let message = &self.plan.comparison.layout.message;
        let Some(uid) = message.uid else { return Ok(()) };
        let same = |at: &usize| format!("m.{0} = s.{0}::{1}", message.link.ident(*at), live_type(&message.link, *at));
        let key: Vec<String> = message.link.key.iter().map(same).collect();
        let sql = format!(
            "SELECT EXISTS (SELECT FROM {} s JOIN {} m ON {} AND {} WHERE NOT ({}))",
            Stage::Message.name().quoted(),
            message.link.quoted(),
            same(&message.mailbox),
            same(&uid),
            key.join(" AND ")
        );
        let failed = PostgresError::server("restoring mail");
        match session.client().query_one(&sql, &[]).await.map_err(failed)?.get(0) {
            true => Err(ReplayError::UidTaken),
            false => Ok(()),
        }
    }

    /// Takes out of the staging table what could not be put in, with contents that nobody links to then; their numbers.
    async fn without_place(&self, session: &Session) -> Result<HashSet<i64>, ReplayError> {
        let message = &self.plan.comparison.layout.message;
        let (stage, link) = (Stage::Message.name().quoted(), message.link.quoted());
        let same = message
            .link
            .key
            .iter()
            .map(|at| format!("m.{0} = s.{0}::{1}", message.link.ident(*at), live_type(&message.link, *at)));
        let sql = format!(
            "DELETE FROM {stage} s WHERE NOT EXISTS (SELECT FROM {link} m WHERE {}) RETURNING {NUMBER}",
            same.collect::<Vec<_>>().join(" AND ")
        );
        let failed = PostgresError::server("restoring mail");
        let left: HashSet<i64> =
            session.client().query(&sql, &[]).await.map_err(failed)?.iter().map(|row| row.get(0)).collect();
        if let Some(content) = message.content.as_ref().filter(|_| !left.is_empty()) {
            let (staged, key) = (Stage::Content.name().quoted(), content.table.ident(content.table.single_key()?));
            let unlinked =
                format!("NOT EXISTS (SELECT FROM {link} l WHERE l.{} = s.{key})", message.link.ident(content.of));
            let sql = format!(
                "DELETE FROM {} c USING {staged} s WHERE c.{key} = s.{key} AND {unlinked}; DELETE FROM {staged} s WHERE {unlinked}",
                content.table.quoted()
            );
            session.execute("restoring mail", &sql).await?;
        }
        Ok(left)
    }

    /// What the rows refer to, contents, messages, parts, then what belongs to them. Gives back those of `claimed` that had a place,
    /// and what belongs to them and was left out.
    pub(super) async fn insert(
        &self,
        session: &Session,
        claimed: Vec<usize>,
        keys: &[Key],
        entries: &Entries,
    ) -> Result<(Vec<usize>, BTreeMap<String, u64>), ReplayError> {
        let layout = &self.plan.comparison.layout;
        let mut left_rows = dictionaries::settle(session, layout, entries).await?;
        let message = &layout.message;
        let stage = Stage::Message.name().quoted();
        if let Some(content) = &message.content {
            let mut insert = staging::insert(&content.table, &content.set, &content.regenerate);
            if content.keeps_key() {
                insert.conflict = " ON CONFLICT DO NOTHING";
            }
            let put = insert.all(session, "restoring mail", &content.table, Stage::Content, "true").await;
            put.map_err(|error| if error.is_duplicate() { ReplayError::ContentTaken } else { error })?;
        }
        let mut set = message.set.clone();
        set.extend(self.answers_within_the_batch()?);
        let mut insert = staging::insert(&message.link, &set, &message.regenerate);
        let is_key = message.uid.is_some_and(|at| message.link.key.contains(&at));
        let by_rows = layout.mailbox.uid_by_rows;
        if by_rows && is_key {
            // The row of another mail would pass for ours.
            let put = insert.all(session, "restoring mail", &message.link, Stage::Message, "true").await;
            put.map_err(|error| if error.is_duplicate() { ReplayError::UidTaken } else { error })?;
        } else {
            // Another mail may have what a unique key gives to one alone.
            insert.conflict = " ON CONFLICT DO NOTHING";
            insert.all(session, "restoring mail", &message.link, Stage::Message, "true").await?;
            if by_rows {
                self.uids_are_ours(session).await?;
            }
        }
        let left = self.without_place(session).await?;
        let (left, placed): (Vec<usize>, Vec<usize>) = claimed.into_iter().partition(|at| left.contains(&(*at as i64)));
        self.settle_answers(session, &left, keys).await?;
        dictionaries::close(session, layout, entries).await?;
        for (kind, part) in layout.parts.iter().enumerate().filter(|(kind, _)| self.has(*kind)) {
            if !part.numbered {
                let needed = format!(
                    "EXISTS (SELECT FROM {} v WHERE v.{} = s.{} AND {})",
                    Stage::Via(kind).name().quoted(),
                    part.via.table.ident(part.part),
                    part.table.ident(part.table.single_key()?),
                    is_held(layout, &part.via, "v")
                );
                insert_parts(session, layout, kind, &needed).await?;
            }
            let insert = staging::insert(&part.via.table, &part.via.set, &[]);
            let held = format!("{} AND {}", is_held(layout, &part.via, "s"), is_new(layout, &part.via));
            insert.all(session, "restoring the parts of mail", &part.via.table, Stage::Via(kind), &held).await?;
        }
        for (kind, child) in layout.children.iter().enumerate().filter(|(kind, _)| self.has(layout.parts.len() + kind))
        {
            let insert = staging::insert(&child.table, &child.set, &child.issued);
            let held = format!("{} AND {}", is_held(layout, child, "s"), is_new(layout, child));
            leave_out(session, child, Stage::Child(kind), &held, &mut left_rows).await?;
            insert.all(session, "restoring what belongs to mail", &child.table, Stage::Child(kind), &held).await?;
        }
        if let Some((keyword, restored)) =
            layout.keyword.as_ref().and_then(|keyword| Some((keyword, keyword.restored.as_ref()?)))
        {
            let child = &layout.children[keyword.child];
            let value = match child.dictionary(keyword.column) {
                Some(kind) => dictionaries::value(session, &layout.dictionaries[kind], restored).await?,
                None => sql::literal(restored),
            };
            let of = child.of.iter().map(|at| child.table.ident(*at)).collect::<Vec<_>>().join(", ");
            let key = child.to.iter().map(|at| format!("m.{}", message.link.ident(*at))).collect::<Vec<_>>().join(", ");
            let sql = format!(
                "INSERT INTO {table} ({of}, {column}) SELECT {key}, {value} FROM {stage} m \
                 WHERE NOT EXISTS (SELECT FROM {table} c WHERE {} AND c.{column} = {value}) ON CONFLICT DO NOTHING",
                child.belongs("c", "m", &message.link, &child.to),
                table = child.table.quoted(),
                column = child.table.ident(keyword.column),
            );
            session.execute("marking restored mail", &sql).await?;
        }
        Ok((placed, left_rows))
    }
}

/// What hangs on a message, by its place in [`Layout::belonging`].
fn rows_of(leftover: &Leftover, kind: usize) -> &[Row] {
    let child = kind.checked_sub(leftover.via.len());
    child.map_or_else(|| &leftover.via[kind], |kind| &leftover.children[kind])
}

/// Takes out of the staging table those of the rows that refer to what is gone, and counts them.
pub(super) async fn leave_out(
    session: &Session,
    child: &Child,
    stage: Stage,
    condition: &str,
    left: &mut BTreeMap<String, u64>,
) -> Result<(), ReplayError> {
    for (at, table, column) in &child.foreign {
        let ident = child.table.ident(*at);
        let sql = format!(
            "DELETE FROM {} s WHERE {condition} AND s.{ident} IS NOT NULL AND NOT EXISTS (SELECT FROM {} f WHERE f.{} = s.{ident}::{})",
            stage.name().quoted(),
            table.quoted(),
            sql::identifier(column),
            live_type(&child.table, *at)
        );
        let failed = PostgresError::server("looking for what rows refer to");
        let rows = session.client().execute(&sql, &[]).await.map_err(failed)?;
        if rows > 0 {
            *left.entry(child.table.label()).or_default() += rows;
        }
    }
    Ok(())
}

/// A condition over staged rows: the message or content that they hang on is staged.
pub(super) fn is_held(layout: &Layout, child: &Child, alias: &str) -> String {
    let (stage, table, key) = match &layout.message.content {
        Some(content) if layout.is_shared(child) => (Stage::Content, &content.table, &content.table.key),
        _ => (Stage::Message, &layout.message.link, &child.to),
    };
    let (stage, belongs) = (stage.name().quoted(), child.belongs(alias, "m", table, key));
    format!("EXISTS (SELECT FROM {stage} m WHERE {belongs})")
}

/// A condition over staged rows `s`: the live store has none that is the same.
pub(super) fn is_missing(child: &Child) -> String {
    // An index serves `=` alone.
    let natural = child.natural.iter().map(|at| format!("c.{0} IS NOT DISTINCT FROM s.{0}", child.table.ident(*at)));
    let of = child.of.iter().map(|at| format!("c.{0} = s.{0}", child.table.ident(*at)));
    let same: Vec<String> = of.chain(natural).collect();
    format!("NOT EXISTS (SELECT FROM {} c WHERE {})", child.table.quoted(), same.join(" AND "))
}

/// The same, where there can be any: what hangs on a content that comes back under its own key.
fn is_new(layout: &Layout, child: &Child) -> String {
    let content = layout.message.content.as_ref().filter(|content| content.keeps_key() && layout.is_shared(child));
    content.map_or("true".to_owned(), |_| is_missing(child))
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
    let mut insert = staging::insert(&part.table, &BTreeMap::new(), &[]);
    insert.conflict = " ON CONFLICT DO NOTHING";
    let key = part.table.ident(part.table.single_key()?);
    // In the order of their keys, so that two who store the same parts wait for each other and do not lock each other out.
    session.execute("restoring parts", &insert.sql(&part.table, &stage, needed, &key)).await?;
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
