//! Format 1: how snapshots are kept as sealed, signed, write-once objects. `docs/format.md` describes every byte.
//!
//! The layer knows chunks, packs, the index, segments of tables, manifests and keys. It does not know what the tables mean
//! (`profile`) nor how to talk to a server (`postgres`). It uses `storage`, and `mail` for the base64 form of recipes.
//!
//! What a repository lives by (*must*: else data is lost; *should*: else work is lost):
//!
//! * A pack *must* have been fetched back and opened before an index fragment names it.
//! * A manifest *must* be written after the fragments of all its packs; a certificate after tombstones were read and then everything
//!   referenced was found present, in this order.
//! * Plaintext *must* never leave [`chunk::SealedAs::open`] unless its keyed id was computed again.
//! * Recipients *must* come from the writer key, never from the storage.
//! * A name *must* never be written twice (leases apart).

pub mod cbor;
pub mod changes;
pub mod checkpoint;
pub mod chunk;
pub mod config;
pub mod drills;
pub mod envelope;
mod error;
pub mod forgotten;
pub mod id;
pub mod index;
pub mod manifest;
pub mod name;
pub mod open;
pub mod pack;
pub mod prune;
pub mod reader;
pub mod readers;
pub mod recipe;
pub mod retention;
pub mod ring;
pub mod rotate;
pub mod rows;
pub mod seal;
pub mod secrets;
pub mod segment;
pub mod snapshots;
pub mod table_rows;
#[cfg(test)]
mod tests;
pub mod verified;
pub mod verifier;
pub mod wire;
pub mod writer;
pub mod zone;

pub use error::RepositoryError;
pub use open::{Access, InitOptions, Initialised, NewRepository, Repository, init};
