//! What may be printed of a comparison: counts, names, times. No subjects, no content.
//!
//! Names of accounts and mailboxes are other people's text; whoever prints them makes them inert.

use std::collections::BTreeMap;

use jiff::{Timestamp, Unit};
use serde::Serialize;

use super::classify::Comparison;
use super::counters::SequenceCounter;
use super::layout::Trigger;
use super::parents::Fate;
use super::row::{Class, Reason};

/// The gap between a snapshot and the live store.
#[derive(Debug, Clone, Serialize)]
pub struct GapReport {
    pub snapshot: String,
    pub taken: Timestamp,
    pub database: String,
    /// Messages on both sides, and those of them whose flags changed since.
    pub same: u64,
    pub changed: u64,
    /// Messages outside the window that were counted alive and not looked at.
    pub not_compared: u64,
    /// Lost for certain: absent, or with an id that was issued again.
    pub lost: u64,
    /// The earliest and the latest lost message; some have no time.
    pub lost_from: Option<Timestamp>,
    pub lost_to: Option<Timestamp>,
    pub lost_without_time: u64,
    /// Living messages that miss parts or children.
    pub incomplete: u64,
    /// Arrived after the snapshot, so in no snapshot: what the damage took of these cannot be put back from here.
    pub beyond: u64,
    pub classes: BTreeMap<Class, u64>,
    pub reasons: BTreeMap<String, u64>,
    pub same_id_other_mail: u64,
    pub hours: Vec<Hour>,
    pub mailboxes: Vec<MailboxGap>,
    pub lost_accounts: Vec<String>,
    pub lost_mailboxes: u64,
    pub sequences: Vec<SequenceCounter>,
    pub low_mailboxes: u64,
    /// Mailboxes in which a UID was issued twice.
    pub collisions: u64,
    pub triggers: Vec<Trigger>,
}

/// Lost mail by the hour of its saving or arrival.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hour {
    pub hour: Timestamp,
    pub lost: u64,
    pub cannot_tell: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MailboxGap {
    pub account: String,
    pub mailbox: String,
    pub lost: u64,
    pub cannot_tell: u64,
    pub deleted_by_user: u64,
    pub duplicate: u64,
    pub orphan: u64,
    pub place_taken: u64,
    pub beyond: u64,
}

impl GapReport {
    pub fn new(comparison: &Comparison) -> Self {
        let parents = &comparison.parents;
        let mut classes: BTreeMap<Class, u64> = BTreeMap::new();
        let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
        let mut hours: BTreeMap<Timestamp, (u64, u64)> = BTreeMap::new();
        let mut mailboxes: BTreeMap<(String, String), MailboxGap> = BTreeMap::new();
        let mut lost_times: Vec<Timestamp> = Vec::new();
        let (mut lost, mut without_time) = (0, 0);
        for leftover in &comparison.leftovers {
            *classes.entry(leftover.class).or_default() += 1;
            *reasons.entry(reason(leftover.reason)).or_default() += 1;
            let label = leftover.mailbox.map(|mailbox| parents.label(mailbox)).unwrap_or_default();
            let gap = mailboxes.entry(label).or_default();
            let is_lost = matches!(leftover.class, Class::Absent | Class::ReusedId);
            match leftover.class {
                Class::Absent | Class::ReusedId => gap.lost += 1,
                Class::Duplicate => gap.duplicate += 1,
                Class::DeletedByUser => gap.deleted_by_user += 1,
                Class::CannotTell => gap.cannot_tell += 1,
                Class::Orphan => gap.orphan += 1,
                Class::PlaceTaken => gap.place_taken += 1,
            }
            if is_lost {
                lost += 1;
                match leftover.instant {
                    Some(instant) => lost_times.push(instant),
                    None => without_time += 1,
                }
            }
            let hour = leftover.instant.and_then(hour);
            if let Some(hour) = hour.filter(|_| is_lost || leftover.class == Class::CannotTell) {
                let counts = hours.entry(hour).or_default();
                if is_lost { counts.0 += 1 } else { counts.1 += 1 }
            }
        }
        let mut beyond = 0;
        for live in comparison.live.iter().filter(|live| !live.taken) {
            beyond += 1;
            let mailbox = parents.live_mailbox(&live.mailbox);
            let account = mailbox.and_then(|mailbox| parents.live_owner(mailbox.owner.as_ref()?));
            let label = (
                account.map(|account| account.label.clone()).unwrap_or_default(),
                mailbox.map(|mailbox| mailbox.label.clone()).unwrap_or_default(),
            );
            mailboxes.entry(label).or_default().beyond += 1;
        }
        let low = comparison.counters.low(&comparison.layout.mailbox, parents);
        let lost_parent = |fate: Fate| fate == Fate::Lost;
        Self {
            snapshot: comparison.facts.snapshot.clone(),
            taken: comparison.facts.taken,
            database: comparison.facts.store.database.clone(),
            same: comparison.same,
            changed: comparison.changed,
            not_compared: comparison.not_compared,
            lost,
            lost_from: lost_times.iter().min().copied(),
            lost_to: lost_times.iter().max().copied(),
            lost_without_time: without_time,
            incomplete: comparison.incomplete.messages.len() as u64,
            beyond,
            classes,
            reasons,
            same_id_other_mail: comparison.leftovers.iter().filter(|one| one.same_id_other_mail).count() as u64,
            hours: hours.into_iter().map(|(hour, (lost, cannot_tell))| Hour { hour, lost, cannot_tell }).collect(),
            mailboxes: mailboxes
                .into_iter()
                .map(|((account, mailbox), gap)| MailboxGap { account, mailbox, ..gap })
                .collect(),
            lost_accounts: parents
                .owners
                .iter()
                .filter(|one| lost_parent(one.fate))
                .map(|one| one.label.clone())
                .collect(),
            lost_mailboxes: parents.mailboxes.iter().filter(|one| lost_parent(one.fate)).count() as u64,
            sequences: comparison.counters.low_sequences().into_iter().cloned().collect(),
            collisions: low.iter().filter(|counter| counter.collided.is_some()).count() as u64,
            low_mailboxes: low.len() as u64,
            triggers: comparison.layout.triggers.clone(),
        }
    }

    /// Is there anything to put back or to repair?
    pub fn has_findings(&self) -> bool {
        let of = |class| self.classes.get(&class).copied().unwrap_or(0);
        let doubtful = of(Class::CannotTell) + of(Class::PlaceTaken);
        self.lost + self.incomplete + doubtful + self.lost_mailboxes + self.low_mailboxes > 0
            || !self.lost_accounts.is_empty()
            || !self.sequences.is_empty()
    }
}

fn hour(instant: Timestamp) -> Option<Timestamp> {
    instant.round(jiff::TimestampRound::new().smallest(Unit::Hour).mode(jiff::RoundMode::Floor)).ok()
}

/// `copy: stored-bytes`, `tombstone`.
pub fn reason(reason: Reason) -> String {
    match serde_json::to_value(reason) {
        Ok(serde_json::Value::String(name)) => name,
        Ok(serde_json::Value::Object(fields)) => {
            let field = fields.into_iter().next();
            field.map(|(name, rung)| format!("{name}: {}", rung.as_str().unwrap_or_default())).unwrap_or_default()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::identity::Rung;

    #[test]
    fn reasons_have_names_for_people() {
        assert_eq!(reason(Reason::Tombstone), "tombstone");
        assert_eq!(reason(Reason::Copy(Rung::StoredBytes)), "copy: stored-bytes");
    }

    #[test]
    fn hours_begin_at_their_beginning() {
        let at: Timestamp = "2014-08-10T14:59:59.9Z".parse().unwrap();
        assert_eq!(hour(at).unwrap().to_string(), "2014-08-10T14:00:00Z");
    }
}
