//! A draft held against the profile that a person wrote: which tables got their role, which columns their part.

use std::collections::BTreeMap;
use std::fmt;

use restante::profile::{Body, CounterKind, Profile};

/// What a profile says, one fact a slot.
type Facts = BTreeMap<String, String>;

#[derive(Debug, Default)]
struct Count {
    found: usize,
    wrong: Vec<String>,
    open: Vec<String>,
}

#[derive(Debug)]
pub struct Measure {
    roles: Count,
    columns: Count,
    /// Roles that the draft gives to tables of which the person says nothing.
    more: Vec<String>,
    questions: usize,
}

impl Measure {
    pub fn of(wanted: &Profile, draft: &Profile, questions: usize) -> Self {
        let (wanted_roles, draft_roles) = (roles(wanted), roles(draft));
        let more = draft_roles.iter().filter(|(table, _)| !wanted_roles.contains_key(*table));
        Self {
            roles: count(&wanted_roles, &draft_roles),
            columns: count(&columns(wanted), &columns(draft)),
            more: more.map(|(table, role)| format!("{table}: {role}")).collect(),
            questions,
        }
    }

    /// How many roles and columns are right.
    pub fn found(&self) -> (usize, usize) {
        (self.roles.found, self.columns.found)
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, count) in [("roles", &self.roles), ("columns", &self.columns)] {
            let all = count.found + count.wrong.len() + count.open.len();
            writeln!(
                f,
                "{what}: {} of {all} found, {} wrong, {} open",
                count.found,
                count.wrong.len(),
                count.open.len()
            )?;
            writeln!(f, "  wrong: {:#?}\n  open: {:?}", count.wrong, count.open)?;
        }
        write!(f, "{} more: {:?}; {} questions", self.more.len(), self.more, self.questions)
    }
}

fn count(wanted: &Facts, draft: &Facts) -> Count {
    let mut count = Count::default();
    for (slot, value) in wanted {
        match draft.get(slot) {
            Some(said) if said == value => count.found += 1,
            Some(said) => count.wrong.push(format!("{slot}: {said}, not {value}")),
            None => count.open.push(format!("{slot}: {value}")),
        }
    }
    count
}

fn roles(profile: &Profile) -> Facts {
    let mut roles = Facts::new();
    let mut say = |table: &str, role: &str| _ = roles.insert(table.to_owned(), role.to_owned());
    // A derived column leaves its table in its role.
    for derived in profile.derived.iter().filter(|derived| derived.column.is_none()) {
        say(&derived.table, "derived");
    }
    profile.owner.iter().for_each(|owner| say(&owner.table, "owner"));
    say(&profile.mailbox.table, "mailbox");
    say(profile.link_table(), "link");
    say(&profile.message.table, "message");
    profile
        .flags
        .iter()
        .filter_map(|flags| flags.keywords.as_ref())
        .for_each(|keywords| say(&keywords.table, "keywords"));
    for part in &profile.part {
        say(&part.table, "part");
        part.via.iter().for_each(|via| say(&via.table, "via"));
    }
    profile.dictionary.iter().for_each(|dictionary| say(&dictionary.table, "dictionary"));
    profile.child.iter().for_each(|child| say(&child.table, &format!("child of {}", profile.parent_of(child))));
    profile.tombstone.iter().filter_map(|tombstone| tombstone.table.as_ref()).for_each(|table| say(table, "tombstone"));
    profile.never.iter().for_each(|table| say(table, "never"));
    roles
}

fn columns(profile: &Profile) -> Facts {
    let mut facts = Facts::new();
    let mut say = |slot: String, value: String| _ = facts.insert(slot, value);
    let sorted = |columns: &[String]| {
        let mut columns = columns.to_vec();
        columns.sort();
        columns.join(", ")
    };
    if let Some(owner) = &profile.owner {
        say("owner natural".into(), sorted(&owner.natural.0));
        owner.evidence.0.iter().for_each(|column| say(format!("owner evidence {column}"), "yes".into()));
        owner.live.iter().for_each(|live| say("owner live".into(), live.replace('"', "")));
    }
    let mailbox = &profile.mailbox;
    mailbox.owner.iter().for_each(|owner| say("mailbox owner".into(), sorted(&owner.0)));
    say("mailbox natural".into(), sorted(&mailbox.natural.0));
    mailbox.evidence.0.iter().for_each(|column| say(format!("mailbox evidence {column}"), "yes".into()));
    mailbox.live.iter().for_each(|live| say("mailbox live".into(), live.replace('"', "")));
    for (name, counter) in [("uid", &mailbox.uid), ("modseq", &mailbox.modseq)] {
        if counter.kind != CounterKind::None {
            say(format!("mailbox {name}"), format!("{:?} {:?} {:?}", counter.kind, counter.column, counter.sequence));
        }
    }
    if mailbox.uid.kind != CounterKind::None {
        say("uidvalidity".into(), format!("{:?} {}", mailbox.uidvalidity.column, mailbox.uidvalidity.key));
    }
    let message = &profile.message;
    message.size.iter().for_each(|size| say("size".into(), size.clone()));
    message.message_id.iter().for_each(|id| say("message_id".into(), id.clone()));
    message.evidence.0.iter().for_each(|column| say(format!("message evidence {column}"), "yes".into()));
    for clock in &message.clocks {
        say(format!("clock {}", clock.column), format!("{:?} {:?} {:?}", clock.clock, clock.time, clock.table));
    }
    let body = match &message.body {
        Body::Raw { column } => format!("raw {column}"),
        Body::Spliced { column } => format!("spliced {column}"),
        Body::HeaderAndParts { header } => format!("header and parts {header}"),
        Body::PartsOnly { .. } => "parts only".to_owned(),
        Body::Text { columns } => format!("text {}", sorted(&columns.0)),
    };
    say("body".into(), body);
    let link = &profile.link;
    say("link mailbox".into(), sorted(&link.mailbox.0));
    link.message.iter().for_each(|message| say("link message".into(), sorted(&message.0)));
    link.uid.iter().for_each(|uid| say("link uid".into(), uid.clone()));
    link.modseq.iter().for_each(|modseq| say("link modseq".into(), modseq.clone()));
    link.live.iter().for_each(|live| say("link live".into(), live.replace('"', "")));
    if let Some(flags) = &profile.flags {
        flags.columns.0.iter().for_each(|column| say(format!("flag {column}"), "yes".into()));
        flags.keywords.iter().for_each(|keywords| say("keyword".into(), keywords.column.clone()));
    }
    for part in &profile.part {
        let table = &part.table;
        part.hash.iter().for_each(|hash| say(format!("hash of {table}"), hash.clone()));
        say(format!("bytes of {table}"), sorted(&part.bytes.0));
        part.message
            .iter()
            .chain(&part.referred_by)
            .for_each(|columns| say(format!("way to {table}"), sorted(&columns.0)));
        if let Some(via) = &part.via {
            say(
                format!("way to {table}"),
                format!("{} {} {:?}", sorted(&via.message.0), sorted(&via.part.0), via.position),
            );
            say(format!("order of {table}"), via.order.0.join(", "));
        }
    }
    profile.dictionary.iter().for_each(|one| say(format!("natural of {}", one.table), sorted(&one.natural.0)));
    for tombstone in &profile.tombstone {
        tombstone.predicate.iter().for_each(|predicate| say("tombstone predicate".into(), predicate.replace('"', "")));
        tombstone.mailbox.iter().for_each(|mailbox| say("tombstone mailbox".into(), sorted(&mailbox.0)));
        tombstone.uid.iter().for_each(|uid| say("tombstone uid".into(), uid.clone()));
        tombstone.message.iter().for_each(|message| say("tombstone message".into(), sorted(&message.0)));
        tombstone.at.iter().for_each(|at| say("tombstone at".into(), at.clone()));
    }
    for (table, column) in profile.derived.iter().filter_map(|one| Some((&one.table, one.column.as_ref()?))) {
        say(format!("derived {table}.{column}"), "yes".into());
    }
    facts
}
