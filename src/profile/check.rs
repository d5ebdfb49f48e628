//! Does a profile fit together, before any database is asked?

use std::collections::HashMap;

use super::model::*;
use super::validate::qualified;
use super::{Located, Profile, ProfileError};

pub(super) fn check(profile: &Profile) -> Result<(), ProfileError> {
    let check = Check(profile);
    check.mailbox()?;
    check.link()?;
    check.message()?;
    check.parts()?;
    check.tombstones()?;
    check.derived()?;
    check.roles()
}

struct Check<'a>(&'a Profile);

impl Check<'_> {
    fn refuse<T>(&self, part: &Located<T>, message: impl Into<String>) -> Result<(), ProfileError> {
        Err(ProfileError::Inconsistent { at: self.0.place(part), message: message.into() })
    }

    fn mailbox(&self) -> Result<(), ProfileError> {
        let Self(profile) = self;
        let mailbox = &profile.mailbox;
        for (name, counter, row) in
            [("uid", &mailbox.uid, &profile.link.uid), ("modseq", &mailbox.modseq, &profile.link.modseq)]
        {
            let wanted = match counter.kind {
                CounterKind::None | CounterKind::MaxOverRows => (false, false),
                CounterKind::Next | CounterKind::Last => (true, false),
                CounterKind::GlobalSequence => (false, true),
            };
            if wanted != (counter.column.is_some(), counter.sequence.is_some()) {
                let message = format!(
                    "{name} needs a column of the mailbox for the kinds next and last, a sequence for global-sequence, and neither for max-over-rows and none"
                );
                return self.refuse(mailbox, message);
            }
            if row.is_some() != (counter.kind != CounterKind::None) {
                let message = format!(
                    "the mailbox says how {name} is issued exactly when the link names the column that holds it: give both or neither"
                );
                return self.refuse(mailbox, message);
            }
        }
        let validity = &mailbox.uidvalidity;
        if validity.key && validity.column.is_some() {
            return self.refuse(mailbox, "uidvalidity is a column or the key of the mailbox, not both");
        }
        if validity.column.as_ref().is_some_and(|column| mailbox.evidence.0.contains(column)) {
            let message = "uidvalidity is no evidence of a mailbox: a restore changes it where a UID was issued twice";
            return self.refuse(mailbox, message);
        }
        if mailbox.uid.kind != CounterKind::None && !validity.key && validity.column.is_none() {
            return self
                .refuse(mailbox, "a mailbox with UIDs has a uidvalidity: name its column, or say { key = true }");
        }
        if profile.owner.is_some() && mailbox.owner.is_none() {
            return self.refuse(mailbox, "there are owners: name the column that refers to them as owner");
        }
        if mailbox.natural.0.is_empty() || profile.owner.as_ref().is_some_and(|owner| owner.natural.0.is_empty()) {
            return self.refuse(mailbox, "owners and mailboxes are found again by their natural key: name its columns");
        }
        Ok(())
    }

    fn link(&self) -> Result<(), ProfileError> {
        let link = &self.0.link;
        match (&link.table, &link.message) {
            (Some(_), None) => {
                self.refuse(link, "a link with a table of its own names the columns that refer to the message")
            }
            (None, Some(_)) => {
                self.refuse(link, "without a table the message's own row is the link, and has no message to refer to")
            }
            (None, None) if link.key.is_some() => {
                self.refuse(link, "without a table the message's own row is the link: its key stands in [message]")
            }
            _ => Ok(()),
        }
    }

    fn message(&self) -> Result<(), ProfileError> {
        let message = &self.0.message;
        for clock in &message.clocks {
            if (clock.time == TimeType::Timestamp) != clock.zone.is_some() {
                let column = &clock.column;
                return self.refuse(message, format!("clock {column}: a zone is given exactly for the type timestamp"));
            }
        }
        if !message.clocks.iter().any(|clock| clock.clock != ClockKind::Header) {
            return self.refuse(
                message,
                "a clock of the kind arrival or saved is needed: the sender's own date bounds no loss",
            );
        }
        let positions = self.0.part.iter().any(|part| part.via.as_ref().is_some_and(|via| via.position.is_some()));
        let headers = self.0.child.iter().any(|child| child.header);
        match message.body {
            Body::Spliced { .. } if !positions => {
                self.refuse(message, "a spliced body needs a [[part]] whose via has a position")
            }
            Body::HeaderAndParts { .. } | Body::PartsOnly { .. } if self.0.part.is_empty() => {
                self.refuse(message, "a body made of parts needs a [[part]]")
            }
            Body::Raw { .. } | Body::Spliced { .. } | Body::HeaderAndParts { .. } | Body::Text { .. } if headers => {
                self.refuse(message, "a child holds header fields, but the body's assembly is not parts-only")
            }
            Body::Spliced { .. } => Ok(()),
            _ if positions => self.refuse(message, "a part has a position, but the body's assembly is not spliced"),
            _ => Ok(()),
        }
    }

    fn parts(&self) -> Result<(), ProfileError> {
        for part in &self.0.part {
            let ways = [part.via.is_some(), part.message.is_some(), part.referred_by.is_some()];
            if ways.into_iter().filter(|way| *way).count() != 1 {
                return self.refuse(part, "exactly one of via, message and referred_by says whose part it is");
            }
            if part.bytes.0.is_empty() && part.external.is_none() {
                return self.refuse(part, "name the column with the bytes, or say where they lie as external");
            }
        }
        Ok(())
    }

    fn tombstones(&self) -> Result<(), ProfileError> {
        for tombstone in &self.0.tombstone {
            if tombstone.table.is_some() == tombstone.predicate.is_some() {
                return self.refuse(tombstone, "a tombstone is a table or a predicate over the link: give exactly one");
            }
            let marks = tombstone.at.is_some() || !tombstone.set.is_empty();
            if tombstone.predicate.is_some() && !marks && tombstone.write != TombstoneWrite::Never {
                return self.refuse(
                    tombstone,
                    "undoing a restore must mark mail as the store does: name at or set, or say write = \"never\"",
                );
            }
            if tombstone.at.as_ref().is_some_and(|at| tombstone.set.contains_key(at)) {
                return self.refuse(
                    tombstone,
                    "at is written as now(): leave it out where set gives the column another value",
                );
            }
            if tombstone.table.is_some() && tombstone.evidence.is_empty() && tombstone.message.is_none() {
                return self.refuse(
                    tombstone,
                    "numbers are issued again after a loss: name evidence (columns copied from the message), or the message that is still there",
                );
            }
        }
        Ok(())
    }

    fn derived(&self) -> Result<(), ProfileError> {
        for derived in &self.0.derived {
            let ways = [derived.trigger, derived.sql.is_some(), derived.by_hand.is_some()];
            match (ways.into_iter().filter(|way| *way).count(), self.0.triggers) {
                (1, TriggerPolicy::Keep) => {}
                (1, _) if !derived.trigger => {}
                (1, _) => return self.refuse(derived, "a trigger keeps it, so say triggers = \"keep\" at the top"),
                _ => return self.refuse(derived, "exactly one of trigger, sql and by_hand says what keeps it"),
            }
        }
        for hook in &self.0.after {
            let ways = [hook.sql.is_some(), hook.shell.is_some(), hook.http.is_some()];
            if ways.into_iter().filter(|way| *way).count() != 1 {
                return self.refuse(hook, "exactly one of sql, shell and http says what is done");
            }
        }
        Ok(())
    }

    /// Each table has one role; children hang on a table that has one.
    fn roles(&self) -> Result<(), ProfileError> {
        let Self(profile) = self;
        let mut roles = HashMap::new();
        for super::validate::Role { name, table, place, .. } in profile.roles() {
            if table.is_empty() {
                return Err(ProfileError::Inconsistent {
                    at: place,
                    message: "the name of a table is missing".to_owned(),
                });
            }
            if let Some(other) = roles.insert(qualified(&profile.schema, table), name) {
                let message = format!("table {table} is {name} here and {other} elsewhere: a table has one role");
                return Err(ProfileError::Inconsistent { at: place, message });
            }
        }
        for child in &profile.child {
            let known = matches!(child.of.as_str(), "message" | "link")
                || roles.contains_key(&qualified(&profile.schema, &child.of));
            if !known {
                let of = &child.of;
                return self.refuse(
                    child,
                    format!("it is a child of {of}, which is neither message, link nor a table of this profile"),
                );
            }
        }
        Ok(())
    }
}
