//! Restante backs up mail message stores kept in PostgreSQL and puts lost mail back into live mailboxes.
//!
//! Imports point one way: `cli` → `guard`, `drill` → `snapshot`, `restore`, `inspect`, `verify` → `compare` → `repository`, `profile`, `mail` →
//! `storage`, `postgres`. `docs/architecture.md` tells the whole.

pub mod cli;
pub mod compare;
pub mod config;
pub mod drill;
pub mod failpoint;
pub mod guard;
pub mod inspect;
pub mod mail;
pub mod monitor;
pub mod postgres;
pub mod profile;
pub mod report;
pub mod repository;
pub mod restore;
pub mod snapshot;
pub mod storage;
pub mod verify;
