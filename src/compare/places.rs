//! Lost mail whose place is taken: a unique key gives to one mail alone what another living one has by now.

use tokio_postgres::types::ToSql;

use super::classify::Leftover;
use super::error::CompareError;
use super::layout::{Layout, Unique};
use super::parents::Parents;
use super::predicate::{Array, ask, unnested};
use super::row::{Class, Reason, Value};
use super::source::Source;
use crate::postgres::session::Session;

/// Rows in one question.
const ROWS: usize = 10_000;

/// Takes out what cannot be put back, whoever has its place. What a batch finds taken when it writes is left out there.
pub(super) async fn look(
    session: &Session,
    source: &dyn Source,
    layout: &Layout,
    parents: &Parents,
    leftovers: &mut [Leftover],
) -> Result<(), CompareError> {
    for unique in &layout.message.unique {
        let open = |one: &&mut Leftover| matches!(one.class, Class::Absent | Class::ReusedId | Class::CannotTell);
        let mut open: Vec<&mut Leftover> = leftovers.iter_mut().filter(open).collect();
        let select = select(layout, unique);
        for rows in open.chunks_mut(ROWS) {
            let mut values = Vec::with_capacity(unique.columns.len());
            for at in &unique.columns {
                let mut array = Vec::with_capacity(rows.len());
                for one in &*rows {
                    array.push(match &one.row[*at] {
                        // In a mailbox that is made anew nothing is taken.
                        _ if *at == layout.message.mailbox => {
                            one.mailbox.and_then(|at| parents.target(at)).map(|live| live.key.clone())
                        }
                        Value::Null => None,
                        Value::Bytes(bytes) => Some(bytes.clone()),
                        Value::Large(large) => source.values(&[*large]).await?.pop(),
                    });
                }
                values.push(Array(array));
            }
            let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|array| array as &(dyn ToSql + Sync)).collect();
            let taken = ask(session, "looking for mail in the place of lost mail", &select, &values).await?;
            for (one, row) in rows.iter_mut().zip(taken) {
                if row.get(0) {
                    (one.class, one.reason) = (Class::PlaceTaken, Reason::UniqueKey);
                }
            }
        }
    }
    Ok(())
}

fn select(layout: &Layout, unique: &Unique) -> String {
    let table = &layout.message.table;
    let (from, fields) = unnested(table, &unique.columns);
    let same = unique.columns.iter().zip(&fields).map(|(at, field)| format!("m.{} = {field}", table.ident(*at)));
    format!(
        "SELECT EXISTS (SELECT FROM {} m WHERE {} AND ({})) FROM {from} ORDER BY restante_n",
        table.quoted(),
        same.collect::<Vec<_>>().join(" AND "),
        unique.predicate.as_deref().unwrap_or("true"),
    )
}
