//! Which messages go where, in which order. Nothing is written.
//!
//! A plan is an upper bound: each batch looks again under its locks.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use serde::Serialize;

use super::clients::clients;
use super::dictionaries::referring;
use crate::compare::columns::Differing;
use crate::compare::counters::{Highest, MailboxCounter, SequenceCounter};
use crate::compare::layout::{Parent, Refers};
use crate::compare::parents::{Fate, LiveParent};
use crate::compare::row::Print;
use crate::compare::{Class, Comparison, Leftover, Reason, Window};

/// What to do with mail of which nobody can tell whether its user removed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doubtful {
    /// Into its mailbox: a mail too many can be undone.
    #[default]
    Restore,
    /// Into `Recovered/<mailbox>`.
    SideFolder,
    Skip,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct PlanOptions {
    pub window: Window,
    /// Only these accounts and mailboxes, by their names; empty: all.
    pub accounts: Vec<String>,
    pub mailboxes: Vec<String>,
    pub doubtful: Doubtful,
    /// Mail of deleted mailboxes goes to `Recovered/<mailbox>` where the account is left.
    pub orphans: bool,
    /// Living messages that miss parts are left as they are. With a filter they always are.
    pub leave_incomplete: bool,
    /// All mail goes into `NAME/<mailbox>`, also what is certain.
    pub into_folder: Option<String>,
    /// Columns of living messages that are put back, as `TABLE.COLUMN`.
    pub columns: Vec<String>,
    /// Accounts whose mail comes first, in this order. What is put back does not depend on it, so a replay that was cut short is finished in
    /// any order.
    #[serde(skip)]
    pub first: Vec<String>,
    /// Messages that the plan of a newer snapshot has dealt with.
    #[serde(skip)]
    pub dealt_with: HashSet<Print>,
}

/// Why a lost message is not put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Left {
    /// Outside the window, or of another account or mailbox than those asked for.
    Outside,
    /// Its user or the damage removed it, and doubtful mail is left out.
    CannotTell,
    /// An orphan.
    FolderDeleted,
    /// Another mail has what a unique key gives to one alone.
    PlaceTaken,
    /// Its mailbox went away while the restore ran.
    NoFolder,
}

/// A message and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Position among the comparison's leftovers.
    pub leftover: usize,
    /// Position among the snapshot's mailboxes.
    pub mailbox: usize,
    /// Into a side folder.
    pub aside: bool,
}

/// What a restore would do. Build an [`super::Apply`] from it to do it.
pub struct Plan {
    pub comparison: Comparison,
    /// In the order in which they are put back: newest mail first, unless accounts come before others.
    pub moves: Vec<Move>,
    /// Accounts and mailboxes that were lost and are put back, as positions among the snapshot's.
    pub owners: Vec<usize>,
    pub mailboxes: Vec<usize>,
    /// Mailboxes that get a side folder, `FOLDER/<mailbox>`.
    pub aside: Vec<usize>,
    pub folder: String,
    pub counters: Vec<MailboxCounter>,
    /// Those that are raised.
    pub sequences: Vec<SequenceCounter>,
    /// Absent messages that are not put back, by their position among the leftovers.
    pub left: Vec<(usize, Left)>,
    /// Messages that an earlier replay put back, likewise.
    pub earlier: Vec<usize>,
    /// Living messages are made whole again.
    pub repair: bool,
    /// Living messages that get columns back: what was found of those that were asked for.
    pub columns: Differing,
    /// A hash over the options: no address stands in the journal.
    pub(super) asked: String,
    links: Links,
}

/// Which leftovers refer to which, by the keys of the snapshot. Empty where messages do not refer to each other.
#[derive(Default)]
struct Links {
    by_key: HashMap<Bytes, usize>,
    answers: HashMap<Bytes, Vec<usize>>,
}

impl Links {
    fn new(comparison: &Comparison) -> Self {
        let mut links = Self::default();
        for (at, leftover) in comparison.leftovers.iter().enumerate() {
            if comparison.referred.keys.contains_key(&leftover.key[..]) {
                links.by_key.insert(leftover.key.clone(), at);
            }
            for (column, _) in comparison.layout.message.refers.iter().filter(|(_, refers)| *refers == Refers::Message)
            {
                if let Some(key) = leftover.row[*column].bytes() {
                    links.answers.entry(Bytes::copy_from_slice(key)).or_default().push(at);
                }
            }
        }
        links
    }
}

/// What people put aside is found there.
const FOLDER: &str = "Recovered";

/// A plan in numbers.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    pub messages: u64,
    pub aside: u64,
    pub incomplete: u64,
    /// Living messages that get columns back, and those that were touched since the snapshot and keep theirs.
    pub columns: u64,
    pub columns_touched: u64,
    pub accounts: u64,
    pub mailboxes: u64,
    pub counters: u64,
    pub sequences: u64,
    pub outside: u64,
    pub left_out: u64,
    pub place_taken: u64,
    /// What mail clients will do.
    pub clients: Vec<String>,
}

impl Plan {
    /// The leftover that has this key in the snapshot and that others refer to.
    pub(super) fn leftover(&self, key: &[u8]) -> Option<usize> {
        self.links.by_key.get(key).copied()
    }

    /// How many of `moves` from this one on should not be torn apart.
    pub(super) fn together(&self, moves: &[Move], at: usize) -> usize {
        let of = |one: &Move| group(&self.comparison, one).filter(|_| self.comparison.layout.deferred);
        let own = of(&moves[at]);
        let begins = own.is_some() && (at == 0 || of(&moves[at - 1]) != own);
        if begins { moves[at..].iter().take_while(|one| of(one) == own).count() } else { 1 }
    }

    /// The moves in at most so many lanes that can be put back side by side: each account's mail in one of them, in order.
    /// Where mails refer to each other, or to rows that others refer to as well, one lane alone knows what the batches before it did.
    pub(super) fn lanes(&self, most: usize) -> Vec<Vec<Move>> {
        let layout = &self.comparison.layout;
        let is_apart = layout.message.content.is_none()
            && layout.dictionaries.is_empty()
            && referring(layout, Refers::Message).is_empty();
        if !is_apart || most < 2 {
            return vec![self.moves.clone()];
        }
        let mailboxes = &self.comparison.parents.mailboxes;
        let mut lanes = vec![Vec::new(); most];
        for one in &self.moves {
            // What triggers keep of an account is one row.
            let account = mailboxes[one.mailbox].owner.unwrap_or(one.mailbox);
            lanes[account % most].push(*one);
        }
        lanes
    }

    /// The leftovers that refer to the message that has this key in the snapshot.
    pub(super) fn answers(&self, key: &[u8]) -> &[usize] {
        self.links.answers.get(key).map_or(&[], Vec::as_slice)
    }

    pub fn summary(&self) -> Summary {
        let incomplete = if self.repair { self.comparison.incomplete.messages.len() } else { 0 };
        let messages = self.moves.len() as u64;
        Summary {
            messages,
            clients: self.clients(messages),
            aside: self.moves.iter().filter(|one| one.aside).count() as u64,
            incomplete: incomplete as u64,
            columns: self.columns.rows.len() as u64,
            columns_touched: self.columns.touched,
            accounts: self.owners.len() as u64,
            mailboxes: (self.mailboxes.len() + self.aside.len()) as u64,
            counters: self.counters.len() as u64,
            sequences: self.sequences.len() as u64,
            outside: self.outside(),
            left_out: self.left_out(),
            place_taken: self.place_taken(),
        }
    }

    /// What mail clients will do when so many messages are put back.
    pub(super) fn clients(&self, messages: u64) -> Vec<String> {
        let layout = &self.comparison.layout;
        let another = self.counters.iter().filter(|one| one.collided.is_some() && layout.mailbox.uidvalidity.is_some());
        let anew = if layout.mailbox.uidvalidity.is_some() { self.mailboxes.len() } else { 0 };
        clients(layout, messages, (another.count() + anew) as u64)
    }

    fn count_left(&self, counts: impl Fn(Left) -> bool) -> u64 {
        self.left.iter().filter(|(_, why)| counts(*why)).count() as u64
    }

    /// Absent messages outside the window, or of other accounts and mailboxes.
    pub fn outside(&self) -> u64 {
        self.count_left(|why| why == Left::Outside)
    }

    /// Doubtful ones and orphans that are left out.
    pub fn left_out(&self) -> u64 {
        self.count_left(|why| !matches!(why, Left::Outside | Left::PlaceTaken))
    }

    /// Lost ones that stay out because another mail has their place.
    pub fn place_taken(&self) -> u64 {
        self.count_left(|why| why == Left::PlaceTaken)
    }

    /// The messages that this plan deals with, by their names for all journals.
    pub fn deals_with(&self) -> impl Iterator<Item = Print> {
        let moved = self.moves.iter().map(|one| one.leftover);
        let all = moved.chain(self.left.iter().map(|(leftover, _)| *leftover)).chain(self.earlier.iter().copied());
        all.map(|at| self.comparison.leftovers[at].source)
    }

    /// The name of the mailbox that mail goes into.
    pub fn folder_of(&self, mailbox: usize, aside: bool) -> String {
        let (_, name) = self.comparison.parents.label(mailbox);
        let beside = self.beside(mailbox, name.as_bytes()).filter(|_| aside);
        beside.map_or(name, |beside| String::from_utf8_lossy(&beside).into_owned())
    }

    /// The name of a mailbox's side folder; `None`: there is no place for one.
    pub(super) fn beside(&self, mailbox: usize, name: &[u8]) -> Option<Vec<u8>> {
        let (account, _) = self.comparison.parents.label(mailbox);
        let home = self.comparison.layout.mailbox.home.as_deref().unwrap_or_default().replace("{owner}", &account);
        let rest = name.strip_prefix(home.as_bytes())?;
        Some([home.as_bytes(), self.folder.as_bytes(), b"/", rest].concat())
    }

    pub fn new(comparison: Comparison, options: &PlanOptions) -> Self {
        let filtered = !options.accounts.is_empty() || !options.mailboxes.is_empty();
        let (mut moves, mut left, mut earlier) = (Vec::new(), Vec::new(), Vec::new());
        let open = |leftover: &Leftover| !options.dealt_with.contains(&leftover.source);
        for (at, leftover) in comparison.leftovers.iter().enumerate().filter(|(_, leftover)| open(leftover)) {
            if leftover.reason == Reason::RestoredBefore {
                earlier.push(at);
            }
            if matches!(leftover.class, Class::Duplicate | Class::DeletedByUser) {
                continue;
            }
            let Some(mailbox) = leftover.mailbox.filter(|mailbox| chosen(&comparison, *mailbox, options)) else {
                left.push((at, Left::Outside));
                continue;
            };
            if !options.window.holds(leftover.instant) {
                left.push((at, Left::Outside));
                continue;
            }
            if leftover.class == Class::PlaceTaken {
                left.push((at, Left::PlaceTaken));
                continue;
            }
            match aside(&comparison, leftover, mailbox, options) {
                Some(aside) => moves.push(Move { leftover: at, mailbox, aside }),
                None if leftover.class == Class::Orphan => left.push((at, Left::FolderDeleted)),
                None => left.push((at, Left::CannotTell)),
            }
        }
        let parents = &comparison.parents;
        let rank: Vec<usize> = (0..parents.mailboxes.len())
            .map(|mailbox| {
                let (account, _) = parents.label(mailbox);
                options.first.iter().position(|first| *first == account).unwrap_or(usize::MAX)
            })
            .collect();
        // What goes aside has a batch of its own: what it shares goes there too.
        let order =
            |at: &Move| (at.aside, rank[at.mailbox], Reverse(comparison.leftovers[at.leftover].instant), at.leftover);
        moves.sort_by_key(order);
        if comparison.layout.deferred {
            // A group stands where its newest mail does.
            let mut first = HashMap::new();
            let place = |(at, one): (usize, &Move)| {
                let group = group(&comparison, one)?;
                Some(*first.entry((one.aside, group)).or_insert(at))
            };
            let places: Vec<Option<usize>> = moves.iter().enumerate().map(place).collect();
            let mut placed: Vec<(usize, Move)> = moves
                .into_iter()
                .zip(places)
                .enumerate()
                .map(|(at, (one, place))| (place.unwrap_or(at), one))
                .collect();
            placed.sort_by_key(|(place, _)| *place);
            moves = placed.into_iter().map(|(_, one)| one).collect();
        }

        let lost = |fate: Fate| fate == Fate::Lost;
        let needed = |mailbox: usize| moves.iter().any(|one| one.mailbox == mailbox && !one.aside);
        // Empty mailboxes come back too, unless there is a filter or all goes aside.
        let mailboxes: Vec<usize> = (0..parents.mailboxes.len())
            .filter(|at| lost(parents.mailboxes[*at].fate))
            .filter(|at| {
                chosen(&comparison, *at, options) && (!filtered && options.into_folder.is_none() || needed(*at))
            })
            .collect();
        let mut aside: Vec<usize> = moves.iter().filter(|one| one.aside).map(|one| one.mailbox).collect();
        aside.sort_unstable();
        aside.dedup();
        let owners: Vec<usize> = (0..parents.owners.len())
            .filter(|at| lost(parents.owners[*at].fate))
            .filter(|at| {
                !filtered
                    || mailboxes.iter().chain(&aside).any(|mailbox| parents.mailboxes[*mailbox].owner == Some(*at))
            })
            .collect();
        let mut counters = comparison.counters.low(&comparison.layout.mailbox, parents);
        let targets: BTreeSet<usize> = moves.iter().filter(|one| !one.aside).map(|one| one.mailbox).collect();
        for mailbox in targets {
            if let Fate::Alive(live) = parents.mailboxes[mailbox].fate {
                skip_ahead(&mut counters, live, &parents.live_mailboxes[live], &comparison.layout.mailbox);
            }
        }
        let ahead = if moves.is_empty() { 0 } else { SKIPPED };
        let sequences = comparison.counters.low_sequences(comparison.layout.uid_sequence.as_ref(), ahead);
        let repair = !filtered && !options.leave_incomplete;
        let asked =
            blake3::hash(serde_json::to_string(options).unwrap_or_default().as_bytes()).to_hex()[..16].to_owned();
        let folder = options.into_folder.clone().unwrap_or_else(|| FOLDER.to_owned());
        let links = Links::new(&comparison);
        Self {
            asked,
            comparison,
            moves,
            owners,
            mailboxes,
            aside,
            folder,
            counters,
            sequences,
            left,
            earlier,
            repair,
            columns: Differing::default(),
            links,
        }
    }

    /// Is there nothing to put back and nothing to repair?
    pub fn is_empty(&self) -> bool {
        self.moves.is_empty()
            && self.owners.is_empty()
            && self.mailboxes.is_empty()
            && self.counters.is_empty()
            && self.sequences.is_empty()
            && self.columns.rows.is_empty()
            && (!self.repair || self.comparison.incomplete.messages.is_empty())
    }
}

/// The dictionary that a message shares with others and that refers back to one of them.
fn group<'a>(comparison: &'a Comparison, one: &Move) -> Option<(usize, &'a [u8])> {
    let layout = &comparison.layout;
    layout.message.refers.iter().find_map(|(column, refers)| match refers {
        Refers::Dictionary(kind) => {
            let back = layout.dictionaries[*kind].refers.iter().any(|(_, refers)| *refers == Refers::Message);
            Some((*kind, comparison.leftovers[one.leftover].row[*column].bytes().filter(|_| back)?))
        }
        _ => None,
    })
}

/// What no row may be given any more in a mailbox that nothing counts for but its rows.
pub(super) fn spent(comparison: &Comparison, mailbox: &[u8]) -> Highest {
    let mut spent = comparison.counters.highest(mailbox);
    let skip = |highest: i64| if highest > 0 { highest + SKIPPED } else { 0 };
    (spent.uid, spent.modseq) = (skip(spent.uid), skip(spent.modseq));
    spent
}

/// A mailbox that lost mail may also have lost mail that came after the snapshot, and with it its counters. Those UIDs are in no snapshot
/// and clients have seen them, so as many are skipped as a mailbox may have got meanwhile. 2³² UIDs last for 400,000 restores.
const SKIPPED: i64 = 10_000;

fn skip_ahead(counters: &mut Vec<MailboxCounter>, live: usize, now: &LiveParent, layout: &Parent) {
    if layout.uid.is_none() && layout.modseq.is_none() {
        return;
    }
    let at = counters.iter().position(|counter| counter.live == live).unwrap_or_else(|| {
        counters.push(MailboxCounter { live, uid: None, modseq: None, collided: None });
        counters.len() - 1
    });
    let counter = &mut counters[at];
    // NULL: none was issued yet.
    let ahead = |column: Option<usize>, least: Option<i64>, now: Option<i64>| {
        column.map(|_| least.unwrap_or(0).max(now.unwrap_or(0)) + SKIPPED)
    };
    counter.uid = ahead(layout.uid, counter.uid, now.uid);
    counter.modseq = ahead(layout.modseq, counter.modseq, now.modseq);
}

fn chosen(comparison: &Comparison, mailbox: usize, options: &PlanOptions) -> bool {
    let (account, name) = comparison.parents.label(mailbox);
    let among = |list: &[String], name: &str| list.is_empty() || list.iter().any(|one| one == name);
    among(&options.accounts, &account) && among(&options.mailboxes, &name)
}

/// `Some(true)`: into a side folder; `None`: not at all.
fn aside(comparison: &Comparison, leftover: &Leftover, mailbox: usize, options: &PlanOptions) -> Option<bool> {
    match leftover.class {
        Class::Absent | Class::ReusedId => Some(options.into_folder.is_some()),
        Class::CannotTell => match options.doubtful {
            Doubtful::Restore => Some(options.into_folder.is_some()),
            Doubtful::SideFolder => Some(true),
            Doubtful::Skip => None,
        },
        Class::Orphan => (options.orphans && comparison.parents.target_owner(mailbox).is_some()).then_some(true),
        Class::Duplicate | Class::DeletedByUser | Class::PlaceTaken => None,
    }
}
