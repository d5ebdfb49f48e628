//! Behaviour against real PostgreSQL servers and real storages.

mod guard;
mod independent;
mod inspect;
mod jobs;
mod matrix;
mod postgres;
mod restore;
mod retention;
#[cfg(feature = "s3")]
mod s3_server;
#[cfg(feature = "s3")]
mod seaweedfs;
mod server;
mod snapshot;
mod storage;
mod stores;
mod window;
