//! Looks whether somebody waits behind our locks, and how old the snapshot grows; ends the readers when it is time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Ending, ReadingOptions, Shared, Waiting};
use crate::postgres::error::explained;
use crate::postgres::session::Session;

/// How often to look. A waiting ALTER blocks every new SELECT on its table, so seconds count; one look costs the server
/// well under a millisecond.
const PERIOD: Duration = Duration::from_millis(500);

/// Who waits for a table behind one of ours. Waits for our transaction itself (CREATE INDEX CONCURRENTLY) block nobody
/// else and do not count. Process ids are ours, not text from outside.
fn question(backends: &[i32]) -> String {
    let ours = backends.iter().map(i32::to_string).collect::<Vec<_>>().join(",");
    format!(
        "SELECT l.pid, coalesce(a.application_name, ''), l.mode, coalesce(l.relation::regclass::text, ''), \
         coalesce(greatest(extract(epoch FROM clock_timestamp() - l.waitstart), 0), 0)::float8 \
         FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid WHERE NOT l.granted AND l.locktype = 'relation' \
         AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         AND l.pid <> ALL (ARRAY[{ours}]) AND pg_blocking_pids(l.pid) && ARRAY[{ours}] ORDER BY 5 DESC"
    )
}

pub(super) async fn watch(session: Session, backends: Vec<i32>, options: ReadingOptions, shared: Arc<Shared>) {
    let question = question(&backends);
    let begun = Instant::now();
    let period = options.yield_after.map_or(PERIOD, |after| after.clamp(Duration::from_millis(20), PERIOD));
    let ending = loop {
        tokio::select! {
            () = shared.stop.cancelled() => break None,
            () = tokio::time::sleep(period) => {}
        }
        let age = begun.elapsed();
        if options.max_snapshot_age.is_some_and(|limit| age >= limit) {
            break Some(Ending::TooOld(age));
        }
        let Some(after) = options.yield_after else { continue };
        let rows = match session.client().query(&question, &[]).await {
            Ok(rows) => rows,
            // Nobody would give way any more: the readers have to end as well.
            Err(error) => break Some(Ending::Unwatched(explained(&error))),
        };
        let waiting: Vec<Waiting> = rows
            .iter()
            .map(|row| Waiting {
                backend: row.get(0),
                application: row.get(1),
                mode: row.get(2),
                relation: row.get(3),
                waited: Duration::try_from_secs_f64(row.get(4)).unwrap_or_default(),
            })
            .collect();
        if waiting.iter().any(|waiting| waiting.waited >= after) {
            break Some(Ending::Yielded(waiting));
        }
    };
    if let Some(ending) = ending {
        // Set once, here.
        let _ = shared.ending.set(ending);
    }
    shared.stop.cancel();
    // Ends the transactions, whose locks are the matter, also of readers that are busy elsewhere. A role may end its own sessions.
    let ours = backends.iter().map(i32::to_string).collect::<Vec<_>>().join(",");
    let end = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = ANY (ARRAY[{ours}]) AND usename = session_user"
    );
    let _ = session.client().batch_execute(&end).await;
}
