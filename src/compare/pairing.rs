//! Rows that are the same on both sides, as multisets.
//!
//! Of each live row 24 bytes are kept (a print of 16, a count, a state of 4), about 40 with the hash table's slack: a million
//! messages cost 40 MB. Only what is left over on either side is looked at more closely, so the cost follows the gap.

use std::collections::HashMap;

use super::row::Print;

#[derive(Debug, Clone, Copy)]
struct Seen {
    live: u16,
    paired: u16,
    state: u32,
}

/// The live rows, by what proves them the same: key, creation evidence and the mailbox that they lie in.
#[derive(Debug, Default)]
pub struct Pairs {
    shown: HashMap<Print, Seen>,
    /// Rows that are tombstones, with their states.
    buried: HashMap<Print, u32>,
}

/// What became of a snapshot row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paired {
    /// Also the columns that may change are as they were.
    Same,
    /// They changed since; the live row wins.
    Changed,
    /// A tombstone on both sides.
    Buried,
    /// The live row is a tombstone now, by all that the key and the evidence say.
    Expunged,
    Leftover,
}

impl Pairs {
    /// `state` is a short hash of the columns that may change.
    pub fn live(&mut self, row: Print, state: u32) {
        let seen = self.shown.entry(row).or_insert(Seen { live: 0, paired: 0, state });
        seen.live = seen.live.saturating_add(1);
    }

    /// A row that is a tombstone; `state` covers what makes it one.
    pub fn buried(&mut self, row: Print, state: u32) {
        self.buried.insert(row, state);
    }

    pub fn snapshot(&mut self, row: Print, state: u32) -> Paired {
        match self.shown.get_mut(&row) {
            Some(seen) if seen.paired < seen.live => {
                seen.paired += 1;
                if seen.state == state { Paired::Same } else { Paired::Changed }
            }
            _ => match self.buried.get(&row) {
                Some(now) if *now == state => Paired::Buried,
                Some(_) => Paired::Expunged,
                None => Paired::Leftover,
            },
        }
    }

    /// Stands a snapshot row behind this live one?
    pub fn is_paired(&self, row: &Print) -> bool {
        self.shown.get(row).is_some_and(|seen| seen.paired > 0)
    }

    /// A live row that turned out to stand for a lost one: nobody else may be paired with it.
    pub fn take(&mut self, row: Print) {
        let seen = self.shown.entry(row).or_insert(Seen { live: 1, paired: 0, state: 0 });
        seen.paired = seen.live;
    }

    /// Live rows that no snapshot row stands behind.
    pub fn leftovers(&self) -> usize {
        self.shown.values().filter(|seen| seen.paired < seen.live).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_row_stands_for_one_snapshot_row() {
        let mut pairs = Pairs::default();
        let row = Print([1; 16]);
        pairs.live(row, 7);
        assert_eq!(pairs.snapshot(row, 7), Paired::Same);
        assert_eq!(pairs.snapshot(row, 7), Paired::Leftover);
        pairs.live(row, 7);
        assert_eq!(pairs.leftovers(), 1);
        assert_eq!(pairs.snapshot(row, 8), Paired::Changed);
        assert_eq!(pairs.leftovers(), 0);
    }
}
