//! The ladder: which lost mails are alive after all, under another key.
//!
//! Only leftovers of both sides are asked, so an INBOX copy is not taken for the one in the archive. First within the mailbox: an
//! equal mail there stands for the lost one. Then within the account: an equal mail that the snapshot did not have there was moved
//! or copied by the user, or came once more. Where the store keeps tombstones a move leaves one, and mail without a tombstone was copied;
//! where mailboxes link to contents, what was moved links to the very one, and another one came by itself: then nobody can tell, and in doubt
//! the mail is put back.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::classify::{Comparison, Leftover, LiveMessage, Options, row_print};
use super::content::{self, Stock};
use super::error::CompareError;
use super::layout::Layout;
use super::parents::Parents;
use super::referred::Home;
use super::row::{Class, Print, Reason};
use super::source::Source;
use crate::mail::identity::{Fingerprint, Rung, same_mail};
use crate::mail::matching::matching;
use crate::postgres::session::Session;

/// Finishes the classes of what is still `Absent`.
#[allow(clippy::too_many_arguments)]
pub(super) async fn decide(
    session: &Session,
    source: &dyn Source,
    layout: &Layout,
    parents: &Parents,
    stock: Stock<'_>,
    options: &Options,
    leftovers: &mut [Leftover],
    live: &mut [LiveMessage],
) -> Result<(), CompareError> {
    let free = |live: &LiveMessage| {
        let before = matches!((options.damaged_at, live.instant), (Some(damage), Some(saved)) if saved < damage);
        !live.taken && !before
    };
    let open: Vec<usize> = (0..leftovers.len()).filter(|at| leftovers[*at].class == Class::Absent).collect();
    let candidates: Vec<usize> = (0..live.len()).filter(|at| free(&live[*at])).collect();
    let owner_of = |live: &LiveMessage| match parents.live_mailbox(&live.mailbox) {
        Some(mailbox) => mailbox.owner.clone().unwrap_or_default(),
        None => Bytes::new(),
    };
    let near = near(layout, parents, leftovers, live, &open, &candidates, &owner_of);
    let lost_prints = {
        let made: Vec<_> = near.lost.iter().map(|at| Comparison::made(&leftovers[*at])).collect();
        let prints = content::snapshot_prints(source, layout, &made, stock).await?;
        near.lost.iter().copied().zip(prints).collect::<HashMap<_, _>>()
    };
    let live_prints = {
        let mails: Vec<&LiveMessage> = near.live.iter().map(|at| &live[*at]).collect();
        content::live_prints(session, layout, &mails).await?
    };
    // By mailbox first, then by account. What was taken back once has fewer candidates, so it asks before the others.
    let mut bounds: Vec<Option<i64>> = near.lost.iter().map(|at| leftovers[*at].stands_from).collect();
    bounds.sort_unstable_by(|one, other| other.cmp(one));
    bounds.dedup();
    let rounds = bounds.into_iter().filter(Option::is_some).map(|bound| (true, bound));
    for (in_mailbox, bound) in rounds.chain([(true, None), (false, None)]) {
        let mut scopes: HashMap<Bytes, (Vec<usize>, Vec<usize>)> = HashMap::new();
        for at in
            near.lost.iter().filter(|at| leftovers[**at].class == Class::Absent && leftovers[**at].stands_from == bound)
        {
            let Some(mailbox) = leftovers[*at].mailbox else { continue };
            let target = if in_mailbox { parents.target(mailbox) } else { parents.target_owner(mailbox) };
            if let Some(target) = target {
                scopes.entry(target.key.clone()).or_default().0.push(*at);
            }
        }
        let late = |one: &LiveMessage| bound.is_none_or(|bound| one.uid.is_none_or(|uid| uid >= bound));
        for at in near.live.iter().filter(|at| !live[**at].taken && late(&live[**at])) {
            let scope = if in_mailbox { live[*at].mailbox.clone() } else { owner_of(&live[*at]) };
            if let Some((_, list)) = scopes.get_mut(&scope) {
                list.push(*at);
            }
        }
        for (mut lost, mut alive) in scopes.into_values().filter(|(_, alive)| !alive.is_empty()) {
            if let Some(content) =
                layout.message.content.as_ref().filter(|_| !in_mailbox && !layout.records_deletions())
            {
                let mut moved: HashMap<&[u8], Vec<usize>> = HashMap::new();
                for at in &alive {
                    moved.entry(live[*at].content.as_deref().unwrap_or_default()).or_default().push(*at);
                }
                let pairs: Vec<(usize, usize, Rung)> = lost
                    .iter()
                    .filter_map(|at| {
                        let candidates = moved.get_mut(leftovers[*at].row[content.of].bytes()?)?;
                        let place = candidates.last()?;
                        let rung = same_mail(lost_prints.get(at)?, live_prints.get(&live[*place].key[..])?)?;
                        Some((*at, candidates.pop()?, rung))
                    })
                    .collect();
                for (at, place, rung) in pairs {
                    (leftovers[at].class, leftovers[at].reason) = (Class::DeletedByUser, Reason::Moved(rung));
                    live[place].taken = true;
                }
                lost.retain(|at| leftovers[*at].class == Class::Absent);
                alive.retain(|at| !live[*at].taken);
            }
            let (ours, theirs): (Vec<Fingerprint>, Vec<(usize, Fingerprint)>) = (
                lost.iter().filter_map(|at| lost_prints.get(at).cloned()).collect(),
                alive.iter().filter_map(|at| Some((*at, live_prints.get(&live[*at].key[..])?.clone()))).collect(),
            );
            let prints: Vec<Fingerprint> = theirs.iter().map(|(_, print)| print.clone()).collect();
            let found = matching(&ours, &prints);
            for pair in found.pairs {
                let (leftover, alive) = (&mut leftovers[lost[pair.lost]], &mut live[theirs[pair.live].0]);
                (leftover.class, leftover.reason) = if in_mailbox {
                    (Class::Duplicate, Reason::Copy(pair.rung))
                } else if !layout.records_deletions() && layout.message.content.is_none() {
                    (Class::DeletedByUser, Reason::Moved(pair.rung))
                } else {
                    (Class::CannotTell, Reason::CopyElsewhere(pair.rung))
                };
                if in_mailbox {
                    leftover.home = Some(Home::of(alive));
                }
                // A copy elsewhere that proves nothing is not used up.
                alive.taken |= leftover.class != Class::CannotTell;
            }
            for left in found.leftovers.iter().filter(|_| in_mailbox) {
                leftovers[lost[left.lost]].same_id_other_mail = left.same_id_different_parts;
            }
        }
    }
    settle(layout, options, leftovers, live);
    Ok(())
}

/// Rows that lie in another mailbox now, whenever they were moved: key and creation evidence prove it, and the key alone would not,
/// because it may have been issued again.
pub(super) fn moved_rows(layout: &Layout, leftovers: &mut [Leftover], live: &mut [LiveMessage]) {
    let (Ok(key), evidence) = (layout.message.table.single_key(), &layout.message.evidence) else { return };
    if evidence.is_empty() {
        return;
    }
    let mut rows: HashMap<Print, &mut LiveMessage> =
        live.iter_mut().filter(|live| !live.taken).map(|live| (live.print, live)).collect();
    for leftover in leftovers.iter_mut().filter(|leftover| leftover.class == Class::Absent) {
        let print = row_print(leftover.row[key].bytes(), evidence.iter().map(|at| leftover.row[*at].bytes()));
        if let Some(live) = rows.remove(&print) {
            live.taken = true;
            leftover.home = Some(Home::of(live));
            (leftover.class, leftover.reason) = (Class::DeletedByUser, Reason::MovedItself);
        }
    }
}

/// What is still absent: was its key issued again, and can the store tell a loss from a deletion?
fn settle(layout: &Layout, options: &Options, leftovers: &mut [Leftover], live: &[LiveMessage]) {
    let keys: HashSet<&[u8]> = live.iter().map(|live| &live.key[..]).collect();
    let certain = layout.records_deletions() || options.damaged_at.is_some();
    for leftover in leftovers.iter_mut().filter(|leftover| leftover.class == Class::Absent) {
        (leftover.class, leftover.reason) = if let Some(reason) = leftover.doubt {
            (Class::CannotTell, reason)
        } else if keys.contains(&leftover.key[..]) {
            (Class::ReusedId, Reason::KeyIssuedAgain)
        } else if certain {
            (Class::Absent, Reason::NoTrace)
        } else {
            (Class::CannotTell, Reason::NoTombstones)
        };
    }
}

/// Lost and living mails that may be the same: those alone are fetched.
struct Near {
    lost: Vec<usize>,
    live: Vec<usize>,
}

fn near(
    layout: &Layout,
    parents: &Parents,
    leftovers: &[Leftover],
    live: &[LiveMessage],
    open: &[usize],
    candidates: &[usize],
    owner_of: &dyn Fn(&LiveMessage) -> Bytes,
) -> Near {
    let message = &layout.message;
    let mut index: HashMap<(Bytes, Hint), Vec<usize>> = HashMap::new();
    // Mail that came another way has another size. Where no column tells the Message-ID, all that came into the mailbox is looked at.
    let any = layout.message.body.has_header() && message.message_id.is_none();
    for at in candidates {
        let one = &live[*at];
        for scope in [one.mailbox.clone(), owner_of(one)] {
            for hint in hints(layout, one.size.as_deref(), one.message_id.as_deref()) {
                index.entry((scope.clone(), hint)).or_default().push(*at);
            }
        }
        if any {
            index.entry((one.mailbox.clone(), Hint::InTheMailbox)).or_default().push(*at);
        }
    }
    let (mut lost, mut alive) = (Vec::new(), HashSet::new());
    for at in open {
        let leftover = &leftovers[*at];
        let Some(mailbox) = leftover.mailbox else { continue };
        let field = |at: Option<usize>| leftover.row[at?].bytes();
        let scopes = [parents.target(mailbox), parents.target_owner(mailbox)];
        let mut found = false;
        for scope in scopes.into_iter().flatten() {
            let more = any.then_some(Hint::InTheMailbox);
            for hint in hints(layout, field(message.size), field(message.message_id)).into_iter().chain(more) {
                if let Some(list) = index.get(&(scope.key.clone(), hint)) {
                    found = true;
                    alive.extend(list.iter().copied());
                }
            }
        }
        if found {
            lost.push(*at);
        }
    }
    let mut alive: Vec<usize> = alive.into_iter().collect();
    alive.sort_unstable();
    Near { lost, live: alive }
}

/// Equal mails share one of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Hint {
    Size(Bytes),
    MessageId(Bytes),
    NoMessageId,
    /// Nothing else.
    InTheMailbox,
}

/// A store that records neither size nor Message-ID leaves nothing to go by: every mail may be the same.
fn hints(layout: &Layout, size: Option<&[u8]>, message_id: Option<&[u8]>) -> Vec<Hint> {
    let mut hints: Vec<Hint> = size.map(|size| Hint::Size(Bytes::copy_from_slice(size))).into_iter().collect();
    match message_id {
        Some(id) => hints.push(Hint::MessageId(Bytes::copy_from_slice(id))),
        None if layout.message.message_id.is_some() || hints.is_empty() => hints.push(Hint::NoMessageId),
        None => {}
    }
    hints
}
