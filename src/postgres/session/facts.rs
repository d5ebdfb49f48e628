//! What a server is. Managed servers hide some of it: what cannot be read is `None`, never an error.

use serde::{Deserialize, Serialize};

use super::Session;
use crate::postgres::error::PostgresError;

/// The identity of a server and of one of its databases. Serialized into manifests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFacts {
    /// As `server_version_num`: 150018.
    pub version_num: u32,
    pub version: String,
    pub database: String,
    pub database_oid: Option<u32>,
    pub role: String,
    pub is_superuser: bool,
    /// The server's encoding: `UTF8`.
    pub encoding: Option<String>,
    pub is_in_recovery: bool,
    /// Set by `initdb`, the same on a standby; decimal.
    pub system_identifier: Option<String>,
    /// Changes with every promotion and point-in-time recovery.
    pub timeline: Option<u32>,
    pub data_checksums: Option<bool>,
    pub fsync: Option<bool>,
    pub full_page_writes: Option<bool>,
    pub block_size: Option<u32>,
    /// When the postmaster started, RFC 3339.
    pub started: Option<String>,
    pub max_connections: Option<u32>,
    pub max_prepared_transactions: Option<u32>,
    pub max_locks_per_transaction: Option<u32>,
    pub wal_level: Option<String>,
    /// `Amazon RDS`, `Google Cloud SQL`, … as the roles tell that such services create.
    pub managed: Option<String>,
}

pub(super) async fn read(session: &Session) -> Result<ServerFacts, PostgresError> {
    let client = session.client();
    let row = client
        .query_one(
            "SELECT current_setting('server_version'), current_database()::text, current_user::text, \
             current_setting('is_superuser')::bool, pg_is_in_recovery()",
            &[],
        )
        .await
        .map_err(PostgresError::server("asking what the server is"))?;
    let in_recovery: bool = row.get(4);
    let text =
        async |sql: &str| -> Option<String> { client.query_one_scalar::<Option<String>, _>(sql, &[]).await.ok()? };
    let setting = async |name: &str| text(&format!("SELECT current_setting('{name}', true)")).await;
    // The control file names the timeline of the last checkpoint, which after a promotion is still the old one.
    let timeline = if in_recovery {
        text("SELECT timeline_id::text FROM pg_control_checkpoint()").await
    } else {
        match text("SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint::text").await {
            Some(timeline) => Some(timeline),
            None => text("SELECT timeline_id::text FROM pg_control_checkpoint()").await,
        }
    };
    let on = |value: Option<String>| value.map(|value| value == "on");
    let number = |value: Option<String>| value.and_then(|value| value.parse().ok());
    let started = "SELECT to_char(pg_postmaster_start_time(), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let managed = "SELECT CASE rolname WHEN 'rds_superuser' THEN 'Amazon RDS' WHEN 'cloudsqlsuperuser' THEN 'Google Cloud SQL' \
                   WHEN 'azure_pg_admin' THEN 'Azure Database for PostgreSQL' WHEN 'supabase_admin' THEN 'Supabase' \
                   WHEN 'neon_superuser' THEN 'Neon' ELSE 'Google AlloyDB' END FROM pg_catalog.pg_roles WHERE rolname IN \
                   ('rds_superuser', 'cloudsqlsuperuser', 'azure_pg_admin', 'supabase_admin', 'neon_superuser', \
                   'alloydbsuperuser') ORDER BY 1 LIMIT 1";
    Ok(ServerFacts {
        version_num: session.version(),
        version: row.get(0),
        database: row.get(1),
        database_oid: number(text("SELECT oid::text FROM pg_database WHERE datname = current_database()").await),
        role: row.get(2),
        is_superuser: row.get(3),
        encoding: setting("server_encoding").await,
        is_in_recovery: in_recovery,
        system_identifier: text("SELECT system_identifier::text FROM pg_control_system()").await,
        timeline: number(timeline),
        data_checksums: on(setting("data_checksums").await),
        fsync: on(setting("fsync").await),
        full_page_writes: on(setting("full_page_writes").await),
        block_size: number(setting("block_size").await),
        started: text(started).await,
        max_connections: number(setting("max_connections").await),
        max_prepared_transactions: number(setting("max_prepared_transactions").await),
        max_locks_per_transaction: number(setting("max_locks_per_transaction").await),
        wal_level: setting("wal_level").await,
        managed: text(managed).await,
    })
}
