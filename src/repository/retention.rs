//! Which snapshots are kept: pure arithmetic over what was listed, so that it can be shown before it is done.
//!
//! What a rule may believe is what the *storage* says of a snapshot, when it was written, never what the snapshot says of itself: its time
//! orders nothing here. So one that is made up, with any time in its name, takes no other one's place but that of the instant at which it
//! was put.
//!
//! * Rules count by store and by writer: another writer's snapshots evict none of ours.
//! * Only certified snapshots count. One that is suspect or incomplete counts, but never in the place of a good one: the rules are applied
//!   to the good ones alone, and to all, and what either keeps is kept.
//! * A snapshot whose own time is more than a day off the storage's is told, does not count, and is not removed by any rule.
//! * The newest certified and the newest good snapshot of a store are always kept, and of a suspect one what it was taken from and the last good
//!   one before it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};

use super::error::RepositoryError;
use super::id::{ObjectId, SignerId};
use super::manifest::StoreIdentity;
use super::snapshots::{OFF, Snapshot};

/// What is to be kept of each store. Of several snapshots of an hour, day, … the newest.
#[derive(Debug, Clone)]
pub struct Policy {
    pub last: u32,
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
    /// All that are younger than so much, counted back from the newest.
    pub within: Option<Span>,
    pub tags: Vec<String>,
    /// Whose days are counted.
    pub zone: TimeZone,
}

impl Policy {
    /// It would keep nothing.
    pub fn is_empty(&self) -> bool {
        let counts = [self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly];
        counts.iter().all(|count| *count == 0) && self.within.is_none_or(|span| span.is_zero()) && self.tags.is_empty()
    }

    /// What the rules keep of these, newest first, and each rule's name.
    fn select<'a>(&self, newest_first: &[&'a Snapshot]) -> Vec<(&'a Snapshot, String)> {
        let mut kept = Vec::new();
        let at = |snapshot: &Snapshot| snapshot.stored.to_zoned(self.zone.clone());
        kept.extend(newest_first.iter().take(self.last as usize).map(|one| (*one, "last".to_owned())));
        let periods = [
            ("hourly", self.hourly, "%Y-%m-%d %H:00"),
            ("daily", self.daily, "%Y-%m-%d"),
            ("weekly", self.weekly, "%G-W%V"),
            ("monthly", self.monthly, "%Y-%m"),
            ("yearly", self.yearly, "%Y"),
        ];
        for (rule, count, period) in periods {
            let mut seen = BTreeSet::new();
            for one in newest_first {
                if seen.len() as u64 >= u64::from(count) {
                    break;
                }
                let period = at(one).strftime(period).to_string();
                if seen.insert(period.clone()) {
                    kept.push((one, format!("{rule} {period}")));
                }
            }
        }
        let since = self.within.zip(newest_first.first()).and_then(|(span, newest)| at(newest).checked_sub(span).ok());
        let young = newest_first.iter().filter(|one| since.as_ref().is_some_and(|since| at(one) > *since));
        kept.extend(young.map(|one| (*one, "within".to_owned())));
        for tag in &self.tags {
            let tagged = newest_first.iter().filter(|one| one.manifest.tags.contains(tag));
            kept.extend(tagged.map(|one| (*one, format!("tag {tag}"))));
        }
        kept
    }
}

/// What becomes of a snapshot, and why.
#[derive(Debug)]
pub struct Judged<'a> {
    pub snapshot: &'a Snapshot,
    pub keep: bool,
    /// Sentences or words for people; of one that goes, that nothing keeps it.
    pub reasons: Vec<String>,
    /// Its own time is not what the storage says.
    pub alarm: bool,
}

/// Everything about snapshots that are not forgotten that rules go by.
pub struct Retention<'a> {
    /// Of each store and writer, newest first by the storage's clock.
    groups: BTreeMap<(String, SignerId), Vec<&'a Snapshot>>,
    held: &'a HashSet<ObjectId>,
}

impl<'a> Retention<'a> {
    /// `own`: this writer's signers, of all epochs: its snapshots are one history.
    pub fn new(snapshots: &'a [Snapshot], held: &'a HashSet<ObjectId>, own: &[SignerId]) -> Self {
        let mut groups: BTreeMap<_, Vec<&Snapshot>> = BTreeMap::new();
        for snapshot in snapshots.iter().filter(|snapshot| snapshot.removable.is_none()) {
            let writer = own.first().filter(|_| own.contains(&snapshot.signer)).unwrap_or(&snapshot.signer);
            groups.entry((store(&snapshot.manifest.store), *writer)).or_default().push(snapshot);
        }
        for group in groups.values_mut() {
            group.sort_by_key(|snapshot| std::cmp::Reverse((snapshot.stored, snapshot.id)));
        }
        Self { groups, held }
    }

    /// What the policy makes of every snapshot, by group, newest first.
    pub fn judge(&self, policy: &Policy) -> Vec<Judged<'a>> {
        self.groups.values().flat_map(|group| self.judge_group(group, policy)).collect()
    }

    fn judge_group(&self, group: &[&'a Snapshot], policy: &Policy) -> Vec<Judged<'a>> {
        let mut reasons: BTreeMap<ObjectId, BTreeSet<String>> = BTreeMap::new();
        let counted: Vec<&Snapshot> = group.iter().copied().filter(|one| counts(one)).collect();
        let good: Vec<&Snapshot> = counted.iter().copied().filter(|one| is_good(one)).collect();
        for (one, rule) in policy.select(&good).into_iter().chain(policy.select(&counted)) {
            reasons.entry(one.id).or_default().insert(rule);
        }
        let judged = group.iter().map(|snapshot| {
            let mut reasons: Vec<String> = reasons.remove(&snapshot.id).into_iter().flatten().collect();
            reasons.extend(self.why_kept(group, snapshot));
            if is_off(snapshot) {
                let (stored, taken) = (snapshot.stored, snapshot.manifest.taken);
                reasons.push(format!("its time, {taken}, is not that of the storage, {stored}: look who made it"));
            } else if snapshot.certificate.is_none() && !is_left_behind(group, snapshot) {
                reasons.push("not certified, but it may be under way".to_owned());
            }
            let keep = !reasons.is_empty();
            if !keep {
                let why = if snapshot.certificate.is_none() { "never read back in full" } else { "no rule keeps it" };
                reasons.push(why.to_owned());
            }
            Judged { snapshot, keep, reasons, alarm: is_off(snapshot) }
        });
        judged.collect()
    }

    /// May this one be forgotten by name? The reason why not is the error.
    pub fn check(&self, wanted: &Snapshot) -> Result<(), RepositoryError> {
        let group = self.groups.values().find(|group| group.iter().any(|one| one.id == wanted.id));
        match group.and_then(|group| self.why_kept(group, wanted).into_iter().next()) {
            Some(reason) => Err(RepositoryError::Kept { snapshot: wanted.id, reason }),
            None => Ok(()),
        }
    }

    /// What keeps a snapshot whatever rules or people say.
    fn why_kept(&self, group: &[&Snapshot], snapshot: &Snapshot) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.held.contains(&snapshot.id) {
            reasons.push("held".to_owned());
        }
        let is = |one: Option<&&Snapshot>| one.is_some_and(|one| one.id == snapshot.id);
        if is(group.iter().find(|one| counts(one) && is_good(one))) {
            reasons.push("the newest good one of its store".to_owned());
        } else if is(group.iter().find(|one| counts(one))) {
            reasons.push("the newest one of its store".to_owned());
        }
        for (at, suspect) in group.iter().enumerate().filter(|(_, one)| !one.manifest.suspect.is_empty()) {
            let before = group[at + 1..].iter().find(|one| counts(one) && is_good(one));
            if suspect.manifest.parent == Some(snapshot.id) || is(before) {
                reasons.push(format!("{} after it is suspect", suspect.short()));
            }
        }
        reasons
    }
}

/// For ordering alone.
fn store(identity: &StoreIdentity) -> String {
    format!("{:?} {} {}", identity.system_identifier, identity.database_oid, identity.database)
}

fn is_good(snapshot: &Snapshot) -> bool {
    snapshot.manifest.complete && snapshot.manifest.suspect.is_empty()
}

/// May it stand for a period?
fn counts(snapshot: &Snapshot) -> bool {
    snapshot.certificate.is_some() && !is_off(snapshot)
}

/// Is its time more than a day from the storage's? A run that took longer than a day shows an instant that was then as long ago.
fn is_off(snapshot: &Snapshot) -> bool {
    let manifest = &snapshot.manifest;
    let took = manifest.finished.duration_since(manifest.taken).max(SignedDuration::ZERO);
    let off = snapshot.stored.duration_since(manifest.taken);
    off < -OFF || off > took.saturating_add(OFF)
}

/// A run that comes to its end is certified within the day.
fn is_left_behind(group: &[&Snapshot], snapshot: &Snapshot) -> bool {
    let day_after = snapshot.stored.saturating_add(OFF).unwrap_or(Timestamp::MAX);
    group.iter().any(|later| counts(later) && later.stored > day_after)
}
