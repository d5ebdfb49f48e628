//! One transaction: lock the mailboxes, look again, claim, insert, read again.
//!
//! The rows are staged before the locks are taken, so a mailbox is locked for as long as the inserts take and no longer. Under the
//! locks nothing is believed that the plan said of the live store: the mailbox must still be that mailbox, no equal mail may have
//! arrived since, and the journal must not know the message. What does not hold is left out and counted.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use serde::Serialize;

use super::error::ReplayError;
use super::parents::{Target, Targets};
use super::plan::{Move, Plan};
use super::staging::{self, NUMBER, Stage, StagedRow};
use crate::compare::compare::{live_fields, live_message, live_select, row_print};
use crate::compare::content::{self, Made, bytes_of};
use crate::compare::layout::{Body, Layout, Table};
use crate::compare::past::JOURNAL;
use crate::compare::row::{LargeValue, Row, Value};
use crate::compare::source::Source;
use crate::compare::{Leftover, live};
use crate::mail::identity::Fingerprint;
use crate::mail::matching::matching;
use crate::postgres::PostgresError;
use crate::postgres::session::Session;
use crate::postgres::sql;
use crate::repository::zone;

/// What became of the messages of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    pub restored: u64,
    /// Equal mail arrived while the restore ran.
    pub arrived_meanwhile: u64,
    /// Another replay put them back first.
    pub by_another: u64,
    /// The mailbox was deleted, or could not be made.
    pub no_mailbox: u64,
    /// Columns that the store changed while the row was written, with the number of rows.
    pub changed_columns: BTreeMap<String, u64>,
    /// Restored messages by position among the snapshot's mailboxes.
    pub mailboxes: BTreeMap<usize, u64>,
}

impl Outcome {
    pub fn add(&mut self, other: Self) {
        self.restored += other.restored;
        self.arrived_meanwhile += other.arrived_meanwhile;
        self.by_another += other.by_another;
        self.no_mailbox += other.no_mailbox;
        for (column, rows) in other.changed_columns {
            *self.changed_columns.entry(column).or_default() += rows;
        }
        for (mailbox, count) in other.mailboxes {
            *self.mailboxes.entry(mailbox).or_default() += count;
        }
    }
}

/// A message with all that belongs to it, ready to be staged but for its keys.
struct Item<'a> {
    leftover: &'a Leftover,
    one: Move,
    target: &'a Target,
    row: StagedRow,
    via: Vec<Vec<StagedRow>>,
    children: Vec<Vec<StagedRow>>,
    key_text: String,
}

/// Where live messages were that turned out equal to lost ones: nobody else may take them for his.
pub(super) type Taken = HashSet<crate::compare::row::Print>;

pub(super) struct Batch<'a> {
    plan: &'a Plan,
    replay: &'a str,
    items: Vec<Item<'a>>,
    /// By kind: key and row.
    parts: Vec<BTreeMap<Vec<u8>, StagedRow>>,
    found: HashMap<LargeValue, Bytes>,
    skipped: Outcome,
}

/// How many bytes of large values a message brings.
pub(super) async fn weight(plan: &Plan, source: &dyn Source, one: Move) -> Result<u64, ReplayError> {
    let wanted = wanted(plan, &plan.comparison.leftovers[one.leftover]);
    Ok(source.lengths(&wanted).await?.iter().sum())
}

fn wanted(plan: &Plan, leftover: &Leftover) -> Vec<LargeValue> {
    let layout = &plan.comparison.layout;
    let own = std::iter::once(&leftover.row).chain(leftover.via.iter().flatten()).chain(leftover.children.iter().flatten());
    let parts = layout.parts.iter().enumerate().flat_map(|(kind, part)| {
        let keys = leftover.via[kind].iter().filter_map(|row| row[part.part].bytes());
        keys.filter_map(move |key| plan.comparison.parts[kind].get(key))
    });
    let values = own.chain(parts).flatten();
    values.filter_map(|value| if let Value::Large(large) = value { Some(*large) } else { None }).collect()
}

pub(super) fn staged(row: &Row, found: &HashMap<LargeValue, Bytes>) -> StagedRow {
    row.iter()
        .map(|value| match value {
            Value::Large(large) => found.get(large).cloned(),
            value => bytes_of(value, found).map(Bytes::copy_from_slice),
        })
        .collect()
}

impl<'a> Batch<'a> {
    /// Fetches what the messages are made of and draws their keys.
    pub async fn prepare(
        session: &Session,
        source: &dyn Source,
        plan: &'a Plan,
        targets: &'a Targets,
        replay: &'a str,
        moves: &[Move],
    ) -> Result<Self, ReplayError> {
        let layout = &plan.comparison.layout;
        let mut skipped = Outcome::default();
        let mut chosen = Vec::new();
        for one in moves {
            match targets.get(&(one.mailbox, one.aside)) {
                Some(target) => chosen.push((*one, target)),
                None => skipped.no_mailbox += 1,
            }
        }
        let leftovers = &plan.comparison.leftovers;
        let mut large: Vec<LargeValue> =
            chosen.iter().flat_map(|(one, _)| wanted(plan, &leftovers[one.leftover])).collect();
        large.sort_unstable();
        large.dedup();
        let found: HashMap<LargeValue, Bytes> = large.iter().copied().zip(source.values(&large).await?).collect();
        let keys = staging::new_keys(session, &layout.message.table, chosen.len()).await?;
        let key_column = layout.message.table.single_key()?;
        let mut parts = vec![BTreeMap::new(); layout.parts.len()];
        let mut items = Vec::with_capacity(chosen.len());
        for ((one, target), (key, key_text)) in chosen.into_iter().zip(keys) {
            let leftover = &leftovers[one.leftover];
            let mut row = staged(&leftover.row, &found);
            row[key_column] = Some(key.clone());
            row[layout.message.mailbox] = Some(target.key.clone());
            let belonging = |rows: &[Row], message: usize| -> Vec<StagedRow> {
                rows.iter()
                    .map(|row| {
                        let mut row = staged(row, &found);
                        row[message] = Some(key.clone());
                        row
                    })
                    .collect()
            };
            for (kind, part) in layout.parts.iter().enumerate() {
                for key in leftover.via[kind].iter().filter_map(|row| row[part.part].bytes()) {
                    if let Some(row) = plan.comparison.parts[kind].get(key) {
                        parts[kind].entry(key.to_vec()).or_insert_with(|| staged(row, &found));
                    }
                }
            }
            let via = layout.parts.iter().enumerate().map(|(kind, part)| belonging(&leftover.via[kind], part.via.message));
            let children = layout.children.iter().enumerate();
            let children = children.map(|(kind, child)| belonging(&leftover.children[kind], child.message));
            let (via, children) = (via.collect(), children.collect());
            items.push(Item { leftover, one, target, row, via, children, key_text });
        }
        // UIDs ascend with the time of arrival (RFC 9051 §2.3.1.1 asks for ascending, clients show by it).
        let uid = |item: &Item<'_>| layout.message.uid.and_then(|at| zone::integer(item.leftover.row[at].bytes()?, false));
        items.sort_by(|one, other| (one.leftover.instant, uid(one)).cmp(&(other.leftover.instant, uid(other))));
        Ok(Self { plan, replay, items, parts, found, skipped })
    }

    /// Puts the messages back; `taken` grows by the live mails that stand for lost ones.
    pub async fn run(self, session: &Session, taken: &mut Taken) -> Result<Outcome, ReplayError> {
        if self.items.is_empty() {
            return Ok(self.skipped);
        }
        let (outcome, newly) =
            staging::transaction(session, "restoring mail", async || self.attempt(session, taken).await).await?;
        taken.extend(newly);
        Ok(outcome)
    }

    async fn attempt(&self, session: &Session, taken: &Taken) -> Result<(Outcome, Taken), ReplayError> {
        let layout = &self.plan.comparison.layout;
        staging::settings(session, layout).await?;
        self.stage(session).await?;

        let locked = self.lock(session).await?;
        let mut outcome = self.skipped.clone();
        let mut open: Vec<usize> = Vec::with_capacity(self.items.len());
        for (at, item) in self.items.iter().enumerate() {
            match locked.get(&item.target.key) {
                Some(mailbox) if mailbox.shown && mailbox.evidence == item.target.evidence => open.push(at),
                _ => outcome.no_mailbox += 1,
            }
        }
        let (arrived, newly) = self.arrived_meanwhile(session, &open, taken).await?;
        outcome.arrived_meanwhile += arrived.len() as u64;
        open.retain(|at| !arrived.contains(at));
        let claimed = self.claim(session, &open).await?;
        outcome.by_another += (open.len() - claimed.len()) as u64;
        if claimed.is_empty() {
            return Ok((outcome, newly));
        }
        self.number(session, &claimed, &locked).await?;
        self.insert(session).await?;
        outcome.changed_columns = self.read_again(session, claimed.len()).await?;
        self.record(session).await?;
        outcome.restored = claimed.len() as u64;
        for at in &claimed {
            *outcome.mailboxes.entry(self.items[*at].one.mailbox).or_default() += 1;
        }
        let _ = layout;
        Ok((outcome, newly))
    }

    async fn stage(&self, session: &Session) -> Result<(), ReplayError> {
        let layout = &self.plan.comparison.layout;
        let messages: Vec<StagedRow> = self.items.iter().map(|item| item.row.clone()).collect();
        staging::fill(session, layout, Stage::Message, &messages).await?;
        for kind in 0..layout.parts.len() {
            let via: Vec<StagedRow> = self.items.iter().flat_map(|item| item.via[kind].iter().cloned()).collect();
            staging::fill(session, layout, Stage::Via(kind), &via).await?;
            let parts: Vec<StagedRow> = self.parts[kind].values().cloned().collect();
            staging::fill(session, layout, Stage::Part(kind), &parts).await?;
        }
        for kind in 0..layout.children.len() {
            let rows: Vec<StagedRow> = self.items.iter().flat_map(|item| item.children[kind].iter().cloned()).collect();
            staging::fill(session, layout, Stage::Child(kind), &rows).await?;
        }
        Ok(())
    }

    async fn lock(&self, session: &Session) -> Result<HashMap<Bytes, Locked>, ReplayError> {
        let keys: BTreeSet<&str> = self.items.iter().map(|item| &*item.target.key_text).collect();
        lock_mailboxes(session, &self.plan.comparison.layout, keys).await
    }

    /// Items for which an equal mail has come into their mailbox since the comparison.
    async fn arrived_meanwhile(
        &self,
        session: &Session,
        open: &[usize],
        taken: &Taken,
    ) -> Result<(HashSet<usize>, Taken), ReplayError> {
        let layout = &self.plan.comparison.layout;
        let mut by_mailbox: BTreeMap<&Bytes, Vec<usize>> = BTreeMap::new();
        for at in open {
            by_mailbox.entry(&self.items[*at].target.key).or_default().push(*at);
        }
        let mut conditions = Vec::new();
        for items in by_mailbox.values() {
            let target = self.items[items[0]].target;
            let mailbox = layout.message.table.ident(layout.message.mailbox);
            // New mail has new UIDs: the counters were raised before.
            let newer = layout.message.uid.map(|uid| format!(" AND m.{} >= {}", layout.message.table.ident(uid), target.new_from));
            conditions.push(format!("m.{mailbox} = {}{}", sql::literal(&target.key_text), newer.unwrap_or_default()));
        }
        if conditions.is_empty() {
            return Ok(Default::default());
        }
        let select = live_select(layout, &format!("({})", conditions.join(" OR ")))?;
        let mut news = Vec::new();
        live::copy(session, "looking for new mail", &select, live_fields(layout), &mut |row| {
            let message = live_message(layout, row);
            if !taken.contains(&message.identity) && !self.plan.comparison.pairs.is_paired(&message.identity) {
                news.push(message);
            }
            Ok(())
        })
        .await?;
        if news.is_empty() {
            return Ok(Default::default());
        }
        // What replays put back stands for its own source.
        let prints: Vec<&[u8]> = news.iter().map(|message| &message.print.0[..]).collect();
        let ours = format!("SELECT restored FROM {JOURNAL} WHERE restored = ANY($1) AND undone IS NULL");
        let failed = PostgresError::server("asking the journal");
        let ours: HashSet<Vec<u8>> =
            session.client().query(&ours, &[&prints]).await.map_err(failed)?.iter().map(|row| row.get(0)).collect();
        let damaged_at = self.plan.comparison.damaged_at;
        news.retain(|message| {
            let before = matches!((damaged_at, message.instant), (Some(damage), Some(saved)) if saved < damage);
            !before && !ours.contains(&message.print.0[..])
        });
        let alike = |message: &crate::compare::compare::LiveMessage, item: &Item<'_>| {
            let field = |at: Option<usize>| item.row[at?].as_deref();
            let (size, id) = (field(layout.message.size), field(layout.message.message_id));
            message.mailbox == item.target.key
                && (message.size.as_deref() == size || message.message_id.as_deref() == id)
        };
        news.retain(|message| open.iter().any(|at| alike(message, &self.items[*at])));
        let keys: Vec<&str> = news.iter().map(|message| &*message.key_text).collect();
        let prints = content::live_prints(session, layout, &keys).await?;
        let (mut arrived, mut newly) = (HashSet::new(), Taken::new());
        for (mailbox, items) in by_mailbox {
            let items: Vec<usize> =
                items.into_iter().filter(|at| news.iter().any(|message| alike(message, &self.items[*at]))).collect();
            let ours: Vec<Fingerprint> = items.iter().map(|at| self.print(&self.items[*at])).collect();
            let theirs: Vec<_> = news.iter().filter(|message| message.mailbox == *mailbox).collect();
            let theirs: Vec<_> =
                theirs.into_iter().filter_map(|message| Some((message, prints.get(&message.key[..])?.clone()))).collect();
            let live: Vec<Fingerprint> = theirs.iter().map(|(_, print)| print.clone()).collect();
            for pair in matching(&ours, &live).pairs {
                arrived.insert(items[pair.lost]);
                newly.insert(theirs[pair.live].0.identity);
            }
        }
        Ok((arrived, newly))
    }

    fn print(&self, item: &Item<'_>) -> Fingerprint {
        let leftover = item.leftover;
        let made = Made { row: &leftover.row, via: leftover.via.iter().map(|rows| &rows[..]).collect() };
        let comparison = &self.plan.comparison;
        Fingerprint::of(&content::assemble(&comparison.layout, &made, &comparison.parts, &self.found))
    }

    /// Writes the journal; the unique key decides who restores a message.
    async fn claim(&self, session: &Session, open: &[usize]) -> Result<Vec<usize>, ReplayError> {
        let sources: Vec<&[u8]> = open.iter().map(|at| &self.items[*at].leftover.source.0[..]).collect();
        let mailboxes: Vec<&str> = open.iter().map(|at| &*self.items[*at].target.key_text).collect();
        let keys: Vec<&str> = open.iter().map(|at| &*self.items[*at].key_text).collect();
        let sql = format!(
            "INSERT INTO {JOURNAL} (source, replay, mailbox, key) \
             SELECT s, $1, m, k FROM unnest($2::bytea[], $3::text[], $4::text[]) q(s, m, k) ORDER BY s \
             ON CONFLICT (source, copy) WHERE undone IS NULL DO NOTHING RETURNING source"
        );
        let failed = PostgresError::server("writing the journal");
        let rows = session.client().query(&sql, &[&self.replay, &sources, &mailboxes, &keys]).await.map_err(failed)?;
        let claimed: HashSet<Vec<u8>> = rows.iter().map(|row| row.get(0)).collect();
        Ok(open.iter().copied().filter(|at| claimed.contains(&self.items[*at].leftover.source.0[..])).collect())
    }

    /// Assigns UIDs and MODSEQs as delivery does, and removes what was not claimed from the staging table.
    async fn number(
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
        let set = |at: Option<usize>, value: &str| at.map(|at| {
            format!("{} = v.{value}::{}", message.table.ident(at), message.table.columns[at].type_name)
        });
        let sets: Vec<String> = set(message.uid, "u").into_iter().chain(set(message.modseq, "m")).collect();
        if !sets.is_empty() {
            let update = format!(
                "UPDATE {stage} s SET {} FROM unnest($1::int8[], $2::int8[], $3::int8[]) v(n, u, m) WHERE s.{NUMBER} = v.n",
                sets.join(", ")
            );
            session.client().execute(&update, &[&numbers, &uids, &modseqs]).await.map_err(failed())?;
        }
        for (key, count) in counts {
            let Some(state) = locked.get(key) else { continue };
            let mut sets: Vec<String> = Vec::new();
            if let Some(at) = mailbox.uid {
                sets.push(format!("{} = {}", mailbox.table.ident(at), state.uid + count));
            }
            if let Some(at) = mailbox.modseq {
                sets.push(format!("{} = {}", mailbox.table.ident(at), state.modseq + 1));
            }
            sets.extend(mailbox.set.iter().map(|(at, sql)| format!("{} = ({sql})", mailbox.table.ident(*at))));
            if !sets.is_empty() {
                let update = format!(
                    "UPDATE {} SET {} WHERE {} = {}",
                    mailbox.table.quoted(),
                    sets.join(", "),
                    mailbox.table.ident(mailbox.table.single_key()?),
                    sql::literal(&state.key_text)
                );
                session.execute("counting restored mail", &update).await?;
            }
        }
        Ok(())
    }

    /// Messages, then parts, then what belongs to the messages.
    async fn insert(&self, session: &Session) -> Result<(), ReplayError> {
        let layout = &self.plan.comparison.layout;
        let message = &layout.message;
        let key = message.table.ident(message.table.single_key()?);
        let stage = Stage::Message.name().quoted();
        let insert = staging::insert(&message.table, &message.set, &message.regenerate);
        let sql = format!(
            "INSERT INTO {} ({}){} SELECT {} FROM {stage} s ORDER BY {NUMBER}",
            message.table.quoted(),
            insert.columns,
            insert.overriding,
            insert.values
        );
        session.execute("restoring mail", &sql).await?;
        for (kind, part) in layout.parts.iter().enumerate() {
            let of = |alias: &str| {
                format!("EXISTS (SELECT FROM {stage} m WHERE m.{key} = {alias}.{})", part.via.table.ident(part.via.message))
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
            let insert = staging::insert(&child.table, &child.set, &[]);
            let sql = format!(
                "INSERT INTO {} ({}){} SELECT {} FROM {} s WHERE EXISTS (SELECT FROM {stage} m WHERE m.{key} = s.{}) ORDER BY {NUMBER}",
                child.table.quoted(),
                insert.columns,
                insert.overriding,
                insert.values,
                Stage::Child(kind).name().quoted(),
                child.table.ident(child.message)
            );
            session.execute("restoring what belongs to mail", &sql).await?;
        }
        if let Some((keyword, restored)) = layout.keyword.as_ref().and_then(|keyword| Some((keyword, keyword.restored.as_ref()?))) {
            let child = &layout.children[keyword.child];
            let sql = format!(
                "INSERT INTO {} ({}, {}) SELECT m.{key}, {} FROM {stage} m ON CONFLICT DO NOTHING",
                child.table.quoted(),
                child.table.ident(child.message),
                child.table.ident(keyword.column),
                sql::literal(restored)
            );
            session.execute("marking restored mail", &sql).await?;
        }
        Ok(())
    }

    /// Reads every row back, column by column; content must be equal, other columns are reported.
    async fn read_again(&self, session: &Session, messages: usize) -> Result<BTreeMap<String, u64>, ReplayError> {
        let layout = &self.plan.comparison.layout;
        let message = &layout.message;
        let mut changed = BTreeMap::new();
        let body: Vec<usize> = match &message.body {
            Body::Raw(at) | Body::Spliced(at) => vec![*at],
            Body::Pieces(columns) => columns.clone(),
        };
        let expected: Vec<usize> = message.set.keys().copied().chain(message.regenerate.iter().copied()).collect();
        let stage = Stage::Message.name().quoted();
        let all = "true".to_owned();
        let found = differences(session, &message.table, &stage, &message.table.key, &expected, &body, &all, &mut changed).await?;
        if found != messages as i64 {
            let rows = messages as i64 - found;
            return Err(ReplayError::Altered { table: message.table.label(), columns: "their keys".to_owned(), rows });
        }
        let of = |child: usize, table: &Table| {
            format!("EXISTS (SELECT FROM {stage} m WHERE m.{} = s.{})", message.table.ident(message.table.key[0]), table.ident(child))
        };
        for (kind, part) in layout.parts.iter().enumerate() {
            let (via, stage) = (&part.via, Stage::Via(kind).name().quoted());
            let by: Vec<usize> = std::iter::once(via.message).chain(via.natural.iter().copied()).collect();
            differences(session, &via.table, &stage, &by, &[], &[part.part], &of(via.message, &via.table), &mut changed).await?;
        }
        for (kind, child) in layout.children.iter().enumerate() {
            let stage = Stage::Child(kind).name().quoted();
            let by: Vec<usize> = std::iter::once(child.message).chain(child.natural.iter().copied()).collect();
            let expected: Vec<usize> = child.set.keys().copied().collect();
            differences(session, &child.table, &stage, &by, &expected, &[], &of(child.message, &child.table), &mut changed).await?;
        }
        Ok(changed)
    }

    /// Completes the journal: the new UID, the print of the row as it is now, and the state that undoing asks for.
    async fn record(&self, session: &Session) -> Result<(), ReplayError> {
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

/// A mailbox under our lock.
pub(super) struct Locked {
    pub key_text: String,
    pub uid: i64,
    pub modseq: i64,
    pub shown: bool,
    pub evidence: Vec<Option<Bytes>>,
}

/// Locks mailboxes in the order of their keys, as every restoring session does.
pub(super) async fn lock_mailboxes(
    session: &Session,
    layout: &Layout,
    keys: BTreeSet<&str>,
) -> Result<HashMap<Bytes, Locked>, ReplayError> {
    let mailbox = &layout.mailbox;
    let key = mailbox.table.single_key()?;
    let number = |at: Option<usize>| at.map_or("0::int8".to_owned(), |at| format!("coalesce(b.{}, 0)::int8", mailbox.table.ident(at)));
    let list: Vec<String> = keys.into_iter().map(sql::literal).collect();
    let mut columns = vec![key];
    columns.extend(&mailbox.evidence);
    let select = format!(
        "SELECT b.{0}::text, {1}, {2}, ({3}) IS TRUE, {4} FROM {5} b WHERE b.{0} IN ({6}) ORDER BY b.{0} FOR UPDATE",
        mailbox.table.ident(key),
        number(mailbox.uid),
        number(mailbox.modseq),
        mailbox.live.as_deref().unwrap_or("true"),
        mailbox.table.select(&columns, "b"),
        mailbox.table.quoted(),
        list.join(", ")
    );
    let mut locked = HashMap::new();
    live::copy(session, "locking mailboxes", &select, 4 + columns.len(), &mut |row| {
        let number = |at: usize| row[at].and_then(|bytes| zone::integer(bytes, false)).unwrap_or(0);
        let keep = |field: &Option<&[u8]>| field.map(Bytes::copy_from_slice);
        let state = Locked {
            key_text: String::from_utf8_lossy(row[0].unwrap_or_default()).into_owned(),
            uid: number(1),
            modseq: number(2),
            shown: row[3] == Some(&[1]),
            evidence: row[5..].iter().map(keep).collect(),
        };
        locked.insert(keep(&row[4]).unwrap_or_default(), state);
        Ok(())
    })
    .await?;
    Ok(locked)
}

/// Puts in the parts that are not there. Those that are must have the very bytes.
pub(super) async fn insert_parts(session: &Session, layout: &Layout, kind: usize, needed: &str) -> Result<(), ReplayError> {
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

fn live_type(table: &Table, column: usize) -> &str {
    table.columns[column].live.as_ref().map_or("text", |live| &live.type_name)
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
    let join: Vec<String> = by.iter().map(|at| format!("t.{0} = s.{0}::{1}", table.ident(*at), live_type(table, *at))).collect();
    let sql = format!(
        "SELECT count(*){} FROM {stage} s JOIN {} t ON {} WHERE {condition}",
        columns.iter().map(|at| format!(", {}", differs(at))).collect::<String>(),
        table.quoted(),
        join.join(" AND ")
    );
    let row = session.client().query_one(&sql, &[]).await.map_err(PostgresError::server("reading restored rows again"))?;
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
