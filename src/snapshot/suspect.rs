//! Does a snapshot show mail, or damage? Zeroed pages and truncated files read as fewer rows with no error (tried on a real
//! server), so rows that vanished without a DELETE are a finding.

use std::collections::HashMap;
use std::time::Duration;

use crate::postgres::PostgresError;
use crate::postgres::catalog::Catalog;
use crate::postgres::dsn::Dsn;
use crate::postgres::session::{Session, SessionOptions};
use crate::repository::manifest::{Manifest, Table};

/// So few rows are no share of a table.
const FEW: u64 = 100;
/// A session tells what it deleted a second after its transaction, one that falls idle before then after ten more
/// (`PGSTAT_MIN_INTERVAL` and `PGSTAT_IDLE_INTERVAL` in PostgreSQL's `pgstat.c`). Before 15 one that falls idle within half a
/// second of its last word kept the rest to itself, and no wait is long enough.
const LAG: Duration = Duration::from_secs(1);
const PATIENCE: u32 = 12;

/// Rows deleted since the statistics began, by the table's oid.
type Deleted = HashMap<u32, u64>;

/// Compares with an earlier snapshot of the same store; each finding is a sentence for people. Before rows count as
/// vanished, the server's statistics get time to arrive.
pub async fn findings(
    dsn: &Dsn,
    before: &Manifest,
    now: &Manifest,
    percent: u8,
    catalog: &Catalog,
) -> Result<Vec<String>, PostgresError> {
    let mut deleted: Deleted = now.tables.iter().filter_map(|table| Some((table.oid, table.deleted?))).collect();
    let mut session = None;
    for _ in 0..PATIENCE {
        // What statistics do not explain away, however much they come to say, is not waited for.
        let at_best = deleted.keys().map(|oid| (*oid, u64::MAX)).collect();
        if compare(before, now, &deleted, percent, catalog) == compare(before, now, &at_best, percent, catalog) {
            break;
        }
        tokio::time::sleep(LAG).await;
        let session = match &mut session {
            Some(session) => session,
            none => none.insert(Session::connect(dsn, SessionOptions::default()).await?),
        };
        deleted.extend(statistics(session).await?);
    }
    Ok(compare(before, now, &deleted, percent, catalog))
}

async fn statistics(session: &Session) -> Result<Deleted, PostgresError> {
    let sql = "SELECT relid, n_tup_del FROM pg_stat_all_tables";
    let rows = session.client().query(sql, &[]).await.map_err(PostgresError::server("reading the statistics"))?;
    Ok(rows.iter().map(|row| (row.get(0), u64::try_from(row.get::<_, i64>(1)).unwrap_or(0))).collect())
}

fn compare(before: &Manifest, now: &Manifest, deleted: &Deleted, percent: u8, catalog: &Catalog) -> Vec<String> {
    // A standby counts none of the rows that it deletes for its primary.
    let counted = !before.server.standby && !now.server.standby;
    let mut findings = Vec::new();
    for old in &before.tables {
        let label = old.label();
        match now.table(&old.schema, &old.name) {
            // It is there, but was excluded or could not be read, which is told elsewhere.
            None if catalog.table(&old.schema, &old.name).is_some() => {}
            None if old.rows > 0 => findings.push(format!("table {label} with {} rows is gone", old.rows)),
            None => {}
            Some(table) => {
                let explained = explained(old, table, deleted).filter(|_| counted);
                let unexplained = explained.is_some_and(|explained| old.rows.saturating_sub(table.rows) > explained);
                let late = if unexplained && now.server.version_num < 150_000 {
                    " (before PostgreSQL 15 an idle session tells what it deleted only when it works again or ends)"
                } else {
                    ""
                };
                let why = shrunk(old.rows, table.rows, explained, percent);
                findings.extend(why.map(|why| format!("table {label} {why}{late}")));
            }
        }
    }
    findings
}

/// How many rows were deleted between the two, or `None` when nobody can say: another table of the same name, or counters
/// that went back because they were reset.
fn explained(old: &Table, now: &Table, deleted: &Deleted) -> Option<u64> {
    let counter = deleted.get(&now.oid).filter(|_| old.oid == now.oid)?;
    counter.checked_sub(old.deleted?)
}

fn shrunk(old: u64, now: u64, explained: Option<u64>, percent: u8) -> Option<String> {
    let lost = old.saturating_sub(now);
    if let Some(explained) = explained.filter(|explained| lost > *explained) {
        return Some(format!("lost {lost} rows, of which the server's statistics explain {explained} as deleted"));
    }
    let share = lost * 100 / old.max(1);
    (lost > FEW && share > u64::from(percent)).then(|| format!("lost {lost} of {old} rows, more than {percent} %"))
}

#[cfg(test)]
mod tests {
    use super::shrunk;

    #[test]
    fn one_row_that_nobody_deleted_is_a_finding_and_any_number_that_somebody_did_is_none() {
        assert!(shrunk(1000, 999, Some(0), 20).is_some());
        assert!(shrunk(1000, 999, Some(1), 20).is_none());
        assert!(shrunk(1000, 850, Some(150), 20).is_none());
        assert!(shrunk(1000, 2000, Some(0), 20).is_none());
    }

    #[test]
    fn more_than_the_share_is_a_finding_whoever_deleted_it() {
        assert!(shrunk(1000, 700, Some(300), 20).is_some());
        assert!(shrunk(1000, 700, None, 20).is_some());
        assert!(shrunk(1000, 900, None, 20).is_none());
        assert!(shrunk(50, 0, Some(50), 20).is_none());
    }
}
