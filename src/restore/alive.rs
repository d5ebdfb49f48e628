//! Parts that the live store still has: their bytes are taken from there and not fetched.
//!
//! Attachments are shared, so most that a lost message names hang on some living message too. That the live bytes are those of the snapshot
//! is proven by the keyed hash that the snapshot recorded.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use super::error::ReplayError;
use super::plan::Plan;
use super::staging::{self, Stage, StagedRow};
use crate::compare::live;
use crate::compare::row::{LargeValue, Value};
use crate::compare::source::Source;
use crate::postgres::session::Session;

/// Values of the parts with these keys (by kind) that the live store has as the snapshot has them.
pub(super) async fn alive(
    session: &Session,
    source: &dyn Source,
    plan: &Plan,
    keys: &[BTreeSet<&[u8]>],
) -> Result<HashMap<LargeValue, Bytes>, ReplayError> {
    let layout = &plan.comparison.layout;
    let mut found: Vec<(LargeValue, Bytes)> = Vec::new();
    for (kind, part) in layout.parts.iter().enumerate().filter(|(kind, _)| !keys[*kind].is_empty()) {
        let key = part.table.single_key()?;
        let of_key = |bytes: &[u8]| -> StagedRow {
            let mut row = vec![None; part.table.columns.len()];
            row[key] = Some(Bytes::copy_from_slice(bytes));
            row
        };
        let rows: Vec<StagedRow> = keys[kind].iter().map(|key| of_key(key)).collect();
        let mut columns = vec![key];
        columns.extend(&part.bytes);
        let select = format!(
            "SELECT {} FROM {} p WHERE EXISTS (SELECT FROM {} s WHERE s.{key} = p.{key})",
            part.table.select(&columns, "p"),
            part.table.quoted(),
            Stage::Part(kind).name().quoted(),
            key = part.table.ident(key)
        );
        let work = async || {
            staging::fill(session, layout, Stage::Part(kind), &rows).await?;
            let mut read = Vec::new();
            live::copy(session, "reading parts that are still there", &select, columns.len(), &mut |row| {
                let known = row[0].and_then(|key| plan.comparison.parts[kind].get(key));
                for (at, field) in part.bytes.iter().zip(&row[1..]) {
                    if let (Some(Value::Large(value)), Some(field)) = (known.map(|known| &known[*at]), field) {
                        read.push((*value, Bytes::copy_from_slice(field)));
                    }
                }
                Ok(())
            })
            .await?;
            Ok(read)
        };
        found.extend(staging::transaction(session, "looking for parts", work).await?);
    }
    let mut alive = HashMap::with_capacity(found.len());
    for (value, bytes) in found {
        if source.is(value, &bytes).await? {
            alive.insert(value, bytes);
        }
    }
    Ok(alive)
}
