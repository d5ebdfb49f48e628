//! The promises of `restante::postgres` against a real server.

mod catalog;
mod reading;
mod support;
