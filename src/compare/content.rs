//! The mail as its sender wrote it, from either side, and its fingerprint.
//!
//! Fetched for those mails alone that may have a twin on the other side: same size, same Message-ID, or neither has one.

use std::collections::HashMap;

use bytes::Bytes;

use super::classify::LiveMessage;
use super::error::CompareError;
use super::layout::{Body, Child, Content, Dictionary, Layout};
use super::live;
use super::row::{LargeValue, Row, Value};
use super::source::Source;
use crate::mail::identity::Fingerprint;
use crate::postgres::session::Session;
use crate::repository::zone;

/// Bytes of large values fetched at a time.
const FETCH: u64 = 16 << 20;
/// Live mails whose parts are in memory at a time.
pub const LIVE_BATCH: usize = 50;

/// Fields of a row.
type Fields = Vec<Option<Vec<u8>>>;

/// A mail of the snapshot with what it is made of.
pub struct Made<'a> {
    pub row: &'a Row,
    /// For each kind of part, the rows that name the mail's parts.
    pub via: Vec<&'a [Row]>,
    /// The rows of each kind of child.
    pub children: &'a [Vec<Row>],
}

/// Rows of parts in the snapshot, by kind and key.
pub type PartRows = Vec<HashMap<Vec<u8>, Row>>;

/// What mails of the snapshot are put together from besides their own rows.
#[derive(Clone, Copy)]
pub struct Stock<'a> {
    pub parts: &'a PartRows,
    pub dictionaries: &'a PartRows,
}

impl<'a> Stock<'a> {
    /// The rest of a mail of which the row has the header alone.
    fn rest(&self, layout: &Layout, row: &Row) -> Vec<&'a Value> {
        let Body::Headed { part, kind, bytes, .. } = &layout.message.body else { return Vec::new() };
        let value = row[*part].bytes().and_then(|key| self.dictionaries[*kind].get(key));
        value.into_iter().flat_map(|value| bytes.iter().map(|at| &value[*at])).collect()
    }

    /// What a column of a row says: its value, or those by which the one that it refers to is found again.
    fn said(&self, layout: &Layout, child: &Child, row: &'a Row, column: usize) -> Vec<&'a Value> {
        let Some(kind) = child.dictionary(column) else { return vec![&row[column]] };
        let value = row[column].bytes().and_then(|key| self.dictionaries[kind].get(key));
        let natural = layout.dictionaries[kind].natural.iter();
        natural.map(|at| value.map_or(&Value::Null, |value| &value[*at])).collect()
    }
}

/// The columns by which the rows of a content are put in order, then those that say something.
fn columns(layout: &Layout, content: &Content) -> Vec<usize> {
    layout.children[content.child].natural.iter().chain(&content.columns).copied().collect()
}

/// A field of a shared value, where case may not count.
fn folded(dictionary: &Dictionary, at: usize, field: Option<&[u8]>) -> Option<Vec<u8>> {
    let lower = dictionary.lower.contains(&at);
    field.map(|field| if lower { field.to_ascii_lowercase() } else { field.to_vec() })
}

/// Fields one behind the other, so that none can pass for the end of another.
fn delimited(fields: &[Option<Vec<u8>>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in fields {
        match field {
            None => bytes.push(0),
            Some(field) => {
                bytes.push(1);
                bytes.extend((field.len() as u64).to_le_bytes());
                bytes.extend(field);
            }
        }
    }
    bytes
}

/// The fingerprints of mails of the snapshot, in their order.
pub async fn snapshot_prints(
    source: &dyn Source,
    layout: &Layout,
    mails: &[Made<'_>],
    stock: Stock<'_>,
) -> Result<Vec<Fingerprint>, CompareError> {
    let mut prints = Vec::with_capacity(mails.len());
    let mut from = 0;
    while from < mails.len() {
        let (mut wanted, mut bytes, mut to) = (Vec::new(), 0, from);
        while to < mails.len() && (to == from || bytes < FETCH) {
            let own = large_values(layout, &mails[to], stock);
            bytes += source.lengths(&own).await?.iter().sum::<u64>();
            wanted.extend(own);
            to += 1;
        }
        wanted.sort_unstable();
        wanted.dedup();
        let found: HashMap<LargeValue, Bytes> = wanted.iter().copied().zip(source.values(&wanted).await?).collect();
        for mail in &mails[from..to] {
            prints.push(fingerprint(layout, &assemble(layout, mail, stock, &found)));
        }
        from = to;
    }
    Ok(prints)
}

/// Text that was taken from a mail, and parts of which none is known for its header, may look like a mail and are none.
pub fn fingerprint(layout: &Layout, raw: &[u8]) -> Fingerprint {
    match &layout.message.body {
        Body::Raw(_) | Body::Spliced(_) | Body::Headed { .. } => Fingerprint::of(raw),
        Body::Parts { header_first: true } => Fingerprint::of_parts(&parts_of(raw)),
        Body::Pieces(_) | Body::Parts { header_first: false } => Fingerprint::opaque(raw),
    }
}

/// What must be fetched to put a mail together.
pub fn large_values(layout: &Layout, mail: &Made<'_>, stock: Stock<'_>) -> Vec<LargeValue> {
    let body = layout.message.body.columns().iter();
    let mut values: Vec<&Value> = body.map(|at| &mail.row[*at]).chain(stock.rest(layout, mail.row)).collect();
    for (kind, via) in mail.via.iter().enumerate() {
        let layout = &layout.parts[kind];
        for row in *via {
            let part = row[layout.part].bytes().and_then(|key| stock.parts[kind].get(key));
            values.extend(part.into_iter().flat_map(|part| layout.bytes.iter().map(|at| &part[*at])));
        }
    }
    for content in &layout.contents {
        let child = &layout.children[content.child];
        for row in mail.children.get(content.child).into_iter().flatten() {
            values.extend(content.columns.iter().flat_map(|at| stock.said(layout, child, row, *at)));
        }
    }
    values.into_iter().filter_map(|value| if let Value::Large(large) = value { Some(*large) } else { None }).collect()
}

/// The value's bytes, from the row or from what was fetched.
pub fn bytes_of<'a>(value: &'a Value, found: &'a HashMap<LargeValue, Bytes>) -> Option<&'a [u8]> {
    match value {
        Value::Null => None,
        Value::Bytes(bytes) => Some(bytes),
        Value::Large(large) => found.get(large).map(|bytes| &bytes[..]),
    }
}

/// A part of a mail, in the order of the mail: position in the body, order, bytes.
type Piece = (i64, Fields, Fields);

/// What lies in rows of a mail's own: by how many of its columns the rows are put in order, and the columns of each.
type OwnRows = (usize, Vec<Vec<Fields>>);

/// The raw mail, or what stands for it where the store keeps its parts alone; parts that are not in the snapshot are left out.
pub fn assemble(layout: &Layout, mail: &Made<'_>, stock: Stock<'_>, found: &HashMap<LargeValue, Bytes>) -> Vec<u8> {
    let field = |value: &Value| bytes_of(value, found).map(<[u8]>::to_vec);
    let mut pieces = Vec::new();
    for (kind, via) in mail.via.iter().enumerate() {
        let layout = &layout.parts[kind];
        for row in *via {
            let Some(part) = row[layout.part].bytes().and_then(|key| stock.parts[kind].get(key)) else { continue };
            let order = layout.order.iter().map(|at| row[*at].bytes().map(<[u8]>::to_vec)).collect();
            let position = layout.position.and_then(|at| zone::integer(row[at].bytes()?, false)).unwrap_or_default();
            pieces.push((position, order, layout.bytes.iter().map(|at| field(&part[*at])).collect()));
        }
    }
    let body = layout.message.body.columns().iter().map(|at| &mail.row[*at]).chain(stock.rest(layout, mail.row));
    let body = body.filter_map(|value| bytes_of(value, found));
    let mut rest = Vec::new();
    for content in &layout.contents {
        let child = &layout.children[content.child];
        let fields = |row: &Row| -> Vec<Fields> {
            let of = |at: usize| {
                let said = stock.said(layout, child, row, at).into_iter().map(field);
                match child.dictionary(at).map(|kind| &layout.dictionaries[kind]) {
                    Some(one) => said.zip(&one.natural).map(|(field, at)| folded(one, *at, field.as_deref())).collect(),
                    None => said.collect::<Fields>(),
                }
            };
            columns(layout, content).into_iter().map(of).collect()
        };
        let rows = mail.children.get(content.child).into_iter().flatten().map(fields).collect();
        rest.push((child.natural.len(), rows));
    }
    whole(layout, &body.collect::<Vec<_>>().concat(), pieces, rest)
}

fn whole(layout: &Layout, body: &[u8], mut pieces: Vec<Piece>, rest: Vec<OwnRows>) -> Vec<u8> {
    pieces.sort();
    let mut own = Vec::new();
    for (order, mut rows) in rest {
        rows.sort();
        rows.iter().flat_map(|row| &row[order..]).for_each(|fields| own.extend(delimited(fields)));
    }
    match &layout.message.body {
        Body::Raw(_) | Body::Headed { .. } => body.to_vec(),
        Body::Spliced(_) => {
            let pieces: Vec<(i64, Vec<u8>)> = pieces
                .into_iter()
                .map(|(at, _, bytes)| (at, bytes.into_iter().flatten().flatten().collect()))
                .collect();
            splice(body, pieces.iter().map(|(at, bytes)| (*at, &bytes[..])))
        }
        Body::Pieces(_) => [body, &own].concat(),
        // How many there are and each with its length, so that none can pass for the end of another.
        Body::Parts { .. } => {
            let mut raw = (pieces.len() as u64).to_le_bytes().to_vec();
            for (.., bytes) in &pieces {
                let part = bytes.iter().flatten().flatten().copied().collect::<Vec<u8>>();
                raw.extend((part.len() as u64).to_le_bytes());
                raw.extend(part);
            }
            pieces.iter().for_each(|(_, order, _)| raw.extend(delimited(order)));
            raw.extend(own);
            raw
        }
    }
}

/// The parts that [`whole`] put behind each other.
fn parts_of(raw: &[u8]) -> Vec<&[u8]> {
    let number = |raw: &[u8; 8]| usize::try_from(u64::from_le_bytes(*raw)).unwrap_or(usize::MAX);
    let Some((count, mut raw)) = raw.split_first_chunk() else { return Vec::new() };
    let mut parts = Vec::new();
    while parts.len() < number(count)
        && let Some((length, rest)) = raw.split_first_chunk()
    {
        let (part, behind) = rest.split_at(number(length).min(rest.len()));
        parts.push(part);
        raw = behind;
    }
    parts
}

/// Puts pieces into a body, each at its place in the body, in their order.
fn splice<'a>(body: &[u8], pieces: impl Iterator<Item = (i64, &'a [u8])>) -> Vec<u8> {
    let (mut raw, mut at) = (Vec::with_capacity(body.len()), 0);
    for (position, piece) in pieces {
        let position = usize::try_from(position).unwrap_or(0).clamp(at, body.len());
        raw.extend_from_slice(&body[at..position]);
        raw.extend_from_slice(piece);
        at = position;
    }
    raw.extend_from_slice(&body[at..]);
    raw
}

/// The fingerprints of living mails, by the bytes of their keys. No more of them are in memory at a time than [`LIVE_BATCH`], nor, where the
/// store tells sizes, than 16 MiB or one.
pub async fn live_prints(
    session: &Session,
    layout: &Layout,
    mails: &[&LiveMessage],
) -> Result<HashMap<Vec<u8>, Fingerprint>, CompareError> {
    let mut prints = HashMap::with_capacity(mails.len());
    let mut rest = mails;
    while !rest.is_empty() {
        let (batch, others) = rest.split_at(few(rest.iter().map(|one| one.size.as_deref())));
        let keys: Vec<&str> = batch.iter().map(|one| &*one.key_text).collect();
        let raw = live_mails(session, layout, false, &layout.message.one_of("m", &keys)?).await?;
        prints.extend(raw.into_iter().map(|(key, raw)| (key, fingerprint(layout, &raw))));
        rest = others;
    }
    Ok(prints)
}

/// How many of the next mails are read together, by their sizes.
fn few<'a>(sizes: impl Iterator<Item = Option<&'a [u8]>>) -> usize {
    let mut bytes = 0;
    let fits = |size: Option<&[u8]>| {
        let size = size.and_then(|size| zone::integer(size, false)).unwrap_or(0);
        bytes += u64::try_from(size).unwrap_or(0);
        bytes <= FETCH
    };
    sizes.take(LIVE_BATCH).map(fits).take_while(|fits| *fits).count().max(1)
}

/// What [`assemble`] makes of living mails, by the bytes of their keys. `chosen` says of a row `m` which: one of the messages, or of the
/// contents whoever links to them.
pub async fn live_mails(
    session: &Session,
    layout: &Layout,
    are_contents: bool,
    chosen: &str,
) -> Result<HashMap<Vec<u8>, Vec<u8>>, CompareError> {
    let content = layout.message.content.as_ref().filter(|_| are_contents);
    let table = content.map_or(&layout.message.table, |content| &content.table);
    let key = table.single_key()?;
    // Positions in the joined table, and where that is in this one.
    let at = |column: usize| content.map_or(column, |one| if column == one.of { key } else { column - one.first });
    let to = |columns: &[usize]| columns.iter().map(|column| at(*column)).collect::<Vec<_>>();
    let doing = "reading parts of living mail";
    let keep = |field: &Option<&[u8]>| field.map(<[u8]>::to_vec);
    let mut parts: HashMap<Vec<u8>, Vec<Piece>> = HashMap::new();
    for part in &layout.parts {
        let via = &part.via;
        let position = part.position.map_or("0::int8".to_owned(), |at| format!("v.{}::int8", via.table.ident(at)));
        let mut columns = vec![table.expression(key, "m"), position];
        columns.extend(part.order.iter().map(|at| via.table.expression(*at, "v")));
        columns.extend(part.bytes.iter().map(|at| part.table.expression(*at, "p")));
        let select = format!(
            "SELECT {} FROM {} m JOIN {} v ON {} JOIN {} p ON p.{} = v.{} WHERE {chosen}",
            columns.join(", "),
            table.quoted(),
            via.table.quoted(),
            via.belongs("v", "m", table, &to(&via.to)),
            part.table.quoted(),
            part.table.ident(part.table.single_key()?),
            via.table.ident(part.part)
        );
        live::copy(session, doing, &select, columns.len(), &mut |row| {
            let position = row[1].and_then(|bytes| zone::integer(bytes, false)).unwrap_or_default();
            let (order, bytes) = row[2..].split_at(part.order.len());
            let piece = (position, order.iter().map(keep).collect(), bytes.iter().map(keep).collect());
            parts.entry(row[0].unwrap_or_default().to_vec()).or_default().push(piece);
            Ok(())
        })
        .await?;
    }
    let mut rest: HashMap<Vec<u8>, Vec<OwnRows>> = HashMap::new();
    let none: Vec<_> =
        layout.contents.iter().map(|one| (layout.children[one.child].natural.len(), Vec::new())).collect();
    for (number, content) in layout.contents.iter().enumerate() {
        let child = &layout.children[content.child];
        let said = columns(layout, content);
        let (mut selected, mut joins) = (vec![table.expression(key, "m")], String::new());
        for (number, column) in said.iter().enumerate() {
            let Some(one) = child.dictionary(*column).map(|kind| &layout.dictionaries[kind]) else {
                selected.push(child.table.expression(*column, "c"));
                continue;
            };
            let alias = format!("d{number}");
            selected.extend(one.natural.iter().map(|at| one.table.expression(*at, &alias)));
            let (of, key) = (child.table.ident(*column), one.table.ident(one.table.single_key()?));
            joins += &format!(" LEFT JOIN {} {alias} ON {alias}.{key} = c.{of}", one.table.quoted());
        }
        let select = format!(
            "SELECT {} FROM {} m JOIN {} c ON {}{joins} WHERE {chosen}",
            selected.join(", "),
            table.quoted(),
            child.table.quoted(),
            child.belongs("c", "m", table, &to(&child.to))
        );
        live::copy(session, doing, &select, selected.len(), &mut |row| {
            let mut fields = row[1..].iter().copied();
            let of = |column: &usize| match child.dictionary(*column).map(|kind| &layout.dictionaries[kind]) {
                Some(one) => one.natural.iter().map(|at| folded(one, *at, fields.next().flatten())).collect(),
                None => vec![fields.next().flatten().map(<[u8]>::to_vec)],
            };
            let fields = said.iter().map(of).collect();
            let rows = rest.entry(row[0].unwrap_or_default().to_vec()).or_insert_with(|| none.clone());
            rows[number].1.push(fields);
            Ok(())
        })
        .await?;
    }
    let body = layout.message.body.columns().iter().map(|column| table.expression(at(*column), "m"));
    let mut columns: Vec<String> = std::iter::once(table.expression(key, "m")).chain(body).collect();
    if let Body::Headed { part, kind, bytes, .. } = &layout.message.body {
        let value_of = &layout.dictionaries[*kind].table;
        let value = |column: &usize| {
            format!(
                "(SELECT {} FROM {} v WHERE v.{} = m.{} LIMIT 1)",
                value_of.expression(*column, "v"),
                value_of.quoted(),
                value_of.ident(value_of.key[0]),
                table.ident(at(*part))
            )
        };
        columns.extend(bytes.iter().map(value));
    }
    let select = format!("SELECT {} FROM {} m WHERE {chosen}", columns.join(", "), table.quoted());
    let mut mails = HashMap::new();
    live::copy(session, "reading living mail", &select, columns.len(), &mut |row| {
        let key = row[0].unwrap_or_default().to_vec();
        let body: Vec<u8> = row[1..].iter().flatten().flat_map(|bytes| bytes.iter().copied()).collect();
        let rest = rest.remove(&key).unwrap_or_else(|| none.clone());
        let raw = whole(layout, &body, parts.remove(&key).unwrap_or_default(), rest);
        mails.insert(key, raw);
        Ok(())
    })
    .await?;
    Ok(mails)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_mails_are_read_together_where_they_are_large() {
        let sizes = |sizes: &[i64]| {
            let sizes: Vec<[u8; 8]> = sizes.iter().map(|size| size.to_be_bytes()).collect();
            few(sizes.iter().map(|size| Some(&size[..])))
        };
        assert_eq!(sizes(&[1000; 70]), LIVE_BATCH);
        assert_eq!(sizes(&[6 << 20; 70]), 2);
        assert_eq!(sizes(&[60 << 20; 70]), 1);
        assert_eq!(sizes(&[5, 60 << 20]), 1);
        assert_eq!(few([None; 3].into_iter()), 3);
    }

    #[test]
    fn pieces_go_back_to_their_places() {
        let pieces: [(i64, &[u8]); 3] = [(1, b"X"), (1, b"Y"), (3, b"Z")];
        assert_eq!(splice(b"abc", pieces.into_iter()), b"aXYbcZ");
        let hostile: [(i64, &[u8]); 2] = [(-5, b"X"), (99, b"Y")];
        assert_eq!(splice(b"abc", hostile.into_iter()), b"XabcY");
    }
}
