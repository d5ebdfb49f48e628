//! Counters first: what a rolled-back store would issue again is raised before anything is put back.
//!
//! Sequences catch up by `nextval`: it never goes back, whoever else draws numbers meanwhile, takes no lock that a delivery would wait
//! for, and needs no more than USAGE. (`setval` is not ordered against `nextval`, and the lock that would order it belongs to the
//! sequence's owner alone.) A million steps take a third of a second. Mailboxes are raised under their own lock, as delivery does.

use serde::Serialize;

use super::error::ReplayError;
use super::plan::Plan;
use super::staging::{settings, transaction};
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
    let layout = &plan.comparison.layout.mailbox;
    let live = &plan.comparison.parents.live_mailboxes;
    let mut counters = plan.counters.clone();
    // The one order in which everybody locks mailboxes.
    counters.sort_by(|one, other| live[one.live].key.cmp(&live[other.live].key));
    for batch in counters.chunks(MAILBOXES) {
        let (mailboxes, uidvalidity) = transaction(session, "the mailboxes' counters", async || {
            settings(session, &plan.comparison.layout).await?;
            let (mut mailboxes, mut changed) = (0, 0);
            for counter in batch {
                let mut sets = Vec::new();
                for (column, least) in [(layout.uid, counter.uid), (layout.modseq, counter.modseq)] {
                    if let (Some(column), Some(least)) = (column, least) {
                        let column = layout.table.ident(column);
                        sets.push(format!("{column} = greatest(coalesce({column}, 0), {least})"));
                    }
                }
                let collision = collision(plan, counter);
                if let Some((column, before, again)) = &collision {
                    // Once, whoever comes first.
                    sets.push(format!(
                        "{column} = CASE WHEN {column} = {before} AND {again} THEN greatest({column} + 1, extract(epoch FROM now())::int8) ELSE {column} END"
                    ));
                }
                if sets.is_empty() {
                    continue;
                }
                let returning = collision.map_or("false".to_owned(), |(column, before, _)| format!("{column} <> {before}"));
                let update = format!(
                    "UPDATE {} SET {} WHERE {} = {} RETURNING {returning}",
                    layout.table.quoted(),
                    sets.join(", "),
                    layout.table.ident(layout.table.single_key()?),
                    sql::literal(&live[counter.live].key_text)
                );
                let failed = PostgresError::server("raising counters");
                let row = session.client().query_opt(&update, &[]).await.map_err(failed)?;
                changed += u64::from(row.is_some_and(|row| row.get(0)));
                mailboxes += 1;
            }
            Ok((mailboxes, changed))
        })
        .await?;
        raised.mailboxes += mailboxes;
        raised.uidvalidity += uidvalidity;
    }
    Ok(raised)
}

/// The column of UIDVALIDITY, what it was, and SQL that tells whether a UID was issued twice under it: before the comparison, or since by mail
/// that came to counters that are low still.
fn collision(plan: &Plan, counter: &MailboxCounter) -> Option<(String, i64, String)> {
    let layout = &plan.comparison.layout.mailbox;
    let parents = &plan.comparison.parents;
    let column = layout.table.ident(layout.uidvalidity?);
    if let Some(before) = counter.collided {
        return Some((column, before, "true".to_owned()));
    }
    let now = &parents.live_mailboxes[counter.live];
    let then = parents.mailboxes.iter().find(|mailbox| mailbox.fate == Fate::Alive(counter.live))?;
    let is_low = now.uid? < then.uid? && now.uidvalidity == then.uidvalidity;
    is_low.then_some((column, then.uidvalidity?, format!("{} > {}", layout.table.ident(layout.uid?), now.uid?)))
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
