//! Which tables hold mailboxes, what lies in them, and the mail itself: the three are looked for together, because each is told by the others.

use super::counters::{self, Counter};
use super::description::Kind;
use super::store::{At, Reference, Store};

/// Points for something that was seen, and the sentence that says so.
pub type Point = (i32, String);

#[derive(Debug)]
pub struct Skeleton {
    pub mailbox: usize,
    /// The row that lies in the mailbox, and how it refers to it.
    pub link: Reference,
    /// The mail: the link's own table or the one that it refers to.
    pub message: usize,
    pub to_message: Option<Reference>,
    pub owner: Option<Reference>,
    pub counters: Vec<Counter>,
    pub mailbox_points: Vec<Point>,
    pub link_points: Vec<Point>,
    pub message_points: Vec<Point>,
    pub owner_points: Vec<Point>,
    /// How far the best answer with other mail is behind.
    pub lead: i32,
}

/// Words for what waits on its way, or was left behind.
pub const ON_ITS_WAY: [&str; 23] = [
    "outbox",
    "relay*",
    "outgoing",
    "queue*",
    "*queue",
    "spool*",
    "job",
    "task",
    "deliver*",
    "notification",
    "notify*",
    "vacation",
    "autorespon*",
    "*reply",
    "*replies",
    "reply*",
    "pending",
    "upload",
    "retry",
    "heartbeat",
    "log",
    "*log",
    "session",
];
pub const GONE: [&str; 7] = ["expunged", "deleted", "tombstone", "vanished", "removed", "purged", "trashed"];

fn total(points: &[Point]) -> i32 {
    points.iter().map(|(points, _)| points).sum()
}

/// The best answer, if there is any that something speaks for.
pub fn find(store: &Store<'_>) -> Option<Skeleton> {
    let about: Vec<Vec<Point>> = store.tables().map(|table| mail_points(store, table)).collect();
    let mut answers: Vec<(i32, Skeleton)> = Vec::new();
    for link in &store.references {
        if link.from == link.to || store.rows(link.from) == 0 && store.rows(link.to) == 0 {
            continue;
        }
        let counters = counters::counters(store, link);
        let mailbox_points = mailbox_points(store, link, &counters);
        let link_points = link_points(store, link);
        let own = std::iter::once((link.from, None));
        let others = store
            .references_of(link.from)
            .filter(|one| one.to != link.to && one.to != link.from && one.columns != link.columns)
            .map(|one| (one.to, Some(one)));
        for (message, to_message) in own.chain(others) {
            let mut message_points = about[message].clone();
            if to_message.is_some_and(|reference| !reference.declared) {
                message_points.push((-1, "no foreign key says so".to_owned()));
            }
            let points = total(&mailbox_points) + total(&link_points) + total(&message_points);
            answers.push((
                points,
                Skeleton {
                    mailbox: link.to,
                    link: link.clone(),
                    message,
                    to_message: to_message.cloned(),
                    owner: None,
                    counters: counters.clone(),
                    mailbox_points: mailbox_points.clone(),
                    link_points: link_points.clone(),
                    message_points,
                    owner_points: Vec::new(),
                    lead: 0,
                },
            ));
        }
    }
    answers.sort_by_key(|(points, _)| -points);
    let mut answers = answers.into_iter();
    let (points, mut best) = answers.next().filter(|(points, best)| *points >= 5 && total(&best.message_points) > 0)?;
    best.lead = answers.find(|(_, other)| other.message != best.message).map_or(points, |(next, _)| points - next);
    owner(store, &mut best);
    Some(best)
}

fn mailbox_points(store: &Store<'_>, link: &Reference, counters: &[Counter]) -> Vec<Point> {
    let table = link.to;
    let mut points = Vec::new();
    for (at, column) in store.columns(table).filter(|(_, column)| column.kind == Kind::Text) {
        let share = store.of(at).mailbox_name;
        if share > 0.15 {
            points.push((4, format!("{} holds names that every mail client makes, INBOX among them", column.name)));
            break;
        }
    }
    if let Some(counter) = counters.first().filter(|counter| counter.share() >= 0.3) {
        let (content, own) = (store.column(counter.content), store.column(counter.mailbox));
        points.push((
            4,
            format!(
                "{} keeps pace with {} in {} of {} rows that have content",
                own.name, content.name, counter.exact, counter.mailboxes
            ),
        ));
    }
    if store.table_says(table, &["mailbox", "mailboxes", "folder", "mbox", "list", "*list", "*box"]) {
        points.push((2, "its name".to_owned()));
    }
    if store
        .columns(table)
        .any(|(at, _)| store.says(at, &["uidvalidity", "validity", "uidnext", "modseq", "highestmodseq"]))
    {
        points.push((2, "columns named as IMAP's numbers of a mailbox".to_owned()));
    }
    if store.rows(link.from) > store.rows(table) {
        points.push((1, format!("{} rows lie in {}", store.rows(link.from), store.rows(table))));
    } else {
        points.push((-2, "it has as many rows as what would lie in it".to_owned()));
    }
    if store.columns(table).any(|(at, _)| store.of(at).mail > 0.5) {
        points.push((-6, "it holds mail itself".to_owned()));
    }
    if store.columns(table).any(|(at, _)| store.of(at).address > 0.8 && store.of(at).is_distinct()) {
        points.push((-2, "it holds addresses".to_owned()));
    }
    points
}

fn link_points(store: &Store<'_>, link: &Reference) -> Vec<Point> {
    let table = link.from;
    let mut points = Vec::new();
    let number = store.columns(table).find(|((_, at), column)| {
        let mut key = link.columns.clone();
        key.push(*at);
        let whole = store
            .table(table)
            .unique
            .iter()
            .any(|unique| unique.len() == key.len() && unique.iter().all(|one| key.contains(one)));
        column.kind == Kind::Integer && !link.columns.contains(at) && !store.refers((table, *at)) && whole
    });
    if let Some((_, column)) = number {
        points.push((2, format!("{} is unique in a mailbox", column.name)));
    }
    let flags = store.columns(table).filter(|(_, column)| column.kind == Kind::Boolean).count();
    let named = store.columns(table).filter(|(at, _)| store.says(*at, &FLAGS)).count();
    if flags >= 2 || named >= 2 {
        points.push((if named >= 2 { 3 } else { 1 }, format!("{} columns of flags", flags.max(named))));
    }
    let children = store.references.iter().filter(|one| one.to == table && one.declared && one.from != table).count();
    if children > 0 {
        points.push((1, format!("{children} foreign keys lead to it")));
    }
    if store.table_says(table, &GONE)
        || store.columns(table).any(|(at, column)| column.not_null && column.kind.is_time() && store.says(at, &GONE))
    {
        points.push((-4, "its name says that what is in it is gone".to_owned()));
    }
    if store.table_says(table, &ON_ITS_WAY) {
        points.push((-4, "its name says that it waits for something".to_owned()));
    }
    points
}

/// Flags of IMAP (RFC 9051, section 2.3.2).
pub const FLAGS: [&str; 9] = ["seen", "answered", "flagged", "deleted", "draft", "recent", "unseen", "flag", "keyword"];

/// What speaks for a table as the one that holds mail.
fn mail_points(store: &Store<'_>, table: usize) -> Vec<Point> {
    let mut points = Vec::new();
    let columns: Vec<At> = store.columns(table).map(|(at, _)| at).collect();
    if let Some(at) = columns.iter().find(|at| store.of(**at).mail > 0.5) {
        let what = if store.of(*at).header_only > 0.5 { "headers of mails" } else { "mails (RFC 5322)" };
        let share = (store.of(*at).mail * 100.0).round();
        points.push((5, format!("{} holds {what}, {share} % of what was looked at", store.column(*at).name)));
    }
    let ids = columns.iter().find(|at| {
        let features = store.of(**at);
        features.values > 0
            && (features.message_id > 0.5 || (store.says(**at, &["messageid"]) && features.longest > 20))
    });
    if let Some(at) = ids {
        points.push((3, format!("{} holds Message-IDs", store.column(*at).name)));
    }
    if store.table_says(table, &["message", "mail", "email", "*message", "msg"]) {
        points.push((2, "its name".to_owned()));
    }
    let clock = columns.iter().find(|at| {
        store.column(**at).kind.is_time() || (store.column(**at).kind == Kind::Integer && store.of(**at).is_epoch())
    });
    if let Some(at) = clock {
        points.push((1, format!("{} tells a time", store.column(*at).name)));
    }
    let bytes =
        |of: usize| store.columns(of).any(|(at, column)| column.kind == Kind::Bytes && store.of(at).longest > 0);
    let hangs = store.references.iter().filter(|one| one.to == table && one.from != table);
    let mut with_content = 0;
    for reference in hangs {
        let through = store.references_of(reference.from).any(|other| other.to != table && bytes(other.to));
        with_content += usize::from(through || bytes(reference.from));
    }
    if with_content > 0 {
        points.push((3, format!("{with_content} tables hang content of bytes on it")));
    }
    if store.table_says(table, &ON_ITS_WAY) || store.table_says(table, &GONE) {
        points.push((-4, "its name says that it is on its way, or gone".to_owned()));
    }
    points
}

/// Whom the mailboxes belong to: a table that they refer to.
fn owner(store: &Store<'_>, skeleton: &mut Skeleton) {
    let mut best: Option<(i32, &Reference, Vec<Point>)> = None;
    for reference in store.references_of(skeleton.mailbox) {
        let taken = [skeleton.mailbox, skeleton.message, skeleton.link.from];
        if taken.contains(&reference.to) || reference.columns.len() != 1 {
            continue;
        }
        let mut points = Vec::new();
        let columns = || store.columns(reference.to).filter(|(_, column)| column.kind == Kind::Text);
        if let Some((_, column)) = columns().find(|(at, _)| store.of(*at).address > 0.5) {
            points.push((4, format!("{} holds addresses", column.name)));
        }
        if store
            .table_says(reference.to, &["user", "account", "owner", "customer", "person", "people", "login", "member"])
        {
            points.push((3, "its name".to_owned()));
        }
        if columns().any(|(at, _)| store.is_unique(at.0, &[at.1])) {
            points.push((1, "a text that is unique".to_owned()));
        }
        if store.rows(reference.to) <= store.rows(skeleton.mailbox) {
            points.push((
                1,
                format!("{} rows of mailboxes belong to {}", store.rows(skeleton.mailbox), store.rows(reference.to)),
            ));
        }
        if reference.declared {
            points.push((1, "a foreign key of the mailboxes".to_owned()));
        }
        let sum = total(&points);
        if sum > 0 && best.as_ref().is_none_or(|(most, ..)| sum > *most) {
            best = Some((sum, reference, points));
        }
    }
    if let Some((_, reference, points)) = best {
        skeleton.owner = Some(reference.clone());
        skeleton.owner_points = points;
    }
}
