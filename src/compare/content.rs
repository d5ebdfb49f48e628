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

/// The fingerprints of mails of the snapshot, in their order.
pub async fn snapshot_prints(
    source: &dyn Source,
    layout: &Layout,
    mails: &[Made<'_>],
    parts: &PartRows,
) -> Result<Vec<Fingerprint>, CompareError> {
    let mut prints = Vec::with_capacity(mails.len());
    let mut from = 0;
    while from < mails.len() {
        let (mut wanted, mut bytes, mut to) = (Vec::new(), 0, from);
        while to < mails.len() && (to == from || bytes < FETCH) {
            let own = large_values(layout, &mails[to], parts);
            bytes += source.lengths(&own).await?.iter().sum::<u64>();
            wanted.extend(own);
            to += 1;
        }
        wanted.sort_unstable();
        wanted.dedup();
        let found: HashMap<LargeValue, Bytes> = wanted.iter().copied().zip(source.values(&wanted).await?).collect();
        for mail in &mails[from..to] {
            prints.push(fingerprint(layout, &assemble(layout, mail, parts, &found)));
        }
        from = to;
    }
    Ok(prints)
}

/// Text that was taken from a mail may look like one and is none.
pub fn fingerprint(layout: &Layout, raw: &[u8]) -> Fingerprint {
    match &layout.message.body {
        Body::Raw(_) | Body::Spliced(_) => Fingerprint::of(raw),
        Body::Pieces(_) => Fingerprint::opaque(raw),
    }
}

/// What must be fetched to put a mail together.
pub fn large_values(layout: &Layout, mail: &Made<'_>, parts: &PartRows) -> Vec<LargeValue> {
    let body: &[usize] = match &layout.message.body {
        Body::Raw(column) | Body::Spliced(column) => std::slice::from_ref(column),
        Body::Pieces(columns) => columns,
    };
    let mut values: Vec<&Value> = body.iter().map(|at| &mail.row[*at]).collect();
    for (kind, via) in mail.via.iter().enumerate() {
        let layout = &layout.parts[kind];
        for row in *via {
            let part = row[layout.part].bytes().and_then(|key| parts[kind].get(key));
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

/// The raw mail; parts that are not in the snapshot are left out.
pub fn assemble(layout: &Layout, mail: &Made<'_>, parts: &PartRows, found: &HashMap<LargeValue, Bytes>) -> Vec<u8> {
    let mut pieces = Vec::new();
    for (kind, via) in mail.via.iter().enumerate() {
        let layout = &layout.parts[kind];
        for row in *via {
            let Some(part) = row[layout.part].bytes().and_then(|key| parts[kind].get(key)) else { continue };
            let order = layout.order.iter().map(|at| row[*at].bytes().map(<[u8]>::to_vec)).collect::<Vec<_>>();
            let position = layout.position.and_then(|at| zone::integer(row[at].bytes()?, false)).unwrap_or_default();
            let bytes: Vec<u8> =
                layout.bytes.iter().filter_map(|at| bytes_of(&part[*at], found)).flatten().copied().collect();
            pieces.push((position, order, bytes));
        }
    }
    pieces.sort();
    let body = |at: &usize| bytes_of(&mail.row[*at], found).unwrap_or_default();
    match &layout.message.body {
        Body::Raw(column) => body(column).to_vec(),
        Body::Spliced(column) => splice(body(column), pieces.iter().map(|(at, _, bytes)| (*at, &bytes[..]))),
        Body::Pieces(columns) => {
            let own = columns.iter().flat_map(body).copied();
            own.chain(layout.contents.iter().flat_map(|content| content_of(layout, content, mail, found))).collect()
        }
    }
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
        let list: Vec<String> = batch.iter().map(|key| crate::postgres::sql::literal(key)).collect();
        let list = list.join(", ");
        let mut parts: HashMap<Vec<u8>, Vec<(i64, Vec<u8>)>> = HashMap::new();
        for part in &layout.parts {
            let via = &part.via;
            let part_key = part.table.single_key()?;
            let order: Vec<String> = part.order.iter().map(|at| format!("v.{}", via.table.ident(*at))).collect();
            let position = part.position.map_or("0::int8".to_owned(), |at| format!("v.{}::int8", via.table.ident(at)));
            let select = format!(
                "SELECT {}, {position}, {} FROM {} v JOIN {} p ON p.{} = v.{} WHERE v.{} IN ({list}) ORDER BY 1, 2{}{}",
                via.table.expression(via.of, "v"),
                part.table.select(&part.bytes, "p"),
                via.table.quoted(),
                part.table.quoted(),
                part.table.ident(part_key),
                via.table.ident(part.part),
                via.table.ident(via.of),
                if order.is_empty() { "" } else { ", " },
                order.join(", ")
            );
            live::copy(session, "reading parts of living mail", &select, 2 + part.bytes.len(), &mut |row| {
                let position = row[1].and_then(|bytes| zone::integer(bytes, false)).unwrap_or_default();
                let bytes = row[2..].iter().flatten().flat_map(|bytes| bytes.iter().copied()).collect();
                parts.entry(row[0].unwrap_or_default().to_vec()).or_default().push((position, bytes));
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
            let of = child.table.ident(child.of);
            let select = format!(
                "SELECT {} FROM {} c WHERE c.{of} IN ({list})",
                child.table.select(&columns, "c"),
                child.table.quoted()
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
        let columns: Vec<usize> = match &layout.message.body {
            Body::Raw(column) | Body::Spliced(column) => vec![*column],
            Body::Pieces(columns) => columns.clone(),
        };
        let select = format!(
            "SELECT {}, {} FROM {} m WHERE m.{} IN ({list})",
            message.expression(key, "m"),
            message.select(&columns, "m"),
            message.quoted(),
            message.ident(key)
        );
        live::copy(session, "reading living mail", &select, 1 + columns.len(), &mut |row| {
            let key = row[0].unwrap_or_default().to_vec();
            let body: Vec<u8> = row[1..].iter().flatten().flat_map(|bytes| bytes.iter().copied()).collect();
            let raw = match (&layout.message.body, parts.get(&key)) {
                (Body::Spliced(_), Some(parts)) => splice(&body, parts.iter().map(|(at, bytes)| (*at, &bytes[..]))),
                _ => [body, contents.remove(&key).unwrap_or_default()].concat(),
            };
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
