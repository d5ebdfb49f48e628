//! The comparison itself: pair, then classify what is left over.
//!
//! Order decides, and each live row, tombstone and journal entry stands for one lost message only:
//! 1. rows that are the same on both sides (key, creation evidence, mailbox) are paired and out of the way, then those that differ in
//!    the mailbox alone: their users moved them;
//! 2. what an earlier replay put back is done with, whether it is still there or its user deleted it since;
//! 3. tombstones of the very rows, then those of their evidence under another key;
//! 4. mail of a mailbox that was deleted on purpose is an orphan;
//! 5. an equal live mail that nobody stands behind: in the same mailbox a duplicate, in another one a move;
//! 6. the rest is lost; what has no place any more, because another mail has taken one that only one can have, is left out.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use jiff::Timestamp;

use super::belongings::{Incomplete, belongings, dictionaries, parts};
use super::content::{Made, PartRows, Stock};
use super::counters::Counters;
use super::duplicates;
use super::error::CompareError;
use super::keys;
use super::layout::{Clock, Contents, Layout, Table, layout};
use super::live;
use super::pairing::{Paired, Pairs};
use super::parents::{Fate, Parents, inline};
use super::past::Past;
use super::places;
use super::predicate;
use super::referred::{Asked, Home, Referred};
use super::row::{Cell, Class, Print, Printer, Reason, Row};
use super::source::{Facts, Pick, Source};
use super::tombstones::{Tombstones, Wanted};
use super::window::{Outside, Window};
use crate::postgres::PostgresError;
use crate::postgres::catalog;
use crate::postgres::session::Session;
use crate::profile::Profile;
use crate::repository::zone;

/// What the caller knows besides.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// When the damage happened. Mail that was saved before then does not stand for a lost one: it was there beside it; and in a store
    /// without tombstones, what the snapshot took after it is lost for certain.
    pub damaged_at: Option<Timestamp>,
    /// Of messages outside only as much is read as tells how many are gone.
    pub window: Window,
}

/// A message of the snapshot that the live store has not under its key.
#[derive(Debug, Clone)]
pub struct Leftover {
    pub row: Row,
    pub key: Bytes,
    /// Its name in every journal, whichever snapshot it comes from.
    pub source: Print,
    /// Position among [`Parents::mailboxes`].
    pub mailbox: Option<usize>,
    /// When it was saved or arrived; `None` where the clocks are NULL.
    pub instant: Option<Timestamp>,
    pub class: Class,
    pub reason: Reason,
    /// Another mail lives under its Message-ID with other content.
    pub same_id_other_mail: bool,
    /// It was put back once and that was undone: only mail with at least this UID can stand for it.
    pub stands_from: Option<i64>,
    /// Why nobody can tell, should no live mail be found to stand for it.
    pub doubt: Option<Reason>,
    /// For each kind of part, the rows that name its parts; then the rows of each kind of child.
    pub via: Vec<Vec<Row>>,
    pub children: Vec<Vec<Row>>,
    /// The live message that stands for it.
    pub home: Option<Home>,
}

/// A live message that no snapshot row stands behind.
#[derive(Debug, Clone)]
pub struct LiveMessage {
    pub key: Bytes,
    pub key_text: String,
    pub mailbox: Bytes,
    /// Key and evidence: how the journal names it.
    pub print: Print,
    pub identity: Print,
    pub size: Option<Bytes>,
    pub message_id: Option<Bytes>,
    pub uid: Option<i64>,
    /// The key of the content that it links to.
    pub content: Option<Bytes>,
    pub instant: Option<Timestamp>,
    /// A lost message was found to be this one, or a replay put it back.
    pub taken: bool,
}

/// A snapshot held against the live store at one instant.
pub struct Comparison {
    pub facts: Facts,
    pub layout: Layout,
    pub parents: Parents,
    pub leftovers: Vec<Leftover>,
    /// Arrived after the snapshot, so in no snapshot of it, or stand for a lost message.
    pub live: Vec<LiveMessage>,
    pub incomplete: Incomplete,
    /// Parts that leftovers and incomplete messages name.
    pub parts: PartRows,
    /// What they refer to, by dictionary and key.
    pub dictionaries: PartRows,
    /// For each dictionary, what hangs on these, by kind of child and key.
    pub hanging: Vec<Vec<HashMap<Vec<u8>, Vec<Row>>>>,
    pub referred: Referred,
    pub counters: Counters,
    pub same: u64,
    pub changed: u64,
    /// Messages outside the window that were counted alive and not looked at.
    pub not_compared: u64,
    pub damaged_at: Option<Timestamp>,
    /// Live rows that are spoken for; see [`Pairs::take`].
    pub pairs: Pairs,
}

/// Holds a snapshot against a live store. Writes nothing; leaves the session without a transaction.
pub async fn compare(
    session: &Session,
    source: &dyn Source,
    profile: &Profile,
    options: &Options,
) -> Result<Comparison, CompareError> {
    // One encoding for both sides, so that equal text is equal bytes.
    session.carry(&source.facts().encoding);
    live::begin(session).await?;
    let done = read(session, source, profile, options).await;
    let ended = live::end(session).await;
    let done = done?;
    ended?;
    Ok(done)
}

async fn read(
    session: &Session,
    source: &dyn Source,
    profile: &Profile,
    options: &Options,
) -> Result<Comparison, CompareError> {
    let mut catalog = catalog::read(session).await?;
    catalog::read_sequence_values(session, &mut catalog.sequences).await?;
    let facts = source.facts().clone();
    let mut layout = layout(profile, &facts, &catalog)?;
    keys::read(session, source, &layout).await?;
    let past = Past::read(session).await?;
    let parents = Parents::read(session, source, &layout, &past).await?;

    let mut scan = Scan {
        counters: Counters::new(&facts, &catalog, &layout, &parents),
        pairs: Pairs::default(),
        same: 0,
        changed: 0,
        had_bytes: 0,
        layout: &layout,
        parents: &parents,
        window: options.window,
        outside: Outside::default(),
        living: HashSet::new(),
    };
    let mut leftovers = scan.rows(session, source, &facts).await?;
    // Of two equal mails each window must take the same for the one that lives, in whatever order their segments were read.
    leftovers.sort_by_cached_key(|leftover| (leftover.instant, leftover.source));
    let mut live = if scan.pairs.leftovers() > 0 { scan.live_leftovers(session, &past).await? } else { Vec::new() };
    keys::name_anew(&layout, &facts, &mut leftovers, &live);
    let had_bytes = scan.had_bytes > 0;
    let Scan { mut counters, mut pairs, same, changed, outside, mut living, .. } = scan;
    counters.collisions(&layout.mailbox, &parents, &live);

    duplicates::moved_rows(&layout, &mut leftovers, &mut live);
    // A row that was moved lives, so what it misses is put under it.
    if let Some(content) = &layout.message.content {
        let moved = leftovers.iter().filter(|leftover| leftover.class != Class::Absent);
        living.extend(moved.filter_map(|leftover| Some(leftover.row[content.of].bytes()?.to_vec())));
    }
    let mut incomplete = belongings(session, source, &layout, &living, &options.window, &mut leftovers).await?;
    let parts = parts(source, &layout, &leftovers, &incomplete).await?;
    let (dictionaries, hanging) = dictionaries(session, source, &layout, &leftovers, &mut incomplete).await?;

    // What was a tombstone then was not lost with the rest; only now nobody takes what belongs to it for a living message's.
    if let Some(buried) = &layout.buried {
        let rows: Vec<&Row> = leftovers.iter().map(|leftover| &leftover.row).collect();
        let was = predicate::holds(session, source, &layout.message.table, &buried.predicate, &rows).await?;
        let mut was = was.into_iter();
        leftovers.retain(|_| !was.next().unwrap_or(false));
    }
    decide_by_record(session, &layout, &parents, &past, &mut leftovers).await?;
    let stock = Stock { parts: &parts, dictionaries: &dictionaries };
    duplicates::decide(session, source, &layout, &parents, stock, options, &mut leftovers, &mut live).await?;
    places::look(session, source, &layout, &parents, &mut leftovers).await?;
    let asked = Asked { layout: &layout, parents: &parents, pairs: &pairs };
    let referred = Referred::read(session, source, asked, &leftovers, &dictionaries, &hanging).await?;
    for live in live.iter().filter(|live| live.taken) {
        pairs.take(live.identity);
    }
    if had_bytes {
        look_for_bytes(session, &mut layout).await?;
    }
    let damaged_at = options.damaged_at;
    Ok(Comparison {
        facts,
        layout,
        parents,
        leftovers,
        live,
        incomplete,
        parts,
        dictionaries,
        hanging,
        referred,
        counters,
        same,
        changed,
        not_compared: outside.rows(),
        damaged_at,
        pairs,
    })
}

/// Where no message has any bytes by now, another table may hold them, and mail would come back into the wrong one.
async fn look_for_bytes(session: &Session, layout: &mut Layout) -> Result<(), CompareError> {
    let link = &layout.message.link;
    let columns = layout.message.body.columns();
    let is_given = |at: &usize| link.added.iter().any(|(name, _)| *name == link.columns[*at].name);
    let Some(first) = columns.first().filter(|_| !columns.iter().any(is_given)) else { return Ok(()) };
    let any = columns.iter().map(|at| format!("m.{}::text NOT IN ('', '\\x')", link.ident(*at)));
    let any = any.collect::<Vec<_>>().join(" OR ");
    let select = format!("SELECT EXISTS (SELECT FROM {} m WHERE {any})", link.quoted());
    let doing = "looking for the bytes of living mail";
    let row = session.client().query_one(&select, &[]).await.map_err(PostgresError::server(doing))?;
    if !row.get::<_, bool>(0) {
        let column = link.columns[*first].name.clone();
        let why = format!(
            "no living message has anything in it any more: if another table holds it now, mail cannot be put back into that; \
             if the damage took it, say under values that {column} = {column:?}"
        );
        layout.message.link.obstacles.push((column, why));
    }
    Ok(())
}

struct Scan<'a> {
    layout: &'a Layout,
    parents: &'a Parents,
    counters: Counters,
    pairs: Pairs,
    same: u64,
    changed: u64,
    /// Living messages whose bytes the snapshot has in their own row.
    had_bytes: u64,
    window: Window,
    /// What is not read of the snapshot's messages.
    outside: Outside,
    /// Keys of contents that messages which are there link to.
    living: HashSet<Vec<u8>>,
}

impl Scan<'_> {
    /// Both sides' messages. What the live side has not under its key, with its evidence and in its mailbox, is left over.
    async fn rows(
        &mut self,
        session: &Session,
        source: &dyn Source,
        facts: &Facts,
    ) -> Result<Vec<Leftover>, CompareError> {
        let message = &self.layout.message;
        let contents = message.contents(source).await?;
        let mut leftovers = Vec::new();
        // Links are narrow, and which contents are alive all of them tell.
        if self.window.is_bounded() && message.content.is_none() {
            let segments = source.segments(&message.link.source).await?;
            let (near, outside) = Outside::of(&self.window, self.layout, message.link.single_key()?, &segments);
            self.outside = outside;
            self.live_rows(session).await?;
            self.snapshot_rows(source, facts, &contents, Pick::Segments(&near), &mut leftovers).await?;
            let unsettled = self.outside.unsettled();
            self.snapshot_rows(source, facts, &contents, Pick::Segments(&unsettled), &mut leftovers).await?;
            self.counters.snapshot_key(self.outside.highest_key());
        } else {
            self.live_rows(session).await?;
            self.snapshot_rows(source, facts, &contents, Pick::All, &mut leftovers).await?;
        }
        message.complete(source, leftovers.iter_mut().map(|leftover| &mut leftover.row)).await?;
        Ok(leftovers)
    }

    /// The columns that may change without making another message.
    fn state_columns(&self) -> Vec<usize> {
        let marks = self.layout.buried.iter().flat_map(|buried| &buried.columns);
        self.layout.message.flags.iter().chain(marks).copied().collect()
    }

    /// Narrow columns of all live messages: key, mailbox, evidence, state, uid, modseq, clocks, and whether users see it.
    async fn live_rows(&mut self, session: &Session) -> Result<(), CompareError> {
        let message = &self.layout.message;
        let evidence = message.evidence.len();
        let mut columns = vec![message.table.single_key()?, message.mailbox];
        columns.extend(&message.evidence);
        columns.extend(self.state_columns());
        let numbers = columns.len();
        columns.extend(message.uid.iter().chain(&message.modseq));
        let clocks = columns.len();
        columns.extend(message.clocks.iter().map(|clock| clock.column));
        let select = format!(
            "SELECT {}, {} FROM {} m",
            message.table.select(&columns, "m"),
            self.layout.shown(),
            message.table.quoted()
        );
        live::copy(session, "reading the live messages", &select, columns.len() + 1, &mut |row| {
            let identity = identity(row[0], row[1], row[2..2 + evidence].iter().copied());
            let state = state(row[2 + evidence..numbers].iter().copied());
            if row[columns.len()] == Some(&[1]) {
                self.pairs.live(identity, state);
            } else {
                self.pairs.buried(identity, state);
            }
            let number = |at: usize| row.get(at).copied().flatten().and_then(|bytes| zone::integer(bytes, false));
            let uid = message.uid.and_then(|_| number(numbers));
            let modseq = message.modseq.and_then(|_| number(numbers + usize::from(message.uid.is_some())));
            self.counters.live_row(row[1].unwrap_or_default(), uid, modseq);
            let instant =
                message.clocks.iter().zip(&row[clocks..columns.len()]).find_map(|(clock, field)| clock.read((*field)?));
            self.outside.live(row[0].and_then(|key| zone::integer(key, false)), instant);
            Ok(())
        })
        .await
    }

    async fn snapshot_rows(
        &mut self,
        source: &dyn Source,
        facts: &Facts,
        contents: &Contents,
        pick: Pick<'_>,
        leftovers: &mut Vec<Leftover>,
    ) -> Result<(), CompareError> {
        let (layout, parents) = (self.layout, self.parents);
        let message = &layout.message;
        let key_column = message.table.single_key()?;
        let is_numbered = message.link.is_numbered();
        let changing = self.state_columns();
        message
            .scan(source, contents, pick, &mut |cells| {
                let key = inline(cells, key_column);
                let instant = instant(&message.clocks, cells);
                let mailbox_key = inline(cells, message.mailbox);
                let mailbox = mailbox_key.and_then(|key| parents.mailbox(key));
                let target = mailbox.and_then(|at| parents.target(at)).map(|live| &live.key[..]).or(mailbox_key);
                let evidence = message.evidence.iter().map(|at| inline(cells, *at));
                let identity = identity(key, target, evidence.clone());
                let number = |at: Option<usize>| inline(cells, at?).and_then(|bytes| zone::integer(bytes, false));
                self.counters.snapshot_row(
                    key.filter(|_| is_numbered),
                    target.unwrap_or_default(),
                    number(message.uid),
                    number(message.modseq),
                );
                let paired = self.pairs.snapshot(identity, state(changing.iter().map(|at| inline(cells, *at))));
                if paired != Paired::Leftover {
                    self.outside.paired(key.and_then(|key| zone::integer(key, false)), instant);
                }
                if matches!(paired, Paired::Same | Paired::Changed) {
                    let content = message.content.as_ref().and_then(|content| inline(cells, content.of));
                    self.living.extend(content.map(<[u8]>::to_vec));
                    let has_bytes = |at: &usize| !matches!(cells[*at], Cell::Null | Cell::Bytes([]));
                    self.had_bytes += u64::from(message.body.columns().iter().any(has_bytes));
                }
                match paired {
                    Paired::Same => self.same += 1,
                    Paired::Changed => self.changed += 1,
                    Paired::Buried => {}
                    Paired::Expunged | Paired::Leftover => leftovers.push(Leftover {
                        row: cells.iter().map(|cell| cell.keep()).collect(),
                        key: Bytes::copy_from_slice(key.unwrap_or_default()),
                        source: source_print(facts, &layout.message.table, key, evidence),
                        mailbox,
                        instant,
                        class: Class::Absent,
                        reason: Reason::NoTrace,
                        same_id_other_mail: false,
                        stands_from: None,
                        doubt: None,
                        via: vec![Vec::new(); layout.parts.len()],
                        children: vec![Vec::new(); layout.children.len()],
                        home: None,
                    }),
                }
                Ok(())
            })
            .await
    }

    /// A second look at the live messages, for those that nobody stands behind.
    async fn live_leftovers(&mut self, session: &Session, past: &Past) -> Result<Vec<LiveMessage>, CompareError> {
        let select = live_select(self.layout, &format!("{} m", self.layout.message.table.quoted()))?;
        let mut found = Vec::new();
        live::copy(session, "reading the newer live messages", &select, live_fields(self.layout), &mut |row| {
            let mut live = live_message(self.layout, row);
            if self.outside.accounts_for(zone::integer(&live.key, false), live.instant) {
                self.pairs.take(live.identity);
            } else if !self.pairs.is_paired(&live.identity) {
                live.taken = past.is_restored(&live.print);
                found.push(live);
            }
            Ok(())
        })
        .await?;
        Ok(found)
    }
}

/// What [`live_message`] reads: messages `m` that users see, of all that `from` gives.
pub fn live_select(layout: &Layout, from: &str) -> Result<String, CompareError> {
    let message = &layout.message;
    let key = message.table.single_key()?;
    let mut columns = vec![key, message.mailbox];
    columns.extend(&message.evidence);
    columns.extend(message.size.iter().chain(&message.message_id).chain(&message.uid));
    columns.extend(message.content.iter().map(|content| content.of));
    columns.extend(message.clocks.iter().map(|clock| clock.column));
    Ok(format!(
        "SELECT {}, {} FROM {from} WHERE {}",
        message.table.select(&columns, "m"),
        message.key_text("m"),
        layout.shown()
    ))
}

pub fn live_fields(layout: &Layout) -> usize {
    let message = &layout.message;
    let optional = [message.size, message.message_id, message.uid].iter().flatten().count();
    3 + message.evidence.len() + optional + usize::from(message.content.is_some()) + message.clocks.len()
}

pub fn live_message(layout: &Layout, row: &[Option<&[u8]>]) -> LiveMessage {
    let message = &layout.message;
    let (evidence, rest) = row[2..].split_at(message.evidence.len());
    let mut rest = rest.iter().copied();
    let mut next = |there: bool| if there { rest.next().flatten() } else { None };
    let size = next(message.size.is_some()).map(Bytes::copy_from_slice);
    let message_id = next(message.message_id.is_some()).map(Bytes::copy_from_slice);
    let uid = next(message.uid.is_some()).and_then(|bytes| zone::integer(bytes, false));
    let content = next(message.content.is_some()).map(Bytes::copy_from_slice);
    let clocks: Vec<Option<&[u8]>> = message.clocks.iter().map(|_| next(true)).collect();
    let instant = message.clocks.iter().zip(&clocks).find_map(|(clock, field)| clock.read((*field)?));
    let key_text = next(true).map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default();
    LiveMessage {
        key: Bytes::copy_from_slice(row[0].unwrap_or_default()),
        key_text,
        mailbox: Bytes::copy_from_slice(row[1].unwrap_or_default()),
        print: row_print(row[0], evidence.iter().copied()),
        identity: identity(row[0], row[1], evidence.iter().copied()),
        size,
        message_id,
        uid,
        content,
        instant,
        taken: false,
    }
}

pub(super) fn identity<'a>(
    key: Option<&[u8]>,
    mailbox: Option<&[u8]>,
    evidence: impl Iterator<Item = Option<&'a [u8]>>,
) -> Print {
    Printer::default().add(key).add(mailbox).all(evidence).finish()
}

/// Key and evidence. Tombstones and the journal name a row so.
pub fn row_print<'a>(key: Option<&[u8]>, evidence: impl Iterator<Item = Option<&'a [u8]>>) -> Print {
    Printer::default().add(key).all(evidence).finish()
}

/// The name of a row for all journals: store, table, key and creation evidence. Two snapshots of the store give it the same.
pub(super) fn source_print<'a>(
    facts: &Facts,
    table: &Table,
    key: Option<&[u8]>,
    evidence: impl Iterator<Item = Option<&'a [u8]>>,
) -> Print {
    let mut printer = Printer::default();
    printer.add(facts.store.system_identifier.map(u64::to_le_bytes).as_ref().map(|bytes| &bytes[..]));
    printer.add(Some(facts.store.database.as_bytes())).add(Some(&facts.store.database_oid.to_le_bytes()));
    printer.add(Some(table.label().as_bytes())).add(key).all(evidence).finish()
}

fn state<'a>(fields: impl Iterator<Item = Option<&'a [u8]>>) -> u32 {
    let Print(bytes) = Printer::default().all(fields).finish();
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The first clock that says something.
pub(super) fn instant(clocks: &[Clock], cells: &[Cell<'_>]) -> Option<Timestamp> {
    clocks.iter().find_map(|clock| clock.read(inline(cells, clock.column)?))
}

/// Journal, tombstones, deleted parents, and re-used keys. What stays `Absent` goes on to the ladder.
async fn decide_by_record(
    session: &Session,
    layout: &Layout,
    parents: &Parents,
    past: &Past,
    leftovers: &mut [Leftover],
) -> Result<(), CompareError> {
    let target = |leftover: &Leftover| {
        let mailbox = leftover.mailbox?;
        Some(parents.target(mailbox).map_or_else(|| parents.mailboxes[mailbox].key.clone(), |live| live.key.clone()))
    };
    let wanted: Vec<Option<Wanted>> = leftovers
        .iter()
        .map(|leftover| Wanted::of(layout, &leftover.row, &target(leftover).unwrap_or_default()))
        .collect();
    let asked: Vec<Wanted> = wanted.iter().flatten().copied().collect();
    let mut tombstones = Tombstones::read(session, layout, &asked, past).await?;
    let restored: HashMap<Print, bool> = still_there(session, layout, past, leftovers).await?;
    for (leftover, wanted) in leftovers.iter_mut().zip(&wanted) {
        leftover.stands_from = past.stands_from(&leftover.source);
        if let Some(print) = past.restored_as(&leftover.source) {
            (leftover.class, leftover.reason) = if restored.get(print).copied().unwrap_or(false) {
                (Class::Duplicate, Reason::RestoredBefore)
            } else {
                (Class::DeletedByUser, Reason::RestoredAndGone)
            };
        } else if let Some(reason) = wanted.and_then(|wanted| tombstones.take_exact(&wanted)) {
            (leftover.class, leftover.reason) = (Class::DeletedByUser, reason);
        }
    }
    for (leftover, wanted) in leftovers.iter_mut().zip(&wanted).filter(|(leftover, _)| leftover.class == Class::Absent)
    {
        // Two mails may have been saved in one instant and be as long: such a tombstone may be the other one's.
        if let Some(reason) = wanted.and_then(|wanted| tombstones.take_by_evidence(&wanted)) {
            leftover.doubt = Some(reason);
        }
        match leftover.mailbox.map(|mailbox| parents.mailboxes[mailbox].fate) {
            Some(Fate::Deleted) => (leftover.class, leftover.reason) = (Class::Orphan, Reason::MailboxDeleted),
            Some(Fate::OwnerDeleted) => (leftover.class, leftover.reason) = (Class::Orphan, Reason::OwnerDeleted),
            None => (leftover.class, leftover.reason) = (Class::Orphan, Reason::MailboxDeleted),
            // Where deleting a mailbox leaves its row behind, one that is gone was lost; elsewhere nobody knows.
            Some(Fate::Successor(_)) if layout.mailbox.live.is_none() => {
                leftover.doubt = Some(Reason::NameTaken);
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Which of the rows that earlier replays put back are alive.
async fn still_there(
    session: &Session,
    layout: &Layout,
    past: &Past,
    leftovers: &[Leftover],
) -> Result<HashMap<Print, bool>, CompareError> {
    let asked: HashSet<Print> =
        leftovers.iter().filter_map(|leftover| past.restored_as(&leftover.source)).copied().collect();
    let mut found = HashMap::with_capacity(asked.len());
    if asked.is_empty() {
        return Ok(found);
    }
    let message = &layout.message;
    let mut columns = vec![message.table.single_key()?];
    columns.extend(&message.evidence);
    let select = format!(
        "SELECT {} FROM {} m WHERE {}",
        message.table.select(&columns, "m"),
        message.table.quoted(),
        layout.shown()
    );
    live::copy(session, "looking for what was put back", &select, columns.len(), &mut |row| {
        let print = row_print(row[0], row[1..].iter().copied());
        if asked.contains(&print) {
            found.insert(print, true);
        }
        Ok(())
    })
    .await?;
    Ok(found)
}

impl Comparison {
    /// What a leftover's mail is made of.
    pub fn made<'a>(leftover: &'a Leftover) -> Made<'a> {
        let via = leftover.via.iter().map(|rows| &rows[..]).collect();
        Made { row: &leftover.row, via, children: &leftover.children }
    }
}
