//! Taking a replay back, as the store itself would expunge: tombstone, MODSEQ, no trace of UIDs.
//!
//! Only where nobody touched the message or what belongs to it since: its state must be the one that the replay recorded. Parts, accounts and
//! mailboxes stay. The journal remembers both, so the message can be put back once more.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use serde::Serialize;

use super::error::ReplayError;
use super::look::{Locked, lock_mailboxes};
use super::{apply, columns, dictionaries, journal, staging};
use crate::compare::classify::row_print;
use crate::compare::layout::{Layout, Refers, Table};
use crate::compare::live;
use crate::compare::past::JOURNAL;
use crate::postgres::PostgresError;
use crate::postgres::session::Session;
use crate::postgres::sql;

#[derive(Debug, Clone)]
pub struct UndoOptions {
    pub replay: String,
    /// Only these mailboxes, by account and name; empty: all.
    pub accounts: Vec<String>,
    pub mailboxes: Vec<String>,
    /// Messages in one transaction.
    pub batch_messages: usize,
}

impl Default for UndoOptions {
    fn default() -> Self {
        Self { replay: String::new(), accounts: Vec::new(), mailboxes: Vec::new(), batch_messages: 200 }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UndoReport {
    pub undone: u64,
    /// Somebody read, flagged or changed them since: they stay.
    pub touched: u64,
    /// Already gone.
    pub gone: u64,
    /// Living messages that have the former value of a column again.
    pub columns: u64,
}

/// SQL for the digest of a message `m` with its children, as it is now.
pub(super) fn state(layout: &Layout) -> Result<String, ReplayError> {
    let message = &layout.message.table;
    // What other rows decide is nobody's touch.
    let computed = layout.message.refers.iter().filter(|(_, refers)| *refers == Refers::Message).map(|(at, _)| at);
    let computed: Vec<&str> = computed.chain(&layout.message.derived).map(|at| &*message.columns[*at].name).collect();
    let mut fields = vec![row(message, "m", layout.message.body.columns(), &computed)];
    for child in layout.belonging() {
        let own = row(&child.table, "c", &[], &[]);
        fields.push(format!(
            "(SELECT string_agg({own}, ',' ORDER BY {own}) FROM {} c WHERE {})",
            child.table.quoted(),
            child.belongs("c", "m", message, &child.to)
        ));
    }
    Ok(format!("encode(sha256(convert_to(ROW({})::text, 'UTF8')), 'hex')", fields.join(", ")))
}

/// The live row as text, long values as their hashes; the same whatever the snapshot's columns were. Of the `content` of mail, which
/// nobody touches, the length says enough: it need not be read.
fn row(table: &Table, alias: &str, content: &[usize], without: &[&str]) -> String {
    let field = |(name, kind): &(String, String)| {
        let column = format!("{alias}.{}", sql::identifier(name));
        let is_content = content.iter().any(|at| table.columns[*at].name == *name);
        match &**kind {
            "bytea" | "text" if is_content => format!("octet_length({column})"),
            "bytea" => format!("sha256({column})"),
            _ => column,
        }
    };
    let fields: Vec<String> = table.live.iter().filter(|(name, _)| !without.contains(&&**name)).map(field).collect();
    format!("ROW({})::text", fields.join(", "))
}

/// Takes back what a replay restored. Run again after a crash, it goes on.
pub async fn undo(session: &Session, layout: &Layout, options: &UndoOptions) -> Result<UndoReport, ReplayError> {
    if !journal::replays(session).await?.iter().any(|replay| replay.id == options.replay) {
        return Err(ReplayError::NoSuchReplay { replay: options.replay.clone() });
    }
    let failed = PostgresError::server("asking for the encoding");
    let own = session.client().query_one("SELECT current_setting('server_encoding')", &[]).await.map_err(failed)?;
    // Prints are made as those of a comparison are.
    session.carry(own.get(0));
    let wanted = mailboxes(session, layout, options).await?;
    let mut report = UndoReport::default();
    let mut after = 0_i64;
    loop {
        let (last, part) =
            staging::transaction(session, "undoing", async || batch(session, layout, options, &wanted, after).await)
                .await?;
        report.undone += part.undone;
        report.touched += part.touched;
        report.gone += part.gone;
        match last {
            Some(last) => after = last,
            None => break,
        }
    }
    if journal::has_repaired(session).await? {
        let mut after = 0;
        loop {
            let work = async || columns::undo(session, layout, &options.replay, &wanted, after).await;
            let (last, [given_back, touched]) = staging::transaction(session, "undoing", work).await?;
            report.columns += given_back;
            report.touched += touched;
            match last {
                Some(last) => after = last,
                None => break,
            }
        }
    }
    apply::compute(session, layout).await?;
    Ok(report)
}

/// Live keys of the mailboxes asked for, as text.
async fn mailboxes(
    session: &Session,
    layout: &Layout,
    options: &UndoOptions,
) -> Result<Option<Vec<String>>, ReplayError> {
    if options.accounts.is_empty() && options.mailboxes.is_empty() {
        return Ok(None);
    }
    let (mailbox, owner) = (&layout.mailbox, layout.owner.as_ref());
    let name = |alias: &str, table: &Table, natural: &[usize], not: Option<usize>| {
        let names =
            natural.iter().filter(|at| Some(**at) != not).map(|at| format!("{alias}.{}::text", table.ident(*at)));
        format!("concat_ws(' / ', {})", names.collect::<Vec<_>>().join(", "))
    };
    let mut join = String::new();
    let mut account = "''".to_owned();
    if let (Some(owner), Some(column)) = (owner, mailbox.owner) {
        let key = owner.table.ident(owner.table.single_key()?);
        join = format!("JOIN {} o ON o.{key} = b.{}", owner.table.quoted(), mailbox.table.ident(column));
        account = name("o", &owner.table, &owner.natural, None);
    }
    let sql = format!(
        "SELECT b.{}::text FROM {} b {join} WHERE ($1::text[] = '{{}}' OR {account} = ANY($1)) AND ($2::text[] = '{{}}' OR {} = ANY($2))",
        mailbox.table.ident(mailbox.table.single_key()?),
        mailbox.table.quoted(),
        name("b", &mailbox.table, &mailbox.natural, mailbox.owner)
    );
    let failed = PostgresError::server("looking for the mailboxes");
    let rows = session.client().query(&sql, &[&options.accounts, &options.mailboxes]).await.map_err(failed)?;
    if rows.is_empty() {
        let names = options.accounts.iter().chain(&options.mailboxes).map(|name| format!("{name:?}"));
        return Err(ReplayError::NoSuchMailboxes { names: names.collect::<Vec<_>>().join(", ") });
    }
    Ok(Some(rows.iter().map(|row| row.get(0)).collect()))
}

async fn batch(
    session: &Session,
    layout: &Layout,
    options: &UndoOptions,
    wanted: &Option<Vec<String>>,
    after: i64,
) -> Result<(Option<i64>, UndoReport), ReplayError> {
    let failed = |doing: &'static str| PostgresError::server(doing);
    staging::settings(session, layout).await?;
    let sql = format!(
        "SELECT entry, mailbox, key, state FROM {JOURNAL} WHERE replay = $1 AND undone IS NULL AND entry > $2 \
         AND ($3::text[] IS NULL OR mailbox = ANY($3)) ORDER BY entry LIMIT {}",
        options.batch_messages.max(1)
    );
    let entries = session
        .client()
        .query(&sql, &[&options.replay, &after, wanted])
        .await
        .map_err(failed("reading the journal"))?;
    let Some(last) = entries.last().map(|row| row.get::<_, i64>(0)) else { return Ok((None, UndoReport::default())) };
    let message = &layout.message;
    let boxes: BTreeSet<&str> = entries.iter().map(|row| row.get::<_, &str>(1)).collect();
    let locked = lock_mailboxes(session, layout, boxes).await?;

    let keys: Vec<&str> = entries.iter().map(|row| row.get(2)).collect();
    let mailbox = message.table.ident(message.mailbox);
    let sql = format!(
        "SELECT {}, {}, m.{mailbox}::text FROM {} m WHERE {} AND {} FOR UPDATE",
        message.key_text("m"),
        state(layout)?,
        message.table.quoted(),
        message.one_of("m", &keys)?,
        layout.shown()
    );
    let rows = session.client().query(&sql, &[]).await.map_err(failed("reading restored mail"))?;
    let now: BTreeMap<String, (String, String)> =
        rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
    let mut report = UndoReport::default();
    let mut doomed: Vec<(i64, String, String)> = Vec::new();
    for entry in &entries {
        let (key, recorded): (String, Option<String>) = (entry.get(2), entry.get(3));
        let deleted = |mailbox: &str| locked.values().any(|state| state.key_text == mailbox && !state.shown);
        match now.get(&key) {
            None => report.gone += 1,
            // With its mailbox, whose rows the store keeps for a while.
            Some((_, mailbox)) if deleted(mailbox) => report.gone += 1,
            Some((state, mailbox)) if Some(state) == recorded.as_ref() => {
                doomed.push((entry.get(0), key, mailbox.clone()))
            }
            Some(_) => report.touched += 1,
        }
    }
    if doomed.is_empty() {
        return Ok((Some(last), report));
    }
    let keys: Vec<&str> = doomed.iter().map(|(_, key, _)| &**key).collect();
    let buried = bury(session, layout, &keys, &locked).await?;
    if layout.buried.as_ref().is_none_or(|buried| !buried.written) {
        delete(session, layout, &keys).await?;
    }
    let touched: BTreeSet<&str> = doomed.iter().map(|(_, _, mailbox)| &**mailbox).collect();
    raise_modseq(session, layout, locked.values().filter(|state| touched.contains(&*state.key_text))).await?;
    // What arrived up to here stood beside the message, and what comes now may stand for it.
    let next_uid = |mailbox: &str| {
        let state = locked.values().find(|state| state.key_text == mailbox)?;
        layout.message.uid.map(|_| state.uid + i64::from(!layout.mailbox.uid_is_next))
    };
    let entries: Vec<i64> = doomed.iter().map(|(entry, ..)| *entry).collect();
    let tombs: Vec<Option<Vec<u8>>> = doomed.iter().map(|(_, key, _)| buried.get(key).cloned()).collect();
    let next: Vec<Option<i64>> = doomed.iter().map(|(.., mailbox)| next_uid(mailbox)).collect();
    let sql = format!(
        "UPDATE {JOURNAL} j SET undone = clock_timestamp(), buried = v.b, next_uid = v.n \
         FROM unnest($1::int8[], $2::bytea[], $3::int8[]) v(e, b, n) WHERE j.entry = v.e"
    );
    session.client().execute(&sql, &[&entries, &tombs, &next]).await.map_err(failed("writing the journal"))?;
    report.undone = doomed.len() as u64;
    Ok((Some(last), report))
}

/// Takes messages away with what hangs on them. A content goes when nobody links to it any more, unless the store keeps it for its
/// tombstones.
async fn delete(session: &Session, layout: &Layout, keys: &[&str]) -> Result<(), ReplayError> {
    let message = &layout.message;
    let list = keys.iter().map(|key| sql::literal(key)).collect::<Vec<_>>().join(", ");
    let mut unlinked = None;
    if let Some(content) = message.content.as_ref().filter(|_| !layout.records_deletions()) {
        let (of, link) = (message.link.ident(content.of), message.link.quoted());
        let sql = format!("SELECT DISTINCT m.{of}::text FROM {link} m WHERE {}", message.one_of("m", keys)?);
        let rows = session.client().query(&sql, &[]).await.map_err(PostgresError::server("undoing"))?;
        let list = rows.iter().map(|row| sql::literal(row.get(0))).collect::<Vec<_>>().join(", ");
        let linked = move |column: &str| {
            format!("m.{column} IN ({list}) AND NOT EXISTS (SELECT FROM {link} l WHERE l.{of} = m.{column})")
        };
        unlinked = Some((content, linked));
    }
    // Nothing refers to what is gone.
    for (_, table, column) in dictionaries::referring(layout, Refers::Message) {
        let own = table.source.name == message.link.source.name;
        let (column, table) = (table.ident(column), table.quoted());
        let others = if own { format!(" AND NOT {}", message.one_of("r", keys)?) } else { String::new() };
        let sql = format!("UPDATE {table} r SET {column} = NULL WHERE r.{column} IN ({list}){others}");
        session.execute("undoing", &sql).await?;
    }
    for child in layout.belonging().filter(|child| !layout.is_shared(child)) {
        let theirs = message.keys_in(&child.table, &child.of, "c", keys)?;
        session.execute("undoing", &format!("DELETE FROM {} c WHERE {theirs}", child.table.quoted())).await?;
    }
    let sql = format!("DELETE FROM {} m WHERE {}", message.link.quoted(), message.one_of("m", keys)?);
    session.execute("undoing", &sql).await?;
    if let Some((content, linked)) = unlinked {
        // What hangs on the rows that name the parts goes before them.
        for child in layout.children.iter().chain(layout.parts.iter().map(|part| &part.via)) {
            if layout.is_shared(child) {
                let (table, condition) = (child.table.quoted(), linked(&child.table.ident(child.of[0])));
                session.execute("undoing", &format!("DELETE FROM {table} m WHERE {condition}")).await?;
            }
        }
        let condition = linked(&content.table.ident(content.table.single_key()?));
        session.execute("undoing", &format!("DELETE FROM {} m WHERE {condition}", content.table.quoted())).await?;
    }
    Ok(())
}

/// SQL for the MODSEQ of a change to a message `m`.
pub(super) fn modseq(layout: &Layout, locked: &HashMap<Bytes, Locked>) -> String {
    let (message, table) = (&layout.message, &layout.message.table);
    let modseqs = locked.values().map(|state| {
        let value = state.modseq + i64::from(!layout.mailbox.modseq_is_next);
        format!(" WHEN {} THEN {value}", sql::literal(&state.key_text))
    });
    match &layout.modseq_sequence {
        Some(sequence) => format!("nextval({}::regclass)", sql::literal(&sequence.quoted())),
        None if locked.is_empty() => "NULL".to_owned(),
        None => format!("CASE m.{}::text{} END", table.ident(message.mailbox), modseqs.collect::<String>()),
    }
}

/// The mailboxes count a change.
pub(super) async fn raise_modseq(
    session: &Session,
    layout: &Layout,
    touched: impl Iterator<Item = &Locked>,
) -> Result<(), ReplayError> {
    let Some(column) = layout.mailbox.modseq else { return Ok(()) };
    let table = &layout.mailbox.table;
    for state in touched {
        let sql = format!(
            "UPDATE {} SET {} = {} WHERE {} = {}",
            table.quoted(),
            table.ident(column),
            state.modseq + 1,
            table.ident(table.single_key()?),
            sql::literal(&state.key_text)
        );
        session.execute("counting a change", &sql).await?;
    }
    Ok(())
}

/// Writes the tombstones that the store's own expunge would leave; the print of each by the message's key.
async fn bury(
    session: &Session,
    layout: &Layout,
    keys: &[&str],
    locked: &HashMap<Bytes, Locked>,
) -> Result<BTreeMap<String, Vec<u8>>, ReplayError> {
    let message = &layout.message;
    let table = &message.table;
    let key = table.single_key()?;
    let ident = table.ident(key);
    let condition = message.one_of("m", keys)?;
    let modseq = modseq(layout, locked);
    // Before the tombstones are there: a trigger on them may remove the message.
    let mut prints = BTreeMap::new();
    let mut fields = vec![key];
    fields.extend(layout.buried_evidence());
    let select = format!(
        "SELECT {}, {} FROM {} m WHERE {condition}",
        message.key_text("m"),
        table.select(&fields, "m"),
        table.quoted()
    );
    live::copy(session, "reading restored mail", &select, 1 + fields.len(), &mut |row| {
        let text = String::from_utf8_lossy(row[0].unwrap_or_default()).into_owned();
        prints.insert(text, row_print(row[1], row[2..].iter().copied()).0.to_vec());
        Ok(())
    })
    .await?;
    for tombstone in layout.tombstones.iter().filter(|tombstone| tombstone.written) {
        let mut columns: Vec<(String, String)> = Vec::new();
        let mut copy = |own: &Option<String>, value: Option<String>| {
            if let (Some(own), Some(value)) = (own, value) {
                columns.push((sql::identifier(own), value));
            }
        };
        copy(&tombstone.mailbox, Some(format!("m.{}", table.ident(message.mailbox))));
        copy(&tombstone.uid, message.uid.map(|at| format!("m.{}", table.ident(at))));
        copy(&tombstone.modseq, Some(modseq.clone()));
        let content = message.content.as_ref().filter(|_| tombstone.keeps_content);
        let of = content.map_or(ident.clone(), |content| table.ident(content.of));
        copy(&tombstone.message, Some(format!("m.{of}")));
        copy(&tombstone.at, Some("now()".to_owned()));
        for (own, of) in &tombstone.evidence {
            copy(&Some(own.clone()), Some(format!("m.{}", table.ident(*of))));
        }
        for (own, sql) in &tombstone.set {
            copy(&Some(own.clone()), Some(format!("({sql})")));
        }
        let (names, values): (Vec<String>, Vec<String>) = columns.into_iter().unzip();
        let sql = format!(
            "INSERT INTO {} ({}) SELECT {} FROM {} m WHERE {condition}",
            tombstone.name.quoted(),
            names.join(", "),
            values.join(", "),
            table.quoted()
        );
        session.execute("writing tombstones", &sql).await?;
    }
    if let Some(buried) = layout.buried.as_ref().filter(|buried| buried.written) {
        let at = buried.at.map(|at| (at, "now()"));
        let modseq = buried.modseq.map(|at| (at, &*modseq));
        let set = buried.set.iter().map(|(at, sql)| (*at, &**sql));
        let sets: Vec<String> =
            at.into_iter().chain(modseq).chain(set).map(|(at, sql)| format!("{} = ({sql})", table.ident(at))).collect();
        let sql = format!("UPDATE {} m SET {} WHERE {condition}", message.link.quoted(), sets.join(", "));
        session.execute("marking what was put back as deleted", &sql).await?;
    }
    Ok(prints)
}
