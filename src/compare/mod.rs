//! A snapshot held against the live store: what is lost, and why it is thought so.
//!
//! The layer reads both sides and writes to neither, so it works on a standby and with a role that may only read. Both sides come as
//! the bytes of COPY BINARY: the live columns are cast to the types that the snapshot has, so equal values are equal bytes; where they are
//! wider, the snapshot's are read so.
//! It uses `repository`, `postgres`, `profile` and `mail`; `restore` builds its plan on a [`Comparison`], the commands `gap`,
//! `find` and `diff` print one.
//!
//! | module | what it is for |
//! |---|---|
//! | [`source`] | the rows and large values of a snapshot |
//! | [`live`] | the same of the live store |
//! | [`fit`] | which profile is the store's, and what of it does not fit |
//! | [`keys`] | keys that became others, and what refers to them |
//! | [`layout`] | which columns play which part: the profile, laid over the snapshot's tables and the live catalog |
//! | [`parents`] | which live account and mailbox a lost message belongs to |
//! | [`pairing`] | rows that are the same on both sides, 24 bytes for each live row |
//! | [`content`] | the mail as its sender wrote it, and its fingerprint, from either side |
//! | [`tombstones`] | what users deleted themselves |
//! | [`past`] | what earlier replays put back |
//! | [`predicate`] | what the profile's SQL says of rows of the snapshot |
//! | `places` | lost mail whose place in a unique key is taken |
//! | [`referred`] | where messages that others refer to are now |
//! | `belongings` | what belongs to lost messages, and what living ones miss |
//! | [`columns`] | living messages of which a column differs |
//! | [`classify`] | all of it in order: the classes |
//! | [`counters`] | numbers that would be issued again |
//! | [`window`] | what of the snapshot the restore of a window need not read |
//! | [`choose`] | which snapshot was taken before the damage |
//! | [`find`] | single messages, and what became of each |
//! | [`diff`] | two snapshots, table by table |
//! | [`report`] | what may be printed of it: no subjects, no content |

mod belongings;
pub mod choose;
pub mod classify;
pub mod columns;
pub mod content;
pub mod counters;
pub mod diff;
mod duplicates;
mod error;
pub mod find;
pub mod fit;
pub mod keys;
pub mod layout;
pub mod live;
mod named;
pub mod pairing;
pub mod parents;
pub mod past;
mod places;
pub mod predicate;
pub mod referred;
pub mod report;
pub mod row;
pub mod source;
pub mod tombstones;
pub mod window;

pub use belongings::Holder;
pub use classify::{Comparison, Leftover, Options, compare};
pub use error::CompareError;
pub use row::{Class, Reason};
pub use window::Window;
