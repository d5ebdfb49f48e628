//! Large buffers that are used again.
//!
//! A page that a process touches for the first time costs the kernel more than compressing what is put into it; a snapshot that
//! took fresh memory for every pack and batch spent a quarter of its CPU there (`docs/performance.md`). What is dropped here
//! is kept for the next who asks, up to a limit for small ones and one for large ones.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Smaller ones are not worth keeping: the allocator does that.
const SMALLEST: usize = 256 << 10;
/// Those up to here are for batches of rows, those above for whole packs: neither takes the other's place.
const LARGE: usize = 4 << 20;
/// Of buffers that nobody uses.
const KEPT_SMALL: usize = 4 << 20;
const KEPT_LARGE: usize = 48 << 20;
/// Capacities are multiples of it, so that objects of about one size fit into each other's buffers.
const STEP: usize = 4 << 20;

static FREE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn free() -> MutexGuard<'static, Vec<Vec<u8>>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_large(capacity: usize) -> bool {
    capacity > LARGE
}

/// A vector whose memory goes to the next one when it is dropped.
#[derive(Debug, Default)]
pub struct Buffer(Vec<u8>);

impl Buffer {
    /// An empty one with room for so many bytes at least.
    pub fn with_capacity(bytes: usize) -> Self {
        if bytes < SMALLEST {
            return Self(Vec::with_capacity(bytes));
        }
        let mut free = free();
        let alike = |one: &Vec<u8>| one.capacity() >= bytes && is_large(one.capacity()) == is_large(bytes);
        let fits = free.iter().enumerate().filter(|(_, one)| alike(one));
        match fits.min_by_key(|(_, one)| one.capacity()).map(|(position, _)| position) {
            Some(position) => Self(free.swap_remove(position)),
            None => {
                drop(free);
                Self(Vec::with_capacity(bytes.next_multiple_of(STEP.min(bytes.next_power_of_two()))))
            }
        }
    }

    /// Its bytes, to be shared; the memory comes back when the last that shares them is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0);
        if bytes.capacity() < SMALLEST {
            return;
        }
        let limit = if is_large(bytes.capacity()) { KEPT_LARGE } else { KEPT_SMALL };
        let mut free = free();
        let capacities = free.iter().map(Vec::capacity);
        let alike = capacities.filter(|capacity| is_large(*capacity) == is_large(bytes.capacity()));
        if alike.sum::<usize>() + bytes.capacity() <= limit {
            bytes.clear();
            free.push(bytes);
        }
    }
}
