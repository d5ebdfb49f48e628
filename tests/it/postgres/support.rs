//! What these tests share.

use std::sync::{Arc, Mutex};

use restante::monitor::{Monitor, SharedMonitor};
use restante::postgres::PostgresError;
use restante::postgres::copy::BlockRange;
use restante::postgres::dsn::{Dsn, Environment};
use restante::postgres::reading::{Reader, ReadingOptions, ReadingSet};

use crate::server::TestDatabase;

/// Reads a connection string without this process's environment.
pub fn dsn(text: &str) -> Dsn {
    let environment = Environment { account: Some("nobody".to_owned()), ..Environment::default() };
    Dsn::parse(text, &environment).unwrap()
}

/// Remembers warnings.
#[derive(Default)]
pub struct Heard(pub Mutex<Vec<String>>);

impl Monitor for Heard {
    fn warn(&self, message: &str) {
        self.0.lock().unwrap().push(message.to_owned());
    }
}

/// A role that may read everything in the database, and nothing more.
pub async fn reading_role(database: &TestDatabase) -> String {
    let role = database.ordinary_role().await;
    let grants = format!(
        "GRANT CONNECT ON DATABASE {0} TO {role}; GRANT USAGE ON SCHEMA public TO {role}; \
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}; GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {role}; \
         ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO {role}",
        database.name()
    );
    database.execute(&grants).await;
    role
}

pub async fn open(
    database: &TestDatabase,
    role: &str,
    jobs: usize,
    options: ReadingOptions,
) -> Result<ReadingSet, PostgresError> {
    let monitor: SharedMonitor = Arc::new(Heard::default());
    ReadingSet::open(&dsn(&database.dsn_as(role)), jobs, options, &monitor).await
}

/// How many rows the reader sees in `public.table`.
pub async fn count(set: &ReadingSet, reader: &Reader, table: &str) -> u64 {
    let table = set.catalog.table("public", table).unwrap();
    let columns: Vec<_> = table.live_columns().collect();
    let mut rows = reader.copy_range(&table.name, &columns, BlockRange::ALL).await.unwrap();
    let mut bounds = Vec::new();
    while rows.next(&mut bounds).await.unwrap().is_some() {
        assert_eq!(bounds.len(), columns.len());
    }
    rows.rows()
}
