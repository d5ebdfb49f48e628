//! Counters first: what a rolled-back store would issue again is raised before anything is put back.
//!
//! Sequences catch up by `nextval`: it never goes back, whoever else draws numbers meanwhile, takes no lock that a delivery would wait
//! for, and needs no more than USAGE. (`setval` is not ordered against `nextval`, and the lock that would order it belongs to the
//! sequence's owner alone.) A million steps take a third of a second. Mailboxes are raised under their own lock, as delivery does.

use serde::Serialize;

use super::error::ReplayError;
use super::plan::Plan;
use super::staging::{settings, transaction};
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
                if let (Some(column), Some(before)) = (layout.uidvalidity, counter.collided) {
                    let column = layout.table.ident(column);
                    // Once, whoever comes first.
                    sets.push(format!(
                        "{column} = CASE WHEN {column} = {before} THEN greatest({column} + 1, extract(epoch FROM now())::int8) ELSE {column} END"
                    ));
                    changed += 1;
                }
                if sets.is_empty() {
                    continue;
                }
                let update = format!(
                    "UPDATE {} SET {} WHERE {} = {}",
                    layout.table.quoted(),
                    sets.join(", "),
                    layout.table.ident(layout.table.single_key()?),
                    sql::literal(&live[counter.live].key_text)
                );
                session.execute("raising counters", &update).await?;
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
