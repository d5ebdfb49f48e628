//! Which rows of a segment came and went since an earlier state, by place and transaction alone: no column is read, TOAST is never touched.

use std::collections::HashMap;

use super::base::Issued;
use crate::postgres::copy::Tid;
use crate::repository::RepositoryError;
use crate::repository::id::Digest;
use crate::repository::recipe::Recipe;
use crate::repository::rows::MultisetDigest;
use crate::repository::segment::{Descriptor, Increment, MapRow, MapValue, TupleId};
use crate::repository::wire::Cursor;

/// A row version: where it lies, and which transaction made it.
pub type Version = (TupleId, u32);

/// So many increments a segment may have; then all but the first are read again as one.
const MOST_INCREMENTS: usize = 8;

/// What is left of a segment's former increments.
#[derive(Default)]
pub struct Kept {
    pub increments: Vec<Increment>,
    /// Their live rows, ascending.
    pub rows: Vec<Version>,
    pub digest: MultisetDigest,
}

/// What is to be done with a segment.
#[derive(Default)]
pub struct Change {
    pub kept: Kept,
    /// Rows to read; `None`: all of the segment.
    pub read: Option<Vec<Tid>>,
    /// Rows went whose values may have moved to other rows.
    pub has_lost: bool,
    /// Most of what is stored is dead: values are stored anew, so that the old chunks can go.
    pub is_anew: bool,
}

/// Holds the rows as they are against a segment as it was. `maps`: the row map of each increment.
pub fn compare(live: &[Version], before: Descriptor, maps: &[Vec<MapRow>], issued: &Issued) -> Change {
    let mut increments = before.increments;
    let mut known: Vec<(Version, usize, u32)> = Vec::new();
    for (number, (increment, map)) in increments.iter().zip(maps).enumerate() {
        let alive = (0u32..).zip(map).filter(|(ordinal, _)| !increment.is_dead(*ordinal));
        known.extend(alive.map(|(ordinal, row)| ((row.place, row.xmin), number, ordinal)));
    }
    known.sort_unstable();
    let stored: usize = maps.iter().map(Vec::len).sum();
    let mut alive: Vec<Vec<u8>> = maps.iter().map(|map| vec![0u8; map.len().div_ceil(8)]).collect();
    let (mut kept, mut new) = (Kept::default(), Vec::new());
    let mut known = known.into_iter().peekable();
    let mut lost = 0usize;
    for version in live {
        while known.next_if(|(before, ..)| before.0 < version.0).is_some() {
            lost += 1;
        }
        match known.next_if(|(before, ..)| before.0 == version.0) {
            Some((before, number, ordinal)) if before == *version && !issued.may_be_another(version.1) => {
                alive[number][ordinal as usize / 8] |= 1 << (ordinal % 8);
                kept.rows.push(*version);
                kept.digest.add(&maps[number][ordinal as usize].digest);
            }
            Some(_) => {
                lost += 1;
                new.push(tid(version));
            }
            None => new.push(tid(version)),
        }
    }
    lost += known.count();
    let has_lost = lost > 0;
    let is_anew = live.len() * 2 < stored;
    // Reading by places costs a little more a row than reading a range, but a row of mail that is read again costs far more.
    let is_nearly_all_new = (live.len() - new.len()) * 10 < new.len();
    if is_anew || is_nearly_all_new {
        return Change { kept: Kept::default(), read: None, has_lost, is_anew };
    }
    for (increment, alive) in increments.iter_mut().zip(&alive) {
        increment.dead = dead(alive, increment.rows);
    }
    let is_left = |increment: &Increment| (0..increment.rows).any(|row| !increment.is_dead(row));
    let left: Vec<usize> = (0..increments.len()).filter(|number| is_left(&increments[*number])).collect();
    if !new.is_empty() && left.len() >= MOST_INCREMENTS {
        let first = left[0];
        let again = maps.iter().enumerate().filter(|(number, _)| *number != first);
        for (number, map) in again {
            let rows = (0u32..).zip(map).filter(|(ordinal, _)| !increments[number].is_dead(*ordinal));
            new.extend(rows.map(|(_, row)| tid(&(row.place, row.xmin))));
        }
        new.sort_unstable();
        kept = Kept::default();
        for (_, row) in (0u32..).zip(&maps[first]).filter(|(ordinal, _)| !increments[first].is_dead(*ordinal)) {
            kept.rows.push((row.place, row.xmin));
            kept.digest.add(&row.digest);
        }
        kept.increments = vec![increments.swap_remove(first)];
        return Change { kept, read: Some(new), has_lost: true, is_anew: false };
    }
    let mut number = 0;
    increments.retain(|_| {
        number += 1;
        left.contains(&(number - 1))
    });
    kept.increments = increments;
    Change { kept, read: Some(new), has_lost, is_anew: false }
}

fn tid(version: &Version) -> Tid {
    Tid { block: version.0.block, offset: version.0.offset }
}

/// The bitmap of those of `rows` that are not alive; empty if none is.
fn dead(alive: &[u8], rows: u32) -> Vec<u8> {
    let mut dead: Vec<u8> = alive.iter().map(|byte| !byte).collect();
    if let (Some(last), bits @ 1..) = (dead.last_mut(), rows % 8) {
        *last &= (1 << bits) - 1;
    }
    if dead.iter().all(|byte| *byte == 0) { Vec::new() } else { dead }
}

/// Large values of rows that went, by their keyed hash. A row that was updated goes and comes in another place, and its values with it:
/// they are referred to where they lie and not stored again.
#[derive(Default)]
pub struct KnownValues {
    /// Chunk lists of increments.
    lists: Vec<Vec<u8>>,
    /// Which list, and the recipe as it is encoded.
    values: HashMap<Digest, (u32, Box<[u8]>)>,
    bytes: usize,
}

impl KnownValues {
    /// Takes in the value map of an increment; forgets all others when that would take more than `most` bytes.
    pub fn add(&mut self, increment: &Increment, map: &[MapValue], most: usize) {
        if self.bytes > most {
            *self = Self::default();
        }
        let list = self.lists.len() as u32;
        self.lists.push(increment.payload.clone());
        self.bytes += increment.payload.len();
        for value in map {
            let mut recipe = Vec::new();
            value.recipe.encode(&mut recipe);
            self.bytes += 64 + recipe.len();
            self.values.insert(value.hash, (list, recipe.into_boxed_slice()));
        }
    }

    /// A value's recipe, and the chunk list that it counts in.
    pub fn find(&self, hash: &Digest) -> Result<Option<(Recipe, &[u8])>, RepositoryError> {
        let Some((list, recipe)) = self.values.get(hash) else { return Ok(None) };
        let recipe = Recipe::decode(&mut Cursor::new("recipe", recipe))?;
        Ok(self.lists.get(*list as usize).map(|list| (recipe, &list[..])))
    }
}
