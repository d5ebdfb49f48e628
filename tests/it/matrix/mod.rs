//! What can break is broken, one thing at a time and everything once: [`damage`] spoils each kind of object in each way, [`kill`] ends
//! the process at each call to the storage and at random, [`faults`] lets the storage, the server and the disk fail. After each the
//! same is asked: is it found and named, does no wrong byte come out, does the next run put things in order? `replay` and
//! [`replay_faults`] do so to `restore` and `undo`, on the store of [`incident`].
//!
//! `RESTANTE_TEST_LONG=1` turns the numbers up (`scripts/test --long`).

mod damage;
mod faults;
pub mod incident;
mod kill;
mod memory;
mod parsers;
#[cfg(feature = "failpoints")]
mod replay;
mod replay_faults;
pub mod sample;
mod stored;

/// Are the large numbers wanted?
fn long() -> bool {
    std::env::var_os("RESTANTE_TEST_LONG").is_some()
}
