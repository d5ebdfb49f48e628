//! Leaves standbys and replication slots time to follow what a restore writes.
//!
//! Between two batches the server is asked how far its standbys are. One that has not yet stored as much WAL as the limit, or a slot that has
//! less than the limit left before the server gives it up (`safe_wal_size`), is waited for. What a standby has stored counts and not what it
//! has replayed, because one may replay hours late on purpose. Sources: PostgreSQL's documentation, "pg_stat_replication" and
//! "pg_replication_slots".

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::Statement;

use super::error::ReplayError;
use crate::monitor::Monitor;
use crate::postgres::PostgresError;
use crate::postgres::session::Session;

/// How much a restore may burden the server; `None` is without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of WAL that a standby may lack, and that a slot must have left.
    pub lag: Option<u64>,
    /// Bytes of WAL a second, for each session.
    pub rate: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { lag: Some(256 << 20), rate: None }
    }
}

/// Between two questions to a server whose standby is waited for.
const PAUSE: Duration = Duration::from_secs(1);

const STATE: &str = "SELECT pg_wal_lsn_diff(w, '0/0')::int8,
    (SELECT json_build_object('name', application_name, 'bytes', pg_wal_lsn_diff(w, flush_lsn)::int8)::text FROM pg_stat_replication
     WHERE flush_lsn IS NOT NULL ORDER BY flush_lsn LIMIT 1),
    (SELECT json_build_object('name', slot_name, 'bytes', safe_wal_size)::text FROM pg_replication_slots
     WHERE safe_wal_size IS NOT NULL ORDER BY safe_wal_size LIMIT 1),
    (SELECT count(*) FROM pg_stat_replication WHERE state IS NULL)
    FROM pg_current_wal_lsn() w";

/// A standby or a slot.
#[derive(serde::Deserialize)]
struct Follower {
    name: String,
    bytes: i64,
}

pub(super) struct Throttle<'a> {
    session: &'a Session,
    limits: Limits,
    monitor: &'a dyn Monitor,
    /// When the batch began, and how much WAL there was.
    begun: Option<(Instant, i64)>,
    /// Of all sessions.
    told: &'a AtomicBool,
    /// The question, which the server takes longer to plan than to answer.
    asked: Option<Statement>,
}

struct State {
    wal: i64,
    /// Why to wait.
    behind: Option<String>,
    hidden: i64,
}

impl<'a> Throttle<'a> {
    pub fn new(session: &'a Session, limits: Limits, monitor: &'a dyn Monitor, told: &'a AtomicBool) -> Self {
        Self { session, limits, monitor, begun: None, told, asked: None }
    }

    /// Waits until the next batch may be written.
    pub async fn wait(&mut self) -> Result<(), ReplayError> {
        if self.limits.lag.is_none() && self.limits.rate.is_none() {
            return Ok(());
        }
        let mut state = self.state().await?;
        if let (Some(rate), Some((begun, wal))) = (self.limits.rate, self.begun) {
            let due = Duration::try_from_secs_f64((state.wal - wal).max(0) as f64 / rate.max(1) as f64);
            tokio::time::sleep(due.unwrap_or_default().saturating_sub(begun.elapsed())).await;
        }
        if state.hidden > 0 && self.limits.lag.is_some() && !self.told.swap(true, Ordering::Relaxed) {
            self.monitor.warn(&format!(
                "{} standbys follow this server, and the role may not see how far they are: none is waited for (GRANT pg_read_all_stats lets it see)",
                state.hidden
            ));
        }
        let mut warned = false;
        while let Some(why) = &state.behind {
            if !std::mem::replace(&mut warned, true) {
                self.monitor.warn(&format!("waiting, because {why}; --max-lag says how much is allowed"));
            }
            tokio::time::sleep(PAUSE).await;
            state = self.state().await?;
        }
        self.begun = Some((Instant::now(), state.wal));
        Ok(())
    }

    async fn state(&mut self) -> Result<State, ReplayError> {
        let failed = || PostgresError::server("asking how far the standbys are");
        let client = self.session.client();
        let asked = match self.asked.take() {
            Some(asked) => asked,
            None => client.prepare(STATE).await.map_err(failed())?,
        };
        let row = client.query_one(&asked, &[]).await.map_err(failed())?;
        self.asked = Some(asked);
        let follower = |at: usize| row.get::<_, Option<String>>(at).and_then(|text| serde_json::from_str(&text).ok());
        let (standby, slot): (Option<Follower>, Option<Follower>) = (follower(1), follower(2));
        let lag = self.limits.lag.map(|lag| i64::try_from(lag).unwrap_or(i64::MAX));
        let behind = lag.and_then(|lag| {
            let standby = standby.filter(|standby| standby.bytes > lag);
            let standby = standby.map(|one| format!("the standby {:?} lacks {} bytes of WAL", one.name, one.bytes));
            standby.or_else(|| {
                let slot = slot.filter(|slot| slot.bytes < lag)?;
                Some(format!("the replication slot {:?} is given up after {} bytes of WAL more", slot.name, slot.bytes))
            })
        });
        Ok(State { wal: row.get(0), behind, hidden: row.get(3) })
    }
}
