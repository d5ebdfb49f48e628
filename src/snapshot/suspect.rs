//! Does a snapshot show mail, or damage? Zeroed pages and truncated files read as fewer rows with no error (tried on a real
//! server), so rows that vanished without a DELETE are a finding.

use crate::repository::manifest::{Manifest, Table};

/// So few rows may always vanish: statistics lag behind.
const TOLERANCE: u64 = 100;

/// Compares with an earlier snapshot of the same store; each finding is a sentence for people.
pub fn findings(before: &Manifest, now: &Manifest, percent: u8) -> Vec<String> {
    let mut findings = Vec::new();
    for old in &before.tables {
        let label = old.label();
        match now.table(&old.schema, &old.name) {
            None if old.rows > 0 => findings.push(format!("table {label} with {} rows is gone", old.rows)),
            None => {}
            Some(table) => findings.extend(shrunk(old, table, percent).map(|why| format!("table {label} {why}"))),
        }
    }
    findings
}

fn shrunk(old: &Table, now: &Table, percent: u8) -> Option<String> {
    let lost = old.rows.saturating_sub(now.rows);
    // Counters that went back were reset, by a crash for one: then nothing is explained.
    let deleted = now.deleted.zip(old.deleted).and_then(|(now, old)| now.checked_sub(old)).unwrap_or(0);
    if lost > deleted + TOLERANCE {
        return Some(format!("lost {lost} rows, of which the server's statistics explain {deleted} as deleted"));
    }
    let share = lost * 100 / old.rows.max(1);
    (lost > TOLERANCE && share > u64::from(percent))
        .then(|| format!("lost {lost} of {} rows, more than {percent} %", old.rows))
}
