//! Predicates of the profile over rows of the snapshot, asked of the live server: it alone knows what its SQL means.
//!
//! The rows travel as parameters, so nothing is written and a hot standby will do.

use bytes::{Bytes, BytesMut};
use postgres_protocol::types::array_to_sql;
use tokio_postgres::types::{FromSql, IsNull, Kind, ToSql, Type, to_sql_checked};

use super::error::CompareError;
use super::layout::Table;
use super::row::{Row, Value};
use super::source::Source;
use crate::postgres::PostgresError;
use crate::postgres::session::Session;
use crate::postgres::sql;

/// Rows in one question.
const ROWS: usize = 10_000;

/// For which of these rows is the predicate true?
pub(super) async fn holds(
    session: &Session,
    source: &dyn Source,
    table: &Table,
    predicate: &str,
    rows: &[&Row],
) -> Result<Vec<bool>, CompareError> {
    let mut columns = table.named_in(predicate);
    if columns.is_empty() {
        // A predicate over no column still needs the rows to be counted by.
        columns.extend(table.key.first());
    }
    let (mut arrays, mut fields) = (Vec::new(), Vec::new());
    for (number, at) in columns.iter().enumerate() {
        let column = &table.columns[*at];
        let sent = if column.text { "text" } else { &column.type_name };
        arrays.push(format!("${}::{sent}[]", number + 1));
        fields.push(format!("c{number}::{} AS {}", column.type_name, sql::identifier(&column.name)));
    }
    let names: Vec<String> = (0..columns.len()).map(|number| format!("c{number}")).collect();
    let select = format!(
        "SELECT ({predicate}) IS TRUE FROM (SELECT n, {} FROM unnest({}) WITH ORDINALITY u({}, n)) r ORDER BY n",
        fields.join(", "),
        arrays.join(", "),
        names.join(", ")
    );
    let mut held = Vec::with_capacity(rows.len());
    for rows in rows.chunks(ROWS) {
        let mut values = Vec::with_capacity(columns.len());
        for at in &columns {
            let mut array = Vec::with_capacity(rows.len());
            for row in rows {
                array.push(match &row[*at] {
                    Value::Null => None,
                    Value::Bytes(bytes) => Some(bytes.clone()),
                    Value::Large(large) => source.values(&[*large]).await?.pop(),
                });
            }
            values.push(Array(array));
        }
        let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|array| array as &(dyn ToSql + Sync)).collect();
        let answer = ask(session, "asking the live server about rows of the snapshot", &select, &values).await?;
        held.extend(answer.iter().map(|row| row.get::<_, bool>(0)));
    }
    Ok(held)
}

/// What a question joins to ask with fields of these columns, an array each and the row's number as `restante_n`; and of each column the field
/// there, of the live type.
pub(super) fn unnested(table: &Table, columns: &[usize]) -> (String, Vec<String>) {
    let (mut arrays, mut names, mut fields) = (Vec::new(), Vec::new(), Vec::new());
    for (number, at) in columns.iter().enumerate() {
        let column = &table.columns[*at];
        let sent = if column.text { "text" } else { &column.type_name };
        let kind = column.live.as_ref().map_or(sent, |live| &live.type_name);
        arrays.push(format!("${}::{sent}[]", number + 1));
        names.push(format!("restante_{number}"));
        fields.push(format!("u.restante_{number}::{kind}"));
    }
    let from = format!("unnest({}) WITH ORDINALITY u({}, restante_n)", arrays.join(", "), names.join(", "));
    (from, fields)
}

/// Asks with fields of the snapshot, whose text has the encoding that the session carries.
pub async fn ask(
    session: &Session,
    doing: &str,
    select: &str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<Vec<tokio_postgres::Row>, CompareError> {
    let asked = async |statement: &tokio_postgres::Statement| {
        Ok(session.client().query(statement, values).await.map_err(PostgresError::server(doing))?)
    };
    session.encoded(doing, select, asked).await
}

/// A field in PostgreSQL's binary format, of whatever type it is.
pub struct Field(pub Bytes);

impl<'a> FromSql<'a> for Field {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Bytes::copy_from_slice(raw)))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Fields in PostgreSQL's binary format, of whatever type the array has.
#[derive(Debug)]
pub struct Array(pub Vec<Option<Bytes>>);

impl ToSql for Array {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let Kind::Array(member) = kind.kind() else { return Err(format!("{kind} is no array").into()) };
        let dimension = postgres_protocol::types::ArrayDimension { len: i32::try_from(self.0.len())?, lower_bound: 1 };
        array_to_sql(
            [dimension],
            member.oid(),
            &self.0,
            |field, out| {
                Ok(match field {
                    None => postgres_protocol::IsNull::Yes,
                    Some(bytes) => {
                        out.extend_from_slice(bytes);
                        postgres_protocol::IsNull::No
                    }
                })
            },
            out,
        )?;
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        matches!(kind.kind(), Kind::Array(_))
    }

    to_sql_checked!();
}
