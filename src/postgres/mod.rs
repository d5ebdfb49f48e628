//! The way to a PostgreSQL server: connection strings, TLS, sessions, the catalog, the opening protocol of a snapshot,
//! COPY in both directions, and the SQL that grants what Restante needs.
//!
//! It ships COPY bytes and catalog facts and knows nothing of mail, chunks or repositories. It may use nothing else of
//! Restante but [`crate::monitor`]; `snapshot`, `compare`, `restore` and `cli` use it.
//!
//! | module | what it is for |
//! |---|---|
//! | [`dsn`] | connection strings, with the meaning that libpq gives them |
//! | [`tls`] | each `sslmode` on rustls |
//! | [`session`] | one connection with Restante's settings forced, and what the server is |
//! | [`catalog`] | what the database holds: tables, types, constraints, sequences |
//! | [`reading`] | lock, then snapshot, then read; give way to whoever waits behind our locks |
//! | [`marker`] | by which the next snapshot knows that history was not set back |
//! | [`copy`] | rows as COPY BINARY frames, out and in |
//! | [`grants`] | the SQL to print for an administrator, and the checks of `doctor` |

pub mod catalog;
pub mod copy;
pub mod dsn;
mod error;
pub mod grants;
pub mod marker;
pub mod reading;
pub mod session;
pub mod sql;
pub mod tls;

pub use error::PostgresError;
