//! Which live account and mailbox a lost message belongs to.
//!
//! Parents are found again by their natural key *and* their creation evidence, never by their key: keys were issued again, and mail
//! must not land in a stranger's mailbox. A mailbox that was renamed is found by key and evidence together, or where it has none by
//! key and the mail that still lies in it; of one that a replay made, the journal knows the new key. Memory: all rows of both tables, from both sides.

use std::collections::{BTreeSet, HashMap, HashSet};

use bytes::Bytes;

use super::classify::{identity, source_print};
use super::error::CompareError;
use super::layout::{Layout, Parent, Table};
use super::live;
use super::named;
use super::past::Past;
use super::predicate;
use super::row::{Cell, Print, Row, Value};
use super::source::{Pick, Source, collect};
use crate::postgres::session::Session;
use crate::repository::zone;

/// Between the values of several columns that make one name.
const SEPARATOR: &str = " / ";

/// What became of an account or mailbox of the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is there: a position among the live ones.
    Alive(usize),
    /// It was lost, and another one has taken its name since.
    Successor(usize),
    /// Lost with the mail.
    Lost,
    /// Deleted on purpose.
    Deleted,
    OwnerDeleted,
}

/// An account or mailbox of the snapshot.
#[derive(Debug, Clone)]
pub struct Known {
    pub row: Row,
    pub key: Bytes,
    /// Its name for the journal.
    pub source: Print,
    /// What people call it: address, or name. Hostile text.
    pub label: String,
    /// Of a mailbox: position among the owners.
    pub owner: Option<usize>,
    pub fate: Fate,
    /// Users saw it when the snapshot was taken.
    shown: bool,
    /// Of one that was lost: the rows of each kind of child.
    pub children: Vec<Vec<Row>>,
    /// Of a mailbox, as the snapshot has them.
    pub uid: Option<i64>,
    pub modseq: Option<i64>,
    pub uidvalidity: Option<i64>,
}

/// An account or mailbox of the live store.
#[derive(Debug, Clone)]
pub struct LiveParent {
    pub key: Bytes,
    pub key_text: String,
    pub natural: Vec<Option<Bytes>>,
    pub evidence: Vec<Option<Bytes>>,
    pub owner: Option<Bytes>,
    /// Users see it.
    pub shown: bool,
    pub label: String,
    pub uid: Option<i64>,
    pub modseq: Option<i64>,
    pub uidvalidity: Option<i64>,
}

#[derive(Debug, Default)]
pub struct Parents {
    pub owners: Vec<Known>,
    pub mailboxes: Vec<Known>,
    pub live_owners: Vec<LiveParent>,
    pub live_mailboxes: Vec<LiveParent>,
    by_key: HashMap<Bytes, usize>,
    owner_by_key: HashMap<Bytes, usize>,
    live_by_key: HashMap<Bytes, usize>,
    live_owner_by_key: HashMap<Bytes, usize>,
}

impl Parents {
    pub async fn read(
        session: &Session,
        source: &dyn Source,
        layout: &Layout,
        past: &Past,
    ) -> Result<Self, CompareError> {
        let mut parents = Self::default();
        if let Some(owner) = &layout.owner {
            parents.owners = snapshot(session, source, owner).await?;
            named::lead(session, source, layout, owner, &mut parents.owners).await?;
            parents.live_owners = live(session, owner).await?;
            parents.live_owner_by_key = index(parents.live_owners.iter().map(|owner| &owner.key));
            let live = Live::new(owner, &parents.live_owners, &parents.owners, past);
            parents.owners.iter_mut().for_each(|one| one.fate = live.fate(owner, one, None));
            children(source, owner, &mut parents.owners).await?;
        }
        parents.mailboxes = snapshot(session, source, &layout.mailbox).await?;
        parents.live_mailboxes = live(session, &layout.mailbox).await?;
        parents.owner_by_key = index(parents.owners.iter().map(|owner| &owner.key));
        if let Some(column) = layout.mailbox.owner {
            for mailbox in &mut parents.mailboxes {
                mailbox.owner = mailbox.row[column].bytes().and_then(|key| parents.owner_by_key.get(key)).copied();
            }
        }
        let proven = proven(session, source, layout, &parents.mailboxes, &parents.live_mailboxes).await?;
        let mut live = Live::new(&layout.mailbox, &parents.live_mailboxes, &parents.mailboxes, past);
        live.proven = proven;
        for one in &mut parents.mailboxes {
            one.fate = match one.owner.map(|owner| parents.owners[owner].fate) {
                Some(Fate::Deleted | Fate::OwnerDeleted) => Fate::OwnerDeleted,
                Some(Fate::Lost) => Fate::Lost,
                Some(Fate::Alive(at) | Fate::Successor(at)) => {
                    live.fate(&layout.mailbox, one, Some(&parents.live_owners[at].key))
                }
                None => live.fate(&layout.mailbox, one, None),
            };
        }
        children(source, &layout.mailbox, &mut parents.mailboxes).await?;
        parents.by_key = index(parents.mailboxes.iter().map(|mailbox| &mailbox.key));
        parents.live_by_key = index(parents.live_mailboxes.iter().map(|mailbox| &mailbox.key));
        Ok(parents)
    }

    /// The mailbox of the snapshot that has this key there.
    pub fn mailbox(&self, key: &[u8]) -> Option<usize> {
        self.by_key.get(key).copied()
    }

    /// The account of the snapshot that has this key there.
    pub fn owner(&self, key: &[u8]) -> Option<usize> {
        self.owner_by_key.get(key).copied()
    }

    pub fn live_mailbox(&self, key: &[u8]) -> Option<&LiveParent> {
        Some(&self.live_mailboxes[*self.live_by_key.get(key)?])
    }

    pub fn live_owner(&self, key: &[u8]) -> Option<&LiveParent> {
        Some(&self.live_owners[*self.live_owner_by_key.get(key)?])
    }

    /// The live mailbox into which mail of this one goes.
    pub fn target(&self, mailbox: usize) -> Option<&LiveParent> {
        match self.mailboxes[mailbox].fate {
            Fate::Alive(at) | Fate::Successor(at) => Some(&self.live_mailboxes[at]),
            _ => None,
        }
    }

    /// The live key of the account that a snapshot's mailbox belongs to.
    pub fn target_owner(&self, mailbox: usize) -> Option<&LiveParent> {
        self.live_of(self.mailboxes[mailbox].owner?)
    }

    /// The live account that an account of the snapshot is.
    pub fn live_of(&self, owner: usize) -> Option<&LiveParent> {
        match self.owners[owner].fate {
            Fate::Alive(at) | Fate::Successor(at) => Some(&self.live_owners[at]),
            _ => None,
        }
    }

    /// Says of each account and mailbox that there is none of this name, neither in the snapshot nor now. Hostile text.
    pub fn unknown(&self, accounts: &[String], mailboxes: &[String]) -> Vec<String> {
        let mut said = Vec::new();
        for (what, wanted, then, now) in [
            ("an account", accounts, &self.owners, &self.live_owners),
            ("a mailbox", mailboxes, &self.mailboxes, &self.live_mailboxes),
        ] {
            let then = then.iter().map(|one| &*one.label);
            let labels: BTreeSet<&str> = then.chain(now.iter().map(|one| &*one.label)).collect();
            for name in wanted.iter().filter(|name| !labels.contains(&***name)) {
                let near =
                    labels.iter().filter(|label| label.split(SEPARATOR).any(|part| part.eq_ignore_ascii_case(name)));
                let near: Vec<String> = near.take(3).map(|label| format!("{label:?}")).collect();
                let hint = if near.is_empty() { String::new() } else { format!(", but {}", near.join(", ")) };
                said.push(format!("neither the snapshot nor the store has {what} {name:?}{hint}"));
            }
        }
        said
    }

    /// Account and name, for people. Hostile text.
    pub fn label(&self, mailbox: usize) -> (String, String) {
        let mailbox = &self.mailboxes[mailbox];
        let owner = mailbox.owner.map(|owner| self.owners[owner].label.clone()).unwrap_or_default();
        (owner, mailbox.label.clone())
    }
}

fn index<'a>(keys: impl Iterator<Item = &'a Bytes>) -> HashMap<Bytes, usize> {
    keys.cloned().enumerate().map(|(at, key)| (key, at)).collect()
}

async fn snapshot(session: &Session, source: &dyn Source, parent: &Parent) -> Result<Vec<Known>, CompareError> {
    let key = parent.table.single_key()?;
    let mut rows = collect(source, &parent.table.source, Pick::All).await?;
    for row in &mut rows {
        fetch(source, row).await?;
    }
    let shown = match &parent.live {
        Some(live) => predicate::holds(session, source, &parent.table, live, &rows.iter().collect::<Vec<_>>()).await?,
        None => vec![true; rows.len()],
    };
    let mut known = Vec::with_capacity(rows.len());
    for (row, shown) in rows.into_iter().zip(shown) {
        let number = |at: Option<usize>| row[at?].bytes().and_then(|bytes| zone::integer(bytes, false));
        let Some(key) = row[key].bytes().map(Bytes::copy_from_slice) else { continue };
        let evidence = parent.evidence.iter().map(|at| row[*at].bytes());
        known.push(Known {
            source: source_print(source.facts(), &parent.table, Some(&key), evidence),
            key,
            label: label(parent, |at| row[at].bytes().map(<[u8]>::to_vec)),
            owner: None,
            fate: Fate::Lost,
            shown,
            children: vec![Vec::new(); parent.children.len()],
            uid: number(parent.uid),
            modseq: number(parent.modseq),
            uidvalidity: number(parent.uidvalidity),
            row,
        });
    }
    Ok(known)
}

/// Names of more than 512 bytes lie in the payload.
pub(super) async fn fetch(source: &dyn Source, row: &mut Row) -> Result<(), CompareError> {
    for value in row {
        if let Value::Large(large) = *value {
            *value = source.values(&[large]).await?.pop().map_or(Value::Null, Value::Bytes);
        }
    }
    Ok(())
}

/// What hangs on those that were lost.
async fn children(source: &dyn Source, parent: &Parent, all: &mut [Known]) -> Result<(), CompareError> {
    let lost = all.iter().enumerate().filter(|(_, one)| one.fate == Fate::Lost);
    let lost: HashMap<Vec<u8>, usize> = lost.map(|(at, one)| (one.key.to_vec(), at)).collect();
    if lost.is_empty() {
        return Ok(());
    }
    let keys: HashSet<Vec<u8>> = lost.keys().cloned().collect();
    for (kind, child) in parent.children.iter().enumerate() {
        for mut row in collect(source, &child.table.source, Pick::Keys { column: child.of[0], keys: &keys }).await? {
            fetch(source, &mut row).await?;
            if let Some(at) = child.holder(|at| row[at].bytes()).and_then(|key| lost.get(&key)) {
                all[*at].children[kind].push(row);
            }
        }
    }
    Ok(())
}

/// The keys of mailboxes that have another name now. Where a mailbox has no evidence of its own, mail proves it that lies under the key as it did.
async fn proven(
    session: &Session,
    source: &dyn Source,
    layout: &Layout,
    known: &[Known],
    live: &[LiveParent],
) -> Result<HashSet<Vec<u8>>, CompareError> {
    let (mailbox, message) = (&layout.mailbox, &layout.message);
    let link = &message.link;
    let evidence: Vec<usize> = message.evidence.iter().copied().filter(|at| *at < link.columns.len()).collect();
    let mut proven = HashSet::new();
    // A link whose key is a mailbox and a UID may have both by chance: they are issued again together.
    if !mailbox.evidence.is_empty() || evidence.is_empty() || link.key.len() > 1 {
        return Ok(proven);
    }
    let live: HashMap<&Bytes, &LiveParent> = live.iter().map(|one| (&one.key, one)).collect();
    let is_renamed = |one: &&Known| {
        let mut natural = mailbox.natural.iter().enumerate().filter(|(_, at)| Some(**at) != mailbox.owner);
        let other = |live: &LiveParent| natural.any(|(n, at)| live.natural[n].as_deref() != one.row[*at].bytes());
        one.shown && live.get(&one.key).copied().is_some_and(other)
    };
    let renamed: HashSet<Vec<u8>> = known.iter().filter(is_renamed).map(|one| one.key.to_vec()).collect();
    if renamed.is_empty() {
        return Ok(proven);
    }
    let key = link.single_key()?;
    let mut lay = HashSet::new();
    let pick = Pick::Keys { column: message.mailbox, keys: &renamed };
    source
        .scan(&link.source, pick, &mut |cells| {
            let evidence = evidence.iter().map(|at| inline(cells, *at));
            lay.insert(identity(inline(cells, key), inline(cells, message.mailbox), evidence));
            Ok(())
        })
        .await?;
    let mut columns = vec![key, message.mailbox];
    columns.extend(&evidence);
    let select = format!("SELECT {} FROM {} m", link.select(&columns, "m"), link.quoted());
    live::copy(session, "looking for mail of renamed mailboxes", &select, columns.len(), &mut |row| {
        let mailbox = row[1].unwrap_or_default();
        if renamed.contains(mailbox) && lay.contains(&identity(row[0], row[1], row[2..].iter().copied())) {
            proven.insert(mailbox.to_vec());
        }
        Ok(())
    })
    .await?;
    Ok(proven)
}

async fn live(session: &Session, parent: &Parent) -> Result<Vec<LiveParent>, CompareError> {
    if let Some(over) = &parent.over_quota {
        // Asked when all is done; that the server understands it is known before anything is.
        let sql = format!("SELECT FROM {} WHERE ({over}) LIMIT 0", parent.table.quoted());
        session.execute("asking which accounts hold more than they may", &sql).await?;
    }
    let key = parent.table.single_key()?;
    let mut columns = vec![key];
    columns.extend(&parent.natural);
    columns.extend(&parent.evidence);
    let places = [parent.owner, parent.uid, parent.modseq, parent.uidvalidity];
    columns.extend(places.iter().flatten());
    let shown = parent.live.as_deref().unwrap_or("true");
    let select = format!(
        "SELECT {}, p.{}::text, ({shown}) IS TRUE FROM {} p",
        parent.table.select(&columns, "p"),
        parent.table.ident(key),
        parent.table.quoted()
    );
    let mut found = Vec::new();
    live::copy(session, "reading accounts and mailboxes", &select, columns.len() + 2, &mut |row| {
        let keep = |field: &Option<&[u8]>| field.map(Bytes::copy_from_slice);
        let (natural, rest) = row[1..].split_at(parent.natural.len());
        let (evidence, rest) = rest.split_at(parent.evidence.len());
        let mut rest = rest.iter();
        let mut place = |at: Option<usize>| at.and_then(|_| *rest.next()?);
        let owner = place(parent.owner).map(Bytes::copy_from_slice);
        let mut number = |at| place(at).and_then(|bytes| zone::integer(bytes, false));
        let (uid, modseq, uidvalidity) = (number(parent.uid), number(parent.modseq), number(parent.uidvalidity));
        let text = row[columns.len()].unwrap_or_default();
        let named: HashMap<usize, Option<Bytes>> =
            parent.natural.iter().copied().zip(natural.iter().map(keep)).collect();
        found.push(LiveParent {
            key: keep(&row[0]).unwrap_or_default(),
            key_text: String::from_utf8_lossy(text).into_owned(),
            label: label(parent, |at| named.get(&at).cloned().flatten().map(|bytes| bytes.to_vec())),
            natural: natural.iter().map(keep).collect(),
            evidence: evidence.iter().map(keep).collect(),
            owner,
            shown: row[columns.len() + 1] == Some(&[1]),
            uid,
            modseq,
            uidvalidity,
        });
        Ok(())
    })
    .await?;
    Ok(found)
}

/// The natural key without the reference to the owner, as text.
fn label(parent: &Parent, field: impl Fn(usize) -> Option<Vec<u8>>) -> String {
    let names = parent.natural.iter().filter(|at| Some(**at) != parent.owner);
    let names: Vec<String> = names.map(|at| shown(&parent.table, *at, field(*at).as_deref())).collect();
    names.join(SEPARATOR)
}

/// A field for people: text as it is, numbers as numbers, anything else as digits.
pub fn shown(table: &Table, column: usize, field: Option<&[u8]>) -> String {
    let Some(bytes) = field else { return String::new() };
    match &*table.columns[column].type_name {
        "smallint" | "integer" | "bigint" => {
            zone::integer(bytes, false).map(|number| number.to_string()).unwrap_or_default()
        }
        "bytea" | "uuid" => data_encoding::HEXLOWER.encode(bytes),
        // What is no UTF-8 is Latin-1, or shown as if it were.
        _ => match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
        },
    }
}

/// The live accounts or mailboxes, by what they are found.
struct Live<'a> {
    rows: &'a [LiveParent],
    by_natural: HashMap<&'a [Option<Bytes>], usize>,
    by_key: HashMap<&'a [u8], usize>,
    by_key_text: HashMap<&'a str, usize>,
    past: &'a Past,
    /// Keys under which the very mailbox lives, whatever its name.
    proven: HashSet<Vec<u8>>,
}

impl<'a> Live<'a> {
    fn new(parent: &Parent, rows: &'a [LiveParent], known: &[Known], past: &'a Past) -> Self {
        // The row of a deleted one may keep a name that was given again. Those that were deleted before the snapshot say nothing of others.
        let deleted = known.iter().filter(|one| !one.shown);
        let deleted: HashMap<&[u8], &Known> = deleted.map(|one| (&one.key[..], one)).collect();
        let is_old = |live: &LiveParent| {
            deleted.get(&live.key[..]).is_some_and(|one| {
                let evidence = parent.evidence.iter().map(|at| one.row[*at].bytes());
                evidence.eq(live.evidence.iter().map(Option::as_deref))
            })
        };
        let hidden = rows.iter().enumerate().filter(|(_, live)| !live.shown && !is_old(live));
        let shown = rows.iter().enumerate().filter(|(_, live)| live.shown);
        Self {
            rows,
            by_natural: hidden.chain(shown).map(|(at, live)| (&live.natural[..], at)).collect(),
            by_key: rows.iter().enumerate().map(|(at, live)| (&live.key[..], at)).collect(),
            by_key_text: rows.iter().enumerate().map(|(at, live)| (&live.key_text[..], at)).collect(),
            past,
            proven: HashSet::new(),
        }
    }

    /// `owner`: the live key of its account.
    fn fate(&self, parent: &Parent, one: &Known, owner: Option<&Bytes>) -> Fate {
        if !one.shown {
            return Fate::Deleted;
        }
        let field = |at: &usize| match (&one.row[*at], owner) {
            (_, Some(owner)) if Some(*at) == parent.owner => Some(owner.clone()),
            (value, _) => value.bytes().map(Bytes::copy_from_slice),
        };
        let natural: Vec<Option<Bytes>> = parent.natural.iter().map(field).collect();
        let evidence: Vec<Option<Bytes>> = parent.evidence.iter().map(field).collect();
        let alive = |at: usize| if self.rows[at].shown { Fate::Alive(at) } else { Fate::Deleted };
        let own = self.by_key.get(&one.key[..]).copied();
        if let Some(at) = own.filter(|at| self.proven.contains(&one.key[..]) && self.rows[*at].owner.as_ref() == owner)
        {
            return alive(at);
        }
        let named = self.by_natural.get(&natural[..]).copied();
        if let Some(at) = named.filter(|at| self.rows[*at].evidence == evidence) {
            return alive(at);
        }
        // Renamed: only key and evidence together prove it, and only where there is evidence.
        let made = self.past.made(&one.source).iter().filter_map(|key| self.by_key_text.get(&key[..]));
        let own: Vec<usize> = own.into_iter().chain(made.copied()).collect();
        let mut same = own.iter().filter(|at| !evidence.is_empty() && self.rows[**at].evidence == evidence);
        if let Some(at) = same.next() {
            return alive(*at);
        }
        // A key that stands for a name was issued again: that says nothing.
        match named.filter(|_| parent.table.key != parent.natural) {
            // Deleted, and made anew in the same row.
            Some(at) if own.contains(&at) => Fate::Deleted,
            Some(at) if self.rows[at].shown => Fate::Successor(at),
            Some(_) => Fate::Deleted,
            None => Fate::Lost,
        }
    }
}

/// The field of a row, if it lies in the row itself.
pub fn inline<'a>(cells: &'a [Cell<'a>], at: usize) -> Option<&'a [u8]> {
    cells.get(at).and_then(|cell| cell.bytes())
}
