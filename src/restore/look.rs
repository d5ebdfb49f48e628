//! Under the locks: what has changed since the comparison, and who restores a message.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;

use super::batch::{Batch, Item, Taken};
use super::error::ReplayError;
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
            let newer = layout
                .message
                .uid
                .map(|uid| format!(" AND m.{} >= {}", layout.message.table.ident(uid), target.new_from));
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
        let alike = |message: &LiveMessage, item: &Item<'_>| {
            let field = |at: Option<usize>| item.row[at?].as_deref();
            let (size, id) = (field(layout.message.size), field(layout.message.message_id));
            let as_long = layout.message.size.is_some() && message.size.as_deref() == size;
            message.mailbox == item.target.key && (as_long || message.message_id.as_deref() == id)
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
        let raw = content::assemble(&comparison.layout, &Comparison::made(leftover), &comparison.parts, &self.found);
        content::fingerprint(&comparison.layout, &raw)
    }

    /// Writes the journal; the unique key decides who restores a message.
    pub(super) async fn claim(&self, session: &Session, open: &[usize]) -> Result<Vec<usize>, ReplayError> {
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
    let number = |at: Option<usize>| {
        at.map_or("0::int8".to_owned(), |at| format!("coalesce(b.{}, 0)::int8", mailbox.table.ident(at)))
    };
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
