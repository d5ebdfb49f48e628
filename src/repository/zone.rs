//! Zones: what values a segment's key and time columns have, so that a search opens only the segments that can hold what it
//! looks for. They tell about mail, so readers alone open them.
//!
//! Integers and times: up to 8 closed intervals. Other keys (uuid, text, hashes): a binary fuse filter (Graf and Lemire,
//! <https://arxiv.org/abs/2201.01174>) of the `xorf` crate over the first eight bytes, little endian, of the BLAKE3 of the field.

use serde::{Deserialize, Serialize};
use xorf::{BinaryFuse8, BinaryFuse8Ref, DmaSerializable, Filter, FilterRef};

use super::error::RepositoryError;

const MAX_INTERVALS: usize = 8;
/// Beyond this many intervals the builder merges, so that its memory does not grow with the segment.
const BUILDER_INTERVALS: usize = 4096;

/// What is recorded of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneColumn {
    /// int2, int4, int8 or oid: big endian, as wide as it is; date and timestamps likewise, their infinities apart.
    Integer {
        time: bool,
    },
    Key,
}

/// The zone chunk of an increment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Zone {
    pub columns: Vec<ColumnZone>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ColumnZone {
    /// `attnum`.
    pub column: i16,
    /// NULLs and infinities: such a segment is always a candidate.
    pub has_nulls: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub intervals: Vec<(i64, i64)>,
    /// Seed u64, segment length u32, segment length mask u32, segment count length u32 (all little endian), fingerprints.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "serde_bytes")]
    pub filter: Vec<u8>,
}

impl Zone {
    pub fn column(&self, number: i16) -> Option<&ColumnZone> {
        self.columns.iter().find(|zone| zone.column == number)
    }
}

impl ColumnZone {
    /// Can a row have a value in `[from, to]`?
    pub fn may_contain_range(&self, from: i64, to: i64) -> bool {
        self.has_nulls || self.intervals.iter().any(|(low, high)| *low <= to && from <= *high)
    }

    /// Can a row have this field? For integer columns give [`integer`] to [`Self::may_contain_range`] instead.
    pub fn may_contain_key(&self, field: &[u8]) -> bool {
        let length = BinaryFuse8::DESCRIPTOR_LEN;
        if self.filter.len() <= length {
            return true;
        }
        let (descriptor, fingerprints) = self.filter.split_at(length);
        // The library indexes without asking whether the array is long enough.
        let word = |at: usize| {
            u32::from_le_bytes([descriptor[at], descriptor[at + 1], descriptor[at + 2], descriptor[at + 3]])
        };
        let (segment, mask, count) = (word(8), word(12), word(16));
        let fits = segment.is_power_of_two()
            && mask == segment - 1
            && count != 0
            && count.is_multiple_of(segment)
            && u64::from(count) + 2 * u64::from(segment) <= fingerprints.len() as u64;
        !fits || BinaryFuse8Ref::from_dma(descriptor, fingerprints).contains(&key_hash(field))
    }
}

pub fn key_hash(field: &[u8]) -> u64 {
    let hash = blake3::hash(field);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// The number that a big-endian integer or time field stands for; `None` for infinities and fields of another width.
pub fn integer(field: &[u8], time: bool) -> Option<i64> {
    let value = match *field {
        [a, b] => i64::from(i16::from_be_bytes([a, b])),
        [a, b, c, d] => {
            let value = i32::from_be_bytes([a, b, c, d]);
            if time && (value == i32::MAX || value == i32::MIN) {
                return None;
            }
            i64::from(value)
        }
        _ => i64::from_be_bytes(field.try_into().ok()?),
    };
    (!time || (value != i64::MAX && value != i64::MIN)).then_some(value)
}

/// Watches the fields of one column.
pub struct ZoneBuilder {
    column: i16,
    what: ZoneColumn,
    has_nulls: bool,
    intervals: Vec<(i64, i64)>,
    keys: Vec<u64>,
}

impl ZoneBuilder {
    pub fn new(column: i16, what: ZoneColumn) -> Self {
        Self { column, what, has_nulls: false, intervals: Vec::new(), keys: Vec::new() }
    }

    pub fn null(&mut self) {
        self.has_nulls = true;
    }

    pub fn add(&mut self, field: &[u8]) {
        match self.what {
            ZoneColumn::Key => self.keys.push(key_hash(field)),
            ZoneColumn::Integer { time } => match integer(field, time) {
                None => self.has_nulls = true,
                Some(value) => {
                    match self.intervals.last_mut() {
                        Some((low, high)) if *low <= value && value <= high.saturating_add(1) => {
                            *high = value.max(*high)
                        }
                        _ => self.intervals.push((value, value)),
                    }
                    if self.intervals.len() > BUILDER_INTERVALS {
                        merge(&mut self.intervals, BUILDER_INTERVALS / 64);
                    }
                }
            },
        }
    }

    pub fn finish(mut self) -> Result<ColumnZone, RepositoryError> {
        merge(&mut self.intervals, MAX_INTERVALS);
        let filter = if self.keys.is_empty() {
            Vec::new()
        } else {
            self.keys.sort_unstable();
            self.keys.dedup();
            let filter = BinaryFuse8::try_from(&self.keys)
                .map_err(|e| RepositoryError::malformed("zone", format!("no filter can be built: {e}")))?;
            let mut bytes = vec![0; BinaryFuse8::DESCRIPTOR_LEN];
            filter.dma_copy_descriptor_to(&mut bytes);
            bytes.extend_from_slice(filter.dma_fingerprints());
            bytes
        };
        Ok(ColumnZone { column: self.column, has_nulls: self.has_nulls, intervals: self.intervals, filter })
    }
}

/// Sorts, and closes the smallest gaps until at most `limit` intervals are left.
fn merge(intervals: &mut Vec<(i64, i64)>, limit: usize) {
    intervals.sort_unstable();
    let gap = |a: &(i64, i64), b: &(i64, i64)| (b.0 as i128 - a.1 as i128).max(0);
    let mut gaps: Vec<i128> = Vec::with_capacity(intervals.len());
    let mut end = i64::MIN;
    for window in intervals.windows(2) {
        end = end.max(window[0].1);
        gaps.push(gap(&(0, end), &window[1]));
    }
    // The `limit - 1` widest gaps stay open.
    let threshold = if gaps.len() < limit {
        1
    } else {
        let mut widest = gaps.clone();
        widest.sort_unstable_by(|a, b| b.cmp(a));
        widest[limit - 1] + 1
    };
    let mut merged: Vec<(i64, i64)> = Vec::with_capacity(limit);
    for (low, high) in intervals.drain(..) {
        match merged.last_mut() {
            Some(last) if i128::from(low) - i128::from(last.1) < threshold.max(2) => last.1 = last.1.max(high),
            _ => merged.push((low, high)),
        }
    }
    *intervals = merged;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_value_is_ever_outside_its_zone(values in prop::collection::vec(any::<i64>().prop_map(|v| v >> 20), 1..500)) {
            let mut builder = ZoneBuilder::new(1, ZoneColumn::Integer { time: false });
            values.iter().for_each(|v| builder.add(&v.to_be_bytes()));
            let zone = builder.finish().unwrap();
            prop_assert!(zone.intervals.len() <= MAX_INTERVALS);
            for value in values {
                prop_assert!(zone.may_contain_range(value, value));
            }
        }

        #[test]
        fn no_key_is_ever_missed(keys in prop::collection::vec(any::<u32>(), 1..300)) {
            let mut builder = ZoneBuilder::new(1, ZoneColumn::Key);
            keys.iter().for_each(|k| builder.add(&k.to_le_bytes()));
            let zone = builder.finish().unwrap();
            for key in keys {
                prop_assert!(zone.may_contain_key(&key.to_le_bytes()));
            }
        }

        #[test]
        fn a_filter_that_almost_fits_never_panics(
            seed in any::<u64>(), bits in 0u32..5, count in 0u32..70, extra in 0usize..70, key in any::<[u8; 4]>(),
        ) {
            let segment = 1u32 << bits;
            let mut filter = seed.to_le_bytes().to_vec();
            for word in [segment, segment - 1, count] {
                filter.extend_from_slice(&word.to_le_bytes());
            }
            filter.resize(filter.len() + extra, 0);
            ColumnZone { column: 1, has_nulls: false, intervals: vec![], filter }.may_contain_key(&key);
        }

        #[test]
        fn a_damaged_filter_never_panics(filter in prop::collection::vec(any::<u8>(), 0..200)) {
            let zone = ColumnZone { column: 1, has_nulls: false, intervals: vec![], filter };
            zone.may_contain_key(b"key");
        }
    }

    #[test]
    fn separate_runs_stay_separate() {
        let mut builder = ZoneBuilder::new(1, ZoneColumn::Integer { time: false });
        for v in (1000..1100).chain(5..50).chain(900_000..900_010) {
            builder.add(&i64::to_be_bytes(v));
        }
        assert_eq!(builder.finish().unwrap().intervals, [(5, 49), (1000, 1099), (900_000, 900_009)]);
    }

    #[test]
    fn infinities_make_a_segment_a_candidate() {
        let mut builder = ZoneBuilder::new(1, ZoneColumn::Integer { time: true });
        builder.add(&i64::MAX.to_be_bytes());
        assert!(builder.finish().unwrap().may_contain_range(0, 0));
    }
}
