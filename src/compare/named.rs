//! Names that are numbers of rows elsewhere: an account that is named by its domain's number.
//!
//! The number of the snapshot may be another domain's now, and mail would go to strangers. So it is replaced by the number that the
//! row of the same name has in the live store; of one that is gone nothing is found, and an account that was lost with it cannot be made.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::error::CompareError;
use super::layout::{Layout, Parent, Table};
use super::live;
use super::parents::{Known, fetch};
use super::row::{Row, Value};
use super::source::{Pick, Source, collect};
use crate::postgres::session::Session;
use crate::repository::zone;

type Natural = Vec<Option<Bytes>>;

/// Leads the names of accounts to the live keys of what they refer to.
pub(super) async fn lead(
    session: &Session,
    source: &dyn Source,
    layout: &Layout,
    parent: &Parent,
    all: &mut [Known],
) -> Result<(), CompareError> {
    for (column, kind) in &parent.named {
        let dictionary = &layout.dictionaries[*kind];
        let (table, natural) = (&dictionary.table, &dictionary.natural);
        if dictionary.refers.iter().any(|(at, _)| natural.contains(at)) {
            return Err(CompareError::NotYet { what: "accounts are named by values that refer to other values" });
        }
        let key = table.single_key()?;
        let wide = |one: &Known| one.row[*column].bytes().map(|field| fitted(field, table, key));
        let keys: HashSet<Vec<u8>> = all.iter().filter_map(wide).map(|field| field.to_vec()).collect();
        let mut then: HashMap<Bytes, Natural> = HashMap::new();
        for mut row in collect(source, &table.source, Pick::Keys { column: key, keys: &keys }).await? {
            fetch(source, &mut row).await?;
            let field = |row: &Row, at: usize| row[at].bytes().map(Bytes::copy_from_slice);
            then.insert(field(&row, key).unwrap_or_default(), natural.iter().map(|at| field(&row, *at)).collect());
        }
        let mut columns = vec![key];
        columns.extend(natural);
        let select = format!("SELECT {} FROM {} d", table.select(&columns, "d"), table.quoted());
        let mut now: HashMap<Natural, Bytes> = HashMap::new();
        live::copy(session, "reading what accounts are named by", &select, columns.len(), &mut |row| {
            let keep = |field: &Option<&[u8]>| field.map(Bytes::copy_from_slice);
            now.insert(row[1..].iter().map(keep).collect(), keep(&row[0]).unwrap_or_default());
            Ok(())
        })
        .await?;
        for one in all.iter_mut() {
            let live = wide(one).and_then(|field| now.get(then.get(&field)?)).cloned();
            one.row[*column] = live.map_or(Value::Null, |key| Value::Bytes(fitted(&key, &parent.table, *column)));
        }
    }
    Ok(())
}

/// An integer in the width of a column.
fn fitted(field: &[u8], table: &Table, column: usize) -> Bytes {
    let width = match &*table.columns[column].type_name {
        "smallint" => 2,
        "integer" => 4,
        "bigint" => 8,
        _ => return Bytes::copy_from_slice(field),
    };
    let number = zone::integer(field, false).map(i64::to_be_bytes);
    number.map_or_else(|| Bytes::copy_from_slice(field), |bytes| Bytes::copy_from_slice(&bytes[8 - width..]))
}
