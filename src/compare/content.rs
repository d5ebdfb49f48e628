//! The mail as its sender wrote it, from either side, and its fingerprint.
//!
//! Fetched for those mails alone that may have a twin on the other side: same size, same Message-ID, or neither has one.

use std::collections::HashMap;

use bytes::Bytes;

use super::error::CompareError;
use super::layout::{Body, Content, Layout};
use super::live;
use super::row::{LargeValue, Row, Value};
use super::source::Source;
use crate::mail::identity::Fingerprint;
use crate::postgres::session::Session;
use crate::repository::zone;

/// Bytes of large values fetched at a time.
const FETCH: u64 = 16 << 20;
/// Live mails whose parts are in memory at a time.
const LIVE_BATCH: usize = 50;

/// Of a living mail: its key, what tells the row apart, and the bytes.
type ContentRow = (Vec<u8>, Vec<Option<Vec<u8>>>, Vec<u8>);

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

impl Stock<'_> {
    /// The rest of a mail of which the row has the header alone.
    fn rest(&self, layout: &Layout, row: &Row) -> Vec<&Value> {
        let Body::Headed { part, kind, bytes, .. } = &layout.message.body else { return Vec::new() };
        let value = row[*part].bytes().and_then(|key| self.dictionaries[*kind].get(key));
        value.into_iter().flat_map(|value| bytes.iter().map(|at| &value[*at])).collect()
    }
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
        let rows = mail.children.get(content.child).into_iter().flatten();
        values.extend(rows.flat_map(|row| content.bytes.iter().map(|at| &row[*at])));
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
type Piece = (i64, Vec<Option<Vec<u8>>>, Vec<u8>);

/// The raw mail; parts that are not in the snapshot are left out.
pub fn assemble(layout: &Layout, mail: &Made<'_>, stock: Stock<'_>, found: &HashMap<LargeValue, Bytes>) -> Vec<u8> {
    let mut pieces = Vec::new();
    for (kind, via) in mail.via.iter().enumerate() {
        let layout = &layout.parts[kind];
        for row in *via {
            let Some(part) = row[layout.part].bytes().and_then(|key| stock.parts[kind].get(key)) else { continue };
            let order = layout.order.iter().map(|at| row[*at].bytes().map(<[u8]>::to_vec)).collect::<Vec<_>>();
            let position = layout.position.and_then(|at| zone::integer(row[at].bytes()?, false)).unwrap_or_default();
            let bytes: Vec<u8> =
                layout.bytes.iter().filter_map(|at| bytes_of(&part[*at], found)).flatten().copied().collect();
            pieces.push((position, order, bytes));
        }
    }
    let body = layout.message.body.columns().iter().map(|at| &mail.row[*at]).chain(stock.rest(layout, mail.row));
    let body = body.filter_map(|value| bytes_of(value, found));
    let rest: Vec<u8> = layout.contents.iter().flat_map(|content| content_of(layout, content, mail, found)).collect();
    whole(layout, &body.collect::<Vec<_>>().concat(), pieces, &rest)
}

/// `rest`: what lies in rows of its own.
fn whole(layout: &Layout, body: &[u8], mut pieces: Vec<Piece>, rest: &[u8]) -> Vec<u8> {
    pieces.sort();
    match &layout.message.body {
        Body::Raw(_) | Body::Headed { .. } => body.to_vec(),
        Body::Spliced(_) => splice(body, pieces.iter().map(|(at, _, bytes)| (*at, &bytes[..]))),
        Body::Pieces(_) => [body, rest].concat(),
        // Each with its length, so that none can pass for the end of another.
        Body::Parts { .. } => {
            pieces.iter().flat_map(|(.., bytes)| [&(bytes.len() as u64).to_le_bytes(), &bytes[..]].concat()).collect()
        }
    }
}

/// The parts that [`whole`] put behind each other.
fn parts_of(mut raw: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some((length, rest)) = raw.split_first_chunk() {
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX).min(rest.len());
        let (part, behind) = rest.split_at(length);
        parts.push(part);
        raw = behind;
    }
    parts
}

/// The bytes of a kind of content, in the order of what tells its rows apart.
fn content_of(layout: &Layout, content: &Content, mail: &Made<'_>, found: &HashMap<LargeValue, Bytes>) -> Vec<u8> {
    let natural = &layout.children[content.child].natural;
    let mut rows: Vec<&Row> = mail.children.get(content.child).into_iter().flatten().collect();
    rows.sort_by_key(|row| natural.iter().map(|at| row[*at].bytes()).collect::<Vec<_>>());
    rows.into_iter()
        .flat_map(|row| content.bytes.iter().filter_map(|at| bytes_of(&row[*at], found)))
        .flatten()
        .copied()
        .collect()
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

/// The fingerprints of living mails, by the bytes of their keys. `keys` are the keys as text.
pub async fn live_prints(
    session: &Session,
    layout: &Layout,
    keys: &[&str],
) -> Result<HashMap<Vec<u8>, Fingerprint>, CompareError> {
    let message = &layout.message.table;
    let key = message.single_key()?;
    let mut prints = HashMap::with_capacity(keys.len());
    for batch in keys.chunks(LIVE_BATCH) {
        let chosen = layout.message.one_of("m", batch)?;
        let mut parts: HashMap<Vec<u8>, Vec<Piece>> = HashMap::new();
        for part in &layout.parts {
            let via = &part.via;
            let position = part.position.map_or("0::int8".to_owned(), |at| format!("v.{}::int8", via.table.ident(at)));
            let mut columns = vec![message.expression(key, "m"), position];
            columns.extend(part.order.iter().map(|at| via.table.expression(*at, "v")));
            columns.extend(part.bytes.iter().map(|at| part.table.expression(*at, "p")));
            let select = format!(
                "SELECT {} FROM {} m JOIN {} v ON v.{} = m.{} JOIN {} p ON p.{} = v.{} WHERE {chosen}",
                columns.join(", "),
                message.quoted(),
                via.table.quoted(),
                via.table.ident(via.of),
                message.ident(via.to),
                part.table.quoted(),
                part.table.ident(part.table.single_key()?),
                via.table.ident(part.part)
            );
            live::copy(session, "reading parts of living mail", &select, columns.len(), &mut |row| {
                let position = row[1].and_then(|bytes| zone::integer(bytes, false)).unwrap_or_default();
                let (order, bytes) = row[2..].split_at(part.order.len());
                let order = order.iter().map(|field| field.map(<[u8]>::to_vec)).collect();
                let bytes = bytes.iter().flatten().flat_map(|bytes| bytes.iter().copied()).collect();
                parts.entry(row[0].unwrap_or_default().to_vec()).or_default().push((position, order, bytes));
                Ok(())
            })
            .await?;
        }
        let mut contents: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        for content in &layout.contents {
            let child = &layout.children[content.child];
            let mut columns = vec![child.of];
            columns.extend(&child.natural);
            columns.extend(&content.bytes);
            let select = format!(
                "SELECT {} FROM {} m JOIN {} c ON c.{} = m.{} WHERE {chosen}",
                child.table.select(&columns, "c"),
                message.quoted(),
                child.table.quoted(),
                child.table.ident(child.of),
                message.ident(child.to)
            );
            let mut rows: Vec<ContentRow> = Vec::new();
            live::copy(session, "reading parts of living mail", &select, columns.len(), &mut |row| {
                let (natural, bytes) = row[1..].split_at(child.natural.len());
                let natural = natural.iter().map(|field| field.map(<[u8]>::to_vec)).collect();
                rows.push((
                    row[0].unwrap_or_default().to_vec(),
                    natural,
                    bytes.iter().flatten().copied().collect::<Vec<_>>().concat(),
                ));
                Ok(())
            })
            .await?;
            rows.sort();
            rows.into_iter().for_each(|(key, _, bytes)| contents.entry(key).or_default().extend(bytes));
        }
        let body = layout.message.body.columns().iter().map(|at| message.expression(*at, "m"));
        let mut columns: Vec<String> = std::iter::once(message.expression(key, "m")).chain(body).collect();
        if let Body::Headed { part, kind, bytes, .. } = &layout.message.body {
            let table = &layout.dictionaries[*kind].table;
            let value = |at: &usize| {
                format!(
                    "(SELECT {} FROM {} v WHERE v.{} = m.{} LIMIT 1)",
                    table.expression(*at, "v"),
                    table.quoted(),
                    table.ident(table.key[0]),
                    message.ident(*part)
                )
            };
            columns.extend(bytes.iter().map(value));
        }
        let select = format!("SELECT {} FROM {} m WHERE {chosen}", columns.join(", "), message.quoted());
        live::copy(session, "reading living mail", &select, columns.len(), &mut |row| {
            let key = row[0].unwrap_or_default().to_vec();
            let body: Vec<u8> = row[1..].iter().flatten().flat_map(|bytes| bytes.iter().copied()).collect();
            let rest = contents.remove(&key).unwrap_or_default();
            let raw = whole(layout, &body, parts.remove(&key).unwrap_or_default(), &rest);
            prints.insert(key, fingerprint(layout, &raw));
            Ok(())
        })
        .await?;
    }
    Ok(prints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_go_back_to_their_places() {
        let pieces: [(i64, &[u8]); 3] = [(1, b"X"), (1, b"Y"), (3, b"Z")];
        assert_eq!(splice(b"abc", pieces.into_iter()), b"aXYbcZ");
        let hostile: [(i64, &[u8]); 2] = [(-5, b"X"), (99, b"Y")];
        assert_eq!(splice(b"abc", hostile.into_iter()), b"XabcY");
    }
}
