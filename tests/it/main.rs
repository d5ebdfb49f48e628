//! Behaviour against real PostgreSQL servers and real storages.

mod postgres;
#[cfg(feature = "s3")]
mod s3_server;
#[cfg(feature = "s3")]
mod seaweedfs;
mod server;
mod snapshot;
mod storage;
