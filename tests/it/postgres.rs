//! The promises of `restante::postgres` against a real server.

mod catalog;
mod copy;
mod dsn;
mod grants;
mod pooler;
mod reading;
pub mod support;
mod tls;
