//! Counters first: what a rolled-back store would issue again is raised before anything is put back.
//!
//! Sequences catch up by `nextval`: it never goes back, whoever else draws numbers meanwhile, takes no lock that a delivery would wait
//! for, and needs no more than USAGE. (`setval` is not ordered against `nextval`, and the lock that would order it belongs to the
//! sequence's owner alone.) A million steps take a third of a second. Mailboxes are raised under their own lock, as delivery does.

use serde::Serialize;

use super::error::ReplayError;
use super::look::lock_mailboxes;
use super::plan::Plan;
use super::staging::{settings, transaction};
use super::write::live_type;
use crate::compare::counters::MailboxCounter;
use crate::compare::parents::Fate;
use crate::failpoint;
use crate::postgres::PostgresError;
use crate::postgres::session::Session;
use crate::postgres::sql;

/// More steps than anybody wants to wait for.
const MOST_STEPS: i64 = 100_000_000;
/// Steps in one statement.
const STEPS: i64 = 1_000_000;
/// Mailboxes in one transaction.
const MAILBOXES: usize = 100;

#[derive(Debug, Clone, Default, Serialize)]
pub struct Raised {
    pub sequences: Vec<String>,
    pub mailboxes: u64,
    /// Mailboxes with a new UIDVALIDITY.
    pub uidvalidity: u64,
}

pub(super) async fn raise(session: &Session, plan: &Plan) -> Result<Raised, ReplayError> {
    let mut raised = Raised::default();
    for sequence in &plan.sequences {
        catch_up(session, &sequence.name.quoted(), sequence.least).await?;
        raised.sequences.push(sequence.name.to_string());
    }
    let live = &plan.comparison.parents.live_mailboxes;
    let mut counters = plan.counters.clone();
    // The one order in which everybody locks mailboxes.
    counters.sort_by(|one, other| live[one.live].key.cmp(&live[other.live].key));
    for batch in counters.chunks(MAILBOXES) {
        let work = async || raise_mailboxes(session, plan, batch).await;
        let (mailboxes, uidvalidity) = transaction(session, "the mailboxes' counters", work).await?;
        raised.mailboxes += mailboxes;
        raised.uidvalidity += uidvalidity;
    }
    Ok(raised)
}

/// SQL for the UIDVALIDITY of a mailbox `b`: another one if it is `before` still and `condition` holds.
pub(super) fn another_uidvalidity(column: &str, before: &str, condition: &str) -> String {
    format!(
        "CASE WHEN b.{column} = {before} AND {condition} THEN greatest(b.{column} + 1, extract(epoch FROM now())::int8) ELSE b.{column} END"
    )
}

/// How many were raised, and how many of them have a new UIDVALIDITY.
async fn raise_mailboxes(
    session: &Session,
    plan: &Plan,
    counters: &[MailboxCounter],
) -> Result<(u64, u64), ReplayError> {
    let (layout, live) = (&plan.comparison.layout.mailbox, &plan.comparison.parents.live_mailboxes);
    settings(session, &plan.comparison.layout).await?;
    let keys: Vec<&str> = counters.iter().map(|counter| &*live[counter.live].key_text).collect();
    lock_mailboxes(session, &plan.comparison.layout, keys.iter().copied().collect()).await?;
    let (mut sets, mut returning) = (Vec::new(), "false".to_owned());
    for (column, least) in [(layout.uid, "restante_uid"), (layout.modseq, "restante_modseq")] {
        if let Some(column) = column {
            let column = layout.table.ident(column);
            // NULL is less than any number.
            sets.push(format!("{column} = greatest(b.{column}, {least})"));
        }
    }
    if let Some(column) = layout.uidvalidity {
        let (column, uid) = (layout.table.ident(column), layout.uid.map(|uid| layout.table.ident(uid)));
        let again = uid.map_or("true".to_owned(), |uid| format!("(restante_low IS NULL OR b.{uid} > restante_low)"));
        // Once, whoever comes first.
        sets.push(format!("{column} = {}", another_uidvalidity(&column, "restante_before", &again)));
        returning = format!("b.{column} <> restante_before");
    }
    if sets.is_empty() {
        return Ok((0, 0));
    }
    let collisions: Vec<Option<Collision>> = counters.iter().map(|counter| collision(plan, counter)).collect();
    let key = layout.table.single_key()?;
    let sql = format!(
        "UPDATE {} b SET {} FROM unnest($1::text[], $2::int8[], $3::int8[], $4::int8[], $5::int8[]) \
         q(restante_key, restante_uid, restante_modseq, restante_before, restante_low) WHERE b.{} = restante_key::{} RETURNING {returning}",
        layout.table.quoted(),
        sets.join(", "),
        layout.table.ident(key),
        live_type(&layout.table, key),
    );
    let uids: Vec<Option<i64>> = counters.iter().map(|counter| counter.uid).collect();
    let modseqs: Vec<Option<i64>> = counters.iter().map(|counter| counter.modseq).collect();
    let before: Vec<Option<i64>> = collisions.iter().map(|one| Some(one.as_ref()?.before)).collect();
    let low: Vec<Option<i64>> = collisions.iter().map(|one| one.as_ref()?.low).collect();
    let failed = PostgresError::server("raising counters");
    let rows = session.client().query(&sql, &[&keys, &uids, &modseqs, &before, &low]).await.map_err(failed)?;
    let changed = rows.iter().filter(|row| row.get::<_, Option<bool>>(0) == Some(true)).count();
    Ok((rows.len() as u64, changed as u64))
}

/// A UID was issued twice under this UIDVALIDITY.
struct Collision {
    before: i64,
    /// Only if the counter has left this since, by mail that came while it was low still.
    low: Option<i64>,
}

fn collision(plan: &Plan, counter: &MailboxCounter) -> Option<Collision> {
    let layout = &plan.comparison.layout.mailbox;
    let parents = &plan.comparison.parents;
    layout.uidvalidity?;
    if let Some(before) = counter.collided {
        return Some(Collision { before, low: None });
    }
    let now = &parents.live_mailboxes[counter.live];
    let then = parents.mailboxes.iter().find(|mailbox| mailbox.fate == Fate::Alive(counter.live))?;
    let is_low = now.uid? < then.uid? && now.uidvalidity == then.uidvalidity;
    is_low.then_some(Collision { before: then.uidvalidity?, low: now.uid })
}

async fn catch_up(session: &Session, sequence: &str, least: i64) -> Result<(), ReplayError> {
    let doing = "raising a sequence";
    let next = format!("SELECT max(nextval({}))::int8 FROM generate_series(1, $1::int8)", sql::literal(sequence));
    let step = |count: i64| {
        let next = &next;
        async move {
            let row = failpoint::committing(session.client().query_one(next, &[&count])).await;
            let row = row.map_err(PostgresError::server(doing))?;
            Ok::<i64, ReplayError>(row.get(0))
        }
    };
    let mut at = step(1).await?;
    if least - at > MOST_STEPS {
        return Err(ReplayError::FarBehind { sequence: sequence.to_owned(), missing: least - at, least });
    }
    while at < least {
        at = step((least - at).min(STEPS)).await?;
    }
    Ok(())
}
