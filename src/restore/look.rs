//! Under the locks: what has changed since the comparison, and who restores a message.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;

use super::batch::{Batch, Item, Progress, Taken};
use super::error::ReplayError;
use super::write::live_type;
use crate::compare::Comparison;
use crate::compare::classify::{LiveMessage, live_fields, live_message, live_select};
use crate::compare::content;
use crate::compare::layout::Layout;
use crate::compare::live;
use crate::compare::past::JOURNAL;
use crate::mail::identity::Fingerprint;
use crate::mail::matching::matching;
use crate::postgres::PostgresError;
use crate::postgres::session::Session;
use crate::postgres::sql;
use crate::repository::zone;

impl Batch<'_> {
    /// Items for which an equal mail has come into their mailbox since the comparison.
    pub(super) async fn arrived_meanwhile(
        &self,
        session: &Session,
        open: &[usize],
        progress: &Progress,
    ) -> Result<(HashSet<usize>, Taken), ReplayError> {
        let layout = &self.plan.comparison.layout;
        let mut by_mailbox: BTreeMap<&Bytes, Vec<usize>> = BTreeMap::new();
        for at in open {
            by_mailbox.entry(&self.items[*at].target.key).or_default().push(*at);
        }
        if by_mailbox.is_empty() {
            return Ok(Default::default());
        }
        let table = &layout.message.table;
        let key = live_type(table, layout.message.mailbox);
        // New mail has new UIDs: the counters were raised before. Those that this replay has given out are no news, and without
        // leaving them out each batch would read again what all before it put in.
        let tells = layout.mailbox.uid.is_some() || layout.mailbox.uid_by_rows;
        let uid = layout.message.uid.filter(|_| tells);
        let places = by_mailbox.iter().flat_map(|(mailbox, items)| {
            let target = self.items[items[0]].target;
            let own = progress.uids.get(*mailbox).filter(|_| uid.is_some());
            let place =
                |(from, before)| format!("({}::{key}, {from}::int8, {before}::int8)", sql::literal(&target.key_text));
            between(target.new_from, own.map_or(&[], |own| own)).into_iter().map(place)
        });
        let newer = uid.map(|uid| {
            let uid = table.ident(uid);
            format!(" AND l.{uid} >= restante_uid AND l.{uid} < restante_before")
        });
        // Range by range: given the choice, the planner reads a table that is not large as a whole, for each batch.
        let from = format!(
            "(VALUES {}) q(restante_mailbox, restante_uid, restante_before) \
             CROSS JOIN LATERAL (SELECT * FROM {} l WHERE l.{} = restante_mailbox{} OFFSET 0) m",
            places.collect::<Vec<_>>().join(", "),
            table.quoted(),
            table.ident(layout.message.mailbox),
            newer.unwrap_or_default()
        );
        let select = live_select(layout, &from)?;
        // Where no counter of the mailbox tells what is new, the comparison does.
        let known = self.plan.comparison.live.iter().filter(|_| !tells);
        let known: HashSet<_> = known.map(|message| message.identity).collect();
        let mut news = Vec::new();
        live::copy(session, "looking for new mail", &select, live_fields(layout), &mut |row| {
            let message = live_message(layout, row);
            if !progress.taken.contains(&message.identity)
                && !known.contains(&message.identity)
                && !self.plan.comparison.pairs.is_paired(&message.identity)
            {
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
        let alike = |message: &LiveMessage, item: &Item<'_>| {
            let field = |at: Option<usize>| item.leftover.row[at?].bytes();
            let (size, id) = (field(layout.message.size), field(layout.message.message_id));
            let as_long = layout.message.size.is_some() && message.size.as_deref() == size;
            message.mailbox == item.target.key && (as_long || message.message_id.as_deref() == id)
        };
        news.retain(|message| open.iter().any(|at| alike(message, &self.items[*at])));
        let prints = content::live_prints(session, layout, &news.iter().collect::<Vec<_>>()).await?;
        let (mut arrived, mut newly) = (HashSet::new(), Taken::new());
        for (mailbox, items) in by_mailbox {
            let items: Vec<usize> =
                items.into_iter().filter(|at| news.iter().any(|message| alike(message, &self.items[*at]))).collect();
            let ours: Vec<Fingerprint> = items.iter().map(|at| self.print(&self.items[*at])).collect();
            let theirs: Vec<_> = news.iter().filter(|message| message.mailbox == *mailbox).collect();
            let theirs: Vec<_> = theirs
                .into_iter()
                .filter_map(|message| Some((message, prints.get(&message.key[..])?.clone())))
                .collect();
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
        let comparison = &self.plan.comparison;
        let stock = content::Stock { parts: &comparison.parts, dictionaries: &comparison.dictionaries };
        let raw = content::assemble(&comparison.layout, &Comparison::made(leftover), stock, &self.found);
        content::fingerprint(&comparison.layout, &raw)
    }

    /// Of these, those that no replay has put back. One that another session puts back at this moment is met when the journal is written.
    pub(super) async fn unclaimed(&self, session: &Session, open: &[usize]) -> Result<Vec<usize>, ReplayError> {
        let source = |at: &usize| &self.items[*at].leftover.source.0[..];
        let sources: Vec<&[u8]> = open.iter().map(source).collect();
        let sql = format!("SELECT source FROM {JOURNAL} WHERE source = ANY($1) AND undone IS NULL");
        let failed = PostgresError::server("asking the journal");
        let rows = session.client().query(&sql, &[&sources]).await.map_err(failed)?;
        let claimed: HashSet<&[u8]> = rows.iter().map(|row| row.get(0)).collect();
        Ok(open.iter().copied().filter(|at| !claimed.contains(source(at))).collect())
    }
}

/// What lies from `first` on and in none of these ranges, which ascend.
fn between(first: i64, ranges: &[(i64, i64)]) -> Vec<(i64, i64)> {
    let mut open = Vec::with_capacity(ranges.len() + 1);
    let mut at = first;
    for (from, before) in ranges {
        if *from > at {
            open.push((at, *from));
        }
        at = at.max(*before);
    }
    open.push((at, i64::MAX));
    open
}

/// A mailbox under our lock.
pub(super) struct Locked {
    pub key_text: String,
    /// Of the mailbox's counter, or the highest that a row has.
    pub uid: i64,
    pub modseq: i64,
    /// The UIDVALIDITY that a UID was issued under twice while nothing could stop it.
    pub collided: Option<i64>,
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
    let link = &layout.message.link;
    let number = |counter: Option<usize>, of_rows: Option<usize>| match (counter, of_rows) {
        (Some(at), _) => format!("coalesce(b.{}, 0)::int8", mailbox.table.ident(at)),
        (None, Some(at)) => format!(
            "coalesce((SELECT max(l.{}) FROM {} l WHERE l.{} = b.{}), 0)::int8",
            link.ident(at),
            link.quoted(),
            link.ident(layout.message.mailbox),
            mailbox.table.ident(key)
        ),
        (None, None) => "0::int8".to_owned(),
    };
    // Who refers to a mailbox waits for the stronger one, so nothing comes in. Where he may hold the UID that we take, that would be a deadlock.
    let strength = if mailbox.uid_by_rows { "NO KEY UPDATE" } else { "UPDATE" };
    let list: Vec<String> = keys.into_iter().map(sql::literal).collect();
    let mut columns = vec![key];
    columns.extend(&mailbox.evidence);
    let select = format!(
        "SELECT b.{0}::text, {1}, {2}, ({3}) IS TRUE, {4} FROM {5} b WHERE b.{0} IN ({6}) ORDER BY b.{0} FOR {7}",
        mailbox.table.ident(key),
        number(mailbox.uid, layout.message.uid),
        number(mailbox.modseq, layout.message.modseq.filter(|_| mailbox.modseq_by_rows)),
        mailbox.live.as_deref().unwrap_or("true"),
        mailbox.table.select(&columns, "b"),
        mailbox.table.quoted(),
        list.join(", "),
        strength
    );
    let mut locked = HashMap::new();
    live::copy(session, "locking mailboxes", &select, 4 + columns.len(), &mut |row| {
        let number = |at: usize| row[at].and_then(|bytes| zone::integer(bytes, false)).unwrap_or(0);
        let keep = |field: &Option<&[u8]>| field.map(Bytes::copy_from_slice);
        let state = Locked {
            key_text: String::from_utf8_lossy(row[0].unwrap_or_default()).into_owned(),
            uid: number(1),
            modseq: number(2),
            collided: None,
            shown: row[3] == Some(&[1]),
            evidence: row[5..].iter().map(keep).collect(),
        };
        locked.insert(keep(&row[4]).unwrap_or_default(), state);
        Ok(())
    })
    .await?;
    Ok(locked)
}
