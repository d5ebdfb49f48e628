//! Rows of the snapshot in temporary tables of the snapshot's types, and transactions that are tried again.
//!
//! A staged row is complete: keys and references are those of the live store already, so what follows is `INSERT … SELECT`
//! with PostgreSQL's own casts to whatever types the live columns have now.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

use super::error::ReplayError;
use crate::compare::layout::{Layout, LiveColumn, Table};
use crate::failpoint;
use crate::postgres::PostgresError;
use crate::postgres::catalog::TableName;
use crate::postgres::copy::CopyInWriter;
use crate::postgres::session::Session;
use crate::postgres::sql;

/// A column of ours in each staging table: the row's number in its batch.
pub(super) const NUMBER: &str = "restante_n";

/// Which kind of row is staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// What lies in mailboxes.
    Message,
    /// What it links to, where that is another row.
    Content,
    Via(usize),
    Child(usize),
    Part(usize),
    Dictionary(usize),
    Parent {
        mailbox: bool,
    },
    /// What hangs on a dictionary.
    Under {
        dictionary: usize,
        kind: usize,
    },
    /// What hangs on an account or mailbox.
    Hanging {
        mailbox: bool,
        kind: usize,
    },
}

impl Stage {
    pub fn name(self) -> TableName {
        let name = match self {
            Self::Message => "restante_message".to_owned(),
            Self::Content => "restante_content".to_owned(),
            Self::Via(kind) => format!("restante_via_{kind}"),
            Self::Child(kind) => format!("restante_child_{kind}"),
            Self::Part(kind) => format!("restante_part_{kind}"),
            Self::Dictionary(kind) => format!("restante_dictionary_{kind}"),
            Self::Under { dictionary, kind } => format!("restante_dictionary_{dictionary}_{kind}"),
            Self::Parent { mailbox } => format!("restante_{}", if mailbox { "mailbox" } else { "owner" }),
            Self::Hanging { mailbox, kind } => format!("restante_{}_{kind}", if mailbox { "mailbox" } else { "owner" }),
        };
        TableName { schema: "pg_temp".to_owned(), name }
    }

    pub fn table(self, layout: &Layout) -> Option<&Table> {
        match self {
            Self::Message => Some(&layout.message.link),
            Self::Content => Some(&layout.message.content.as_ref()?.table),
            Self::Via(kind) => Some(&layout.parts.get(kind)?.via.table),
            Self::Child(kind) => Some(&layout.children.get(kind)?.table),
            Self::Part(kind) => Some(&layout.parts.get(kind)?.table),
            Self::Dictionary(kind) => Some(&layout.dictionaries.get(kind)?.table),
            Self::Under { dictionary, kind } => {
                layout.dictionaries.get(dictionary)?.children.get(kind).map(|child| &child.table)
            }
            Self::Parent { mailbox } => layout.parent(mailbox).map(|parent| &parent.table),
            Self::Hanging { mailbox, kind } => Some(&layout.parent(mailbox)?.children.get(kind)?.table),
        }
    }

    /// Of what hangs on messages, by its place in [`Layout::belonging`].
    pub fn of(layout: &Layout, kind: usize) -> Self {
        kind.checked_sub(layout.parts.len()).map_or(Self::Via(kind), Self::Child)
    }

    /// Those of mail.
    pub fn mail(layout: &Layout) -> Vec<Self> {
        let parts = (0..layout.parts.len()).flat_map(|kind| [Self::Via(kind), Self::Part(kind)]);
        let children = (0..layout.children.len()).map(Self::Child);
        let dictionaries = layout.dictionaries.iter().enumerate().flat_map(|(dictionary, one)| {
            let under = (0..one.children.len()).map(move |kind| Self::Under { dictionary, kind });
            std::iter::once(Self::Dictionary(dictionary)).chain(under)
        });
        [Self::Message, Self::Content].into_iter().chain(parts).chain(children).chain(dictionaries).collect()
    }

    /// Those of accounts and mailboxes.
    pub fn parents(layout: &Layout) -> Vec<Self> {
        let hanging = |mailbox| layout.parent(mailbox).map_or(0, |parent| parent.children.len());
        let of = |mailbox| {
            let hanging = (0..hanging(mailbox)).map(move |kind| Self::Hanging { mailbox, kind });
            std::iter::once(Self::Parent { mailbox }).chain(hanging)
        };
        [true, false].into_iter().flat_map(of).collect()
    }
}

/// Makes staging tables in this session.
pub(super) async fn prepare(session: &Session, layout: &Layout, stages: &[Stage]) -> Result<(), ReplayError> {
    let mut create = String::new();
    for stage in stages {
        let Some(table) = stage.table(layout) else { continue };
        let columns: Vec<String> = table
            .columns
            .iter()
            .map(|column| {
                let kind = if column.text { "text" } else { &column.type_name };
                format!("{} {kind}", sql::identifier(&column.name))
            })
            .collect();
        let name = stage.name().quoted();
        create += &format!(
            "DROP TABLE IF EXISTS {name}; CREATE TEMPORARY TABLE {name} ({NUMBER} bigint, {}) ON COMMIT DELETE ROWS;",
            columns.join(", ")
        );
    }
    Ok(failpoint::committing(session.execute("making the staging tables", &create)).await?)
}

/// Removes staging tables that are needed no more: each COMMIT empties all that there are, whether anything is in them or not.
pub(super) async fn discard(session: &Session, stages: &[Stage]) -> Result<(), ReplayError> {
    let drop: String = stages.iter().map(|stage| format!("DROP TABLE IF EXISTS {};", stage.name().quoted())).collect();
    Ok(failpoint::committing(session.execute("removing the staging tables", &drop)).await?)
}

/// A row to stage: the fields in the order of the snapshot's columns.
pub(super) type StagedRow = Vec<Option<bytes::Bytes>>;

/// About from this size on PostgreSQL compresses a value (`TOAST_TUPLE_THRESHOLD`).
const LARGE: usize = 2000;

/// Sends rows; each is numbered by its place in `rows`.
///
/// A large value that several of them have is sent once and copied there: PostgreSQL copies it compressed, and compressing costs more
/// than all else that is done with it. The rows that follow from these have it in that form too.
pub(super) async fn fill(
    session: &Session,
    layout: &Layout,
    stage: Stage,
    rows: &[StagedRow],
) -> Result<(), ReplayError> {
    let Some(table) = stage.table(layout).filter(|_| !rows.is_empty()) else { return Ok(()) };
    let mut columns = vec![NUMBER];
    columns.extend(table.columns.iter().map(|column| &*column.name));
    // Others may not allow NULL.
    let may_wait = |at: usize| table.columns[at].text || matches!(&*table.columns[at].type_name, "bytea" | "text");
    let mut first: HashMap<(usize, &[u8]), i64> = HashMap::new();
    let mut copies: BTreeMap<usize, (Vec<i64>, Vec<i64>)> = BTreeMap::new();
    let encoding = session.carried();
    let mut writer = CopyInWriter::begin_encoded(session.client(), &stage.name(), &columns, &encoding).await?;
    for (number, row) in rows.iter().enumerate() {
        let number = number as i64;
        let mut fields: Vec<Option<&[u8]>> = row.iter().map(Option::as_deref).collect();
        for (at, field) in fields.iter_mut().enumerate() {
            let Some(bytes) = field.filter(|bytes| bytes.len() >= LARGE && may_wait(at)) else { continue };
            let has = *first.entry((at, bytes)).or_insert(number);
            if has != number {
                *field = None;
                let (these, those) = copies.entry(at).or_default();
                these.push(number);
                those.push(has);
            }
        }
        writer.row(std::iter::once(Some(&number.to_be_bytes()[..])).chain(fields)).await?;
    }
    writer.finish().await?;
    if encoding != "UTF8" {
        session.execute("setting the encoding back", "SET client_encoding = 'UTF8'").await?;
    }
    for (at, (these, those)) in copies {
        let copy = format!(
            "UPDATE {0} s SET {1} = f.{1} FROM unnest($1::int8[], $2::int8[]) c(this, that) JOIN {0} f ON f.{NUMBER} = c.that WHERE s.{NUMBER} = c.this",
            stage.name().quoted(),
            table.ident(at)
        );
        let failed = PostgresError::server("copying values that several rows have");
        session.client().execute(&copy, &[&these, &those]).await.map_err(failed)?;
    }
    Ok(())
}

/// Sends rows of several kinds. Nobody else counts temporary tables; not knowing how few rows there are, the planner reads whole live
/// tables to join them.
pub(super) async fn fill_all(
    session: &Session,
    layout: &Layout,
    staged: &[(Stage, Vec<StagedRow>)],
) -> Result<(), ReplayError> {
    let staged: Vec<_> = staged.iter().filter(|(_, rows)| !rows.is_empty()).collect();
    if staged.is_empty() {
        return Ok(());
    }
    for (stage, rows) in &staged {
        fill(session, layout, *stage, rows).await?;
    }
    let counted = staged.iter().map(|(stage, _)| format!("{} ({NUMBER})", stage.name().quoted()));
    let counted = counted.collect::<Vec<_>>().join(", ");
    Ok(session.execute("counting what is staged", &format!("ANALYZE {counted}")).await?)
}

/// What of a staged row is inserted, and how.
pub(super) struct Insert {
    pub columns: String,
    pub values: String,
    pub overriding: &'static str,
    /// What is done with rows that are there already.
    pub conflict: &'static str,
}

impl Insert {
    /// The statement that puts in those of `rows`, called `s`, for which `condition` holds, in the order of a column.
    pub fn sql(&self, table: &Table, rows: &str, condition: &str, order: &str) -> String {
        format!(
            "INSERT INTO {} ({}){} SELECT {} FROM {rows} s WHERE {condition} ORDER BY s.{order}{}",
            table.quoted(),
            self.columns,
            self.overriding,
            self.values,
            self.conflict
        )
    }

    /// Puts in the staged rows `s` for which `condition` holds, in their order.
    pub async fn all(
        &self,
        session: &Session,
        doing: &str,
        table: &Table,
        stage: Stage,
        condition: &str,
    ) -> Result<(), ReplayError> {
        Ok(session.execute(doing, &self.sql(table, &stage.name().quoted(), condition, NUMBER)).await?)
    }
}

/// `set` replaces the old value, `omit` leaves the column to its default.
pub(super) fn insert(table: &Table, set: &BTreeMap<usize, String>, omit: &[usize]) -> Insert {
    let (mut columns, mut values, mut overriding) = (Vec::new(), Vec::new(), "");
    let given = |name: &str| table.added.iter().any(|(added, _)| added == name);
    for (at, column) in table.columns.iter().enumerate() {
        let left = |live: &&LiveColumn| !live.generated && !omit.contains(&at);
        let Some(live) = column.live.as_ref().filter(left).filter(|_| !given(&column.name)) else { continue };
        columns.push(table.ident(at));
        values.push(match set.get(&at) {
            Some(expression) => format!("({expression})"),
            None => format!("s.{}::{}", table.ident(at), live.type_name),
        });
        if live.identity {
            overriding = " OVERRIDING SYSTEM VALUE";
        }
    }
    for (name, value) in &table.added {
        columns.push(sql::identifier(name));
        values.push(format!("({value})"));
    }
    Insert { columns: columns.join(", "), values: values.join(", "), overriding, conflict: "" }
}

/// SQL that makes a new key for a row of a table.
pub(super) fn new_key(table: &Table) -> Result<String, ReplayError> {
    let column = &table.columns[table.single_key()?];
    let default = match &column.live {
        Some(live) if live.identity => Some(format!(
            "nextval(pg_get_serial_sequence({}, {}))",
            sql::literal(&table.quoted()),
            sql::literal(&column.name)
        )),
        Some(live) => {
            live.default.clone().or_else(|| (live.type_name == "uuid").then(|| "gen_random_uuid()".to_owned()))
        }
        None => None,
    };
    default.ok_or_else(|| ReplayError::NoNewKey { table: table.label(), column: column.name.clone() })
}

/// New keys for rows of a table, by the key's own default: as bytes of the snapshot's type, and as text.
pub(super) async fn new_keys(
    session: &Session,
    table: &Table,
    count: usize,
) -> Result<Vec<(bytes::Bytes, String)>, ReplayError> {
    let (column, default) = (&table.columns[table.single_key()?], new_key(table)?);
    let select = format!(
        "SELECT k::{}, k::text FROM (SELECT {default} AS k FROM generate_series(1, {count})) q",
        if column.text { "text" } else { &column.type_name }
    );
    let mut keys = Vec::with_capacity(count);
    crate::compare::live::copy(session, "drawing new keys", &select, 2, &mut |row| {
        let text = String::from_utf8_lossy(row[1].unwrap_or_default()).into_owned();
        keys.push((bytes::Bytes::copy_from_slice(row[0].unwrap_or_default()), text));
        Ok(())
    })
    .await?;
    Ok(keys)
}

/// The settings of a transaction that writes.
///
/// Locks are waited for less than the server's deadlock timeout, so that nobody's delivery is ever chosen as the victim of a
/// deadlock with us. The search path is the store's, because its triggers may name tables without a schema, with the system's
/// names in front and temporary ones at the end; our own statements name every schema. Rows that we ask for by their keys were
/// written a moment ago, so they are in memory: without being told, the planner reads a table that is not large as a whole instead.
pub(super) async fn settings(session: &Session, layout: &Layout) -> Result<(), ReplayError> {
    let timeout = "extract(epoch FROM current_setting('deadlock_timeout')::interval) * 500";
    let sql = format!(
        "SELECT set_config('lock_timeout', least(greatest({timeout}, 10), 5000)::int8::text, true), \
         set_config('random_page_cost', current_setting('seq_page_cost'), true); SET LOCAL {}",
        layout.search_path()
    );
    Ok(session.execute("setting up a transaction", &sql).await?)
}

/// How often a transaction is tried, with pauses from 20 ms to 2 s in between.
const ATTEMPTS: u32 = 60;

/// Runs `work` in a transaction and commits; tries again after a lock timeout, a deadlock or a conflict.
pub(super) async fn transaction<T>(
    session: &Session,
    what: &'static str,
    mut work: impl AsyncFnMut() -> Result<T, ReplayError>,
) -> Result<T, ReplayError> {
    let pauses = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(20))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .with_max_times(ATTEMPTS as usize)
        .build();
    for pause in pauses {
        session.execute(what, "BEGIN ISOLATION LEVEL READ COMMITTED").await?;
        let failed = match work().await {
            Ok(done) => match failpoint::committing(session.execute(what, "COMMIT")).await {
                Ok(()) => return Ok(done),
                Err(error) => error.into(),
            },
            Err(error) => error,
        };
        // Fails when the connection is gone; the first error is the one to tell.
        let _ = session.execute(what, "ROLLBACK").await;
        if !ReplayError::is_transient(&failed) {
            return Err(failed);
        }
        tokio::time::sleep(pause).await;
    }
    Err(ReplayError::Busy { what, attempts: ATTEMPTS })
}
