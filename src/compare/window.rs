//! Windows: which messages a restore is about, and what of the snapshot it need not read for that.
//!
//! Row chunks of thirty days weigh as much as the mail of some hours, so the restore of a window reads only the segments of messages
//! that can hold one of the window: the zones of the clock columns tell. Of every other segment it must know one thing, namely that
//! its messages are alive: who lies outside the window is counted for the operator, and a living message must not pass for one
//! that arrived since. The live rows are read anyway, so they are counted by the segment's zones: as many live rows with a
//! key and a time of the segment as the segment has rows, and all of them are accounted for. Where the numbers differ, the segment
//! is read after all. Segments whose keys overlap are counted together.
//!
//! What belongs to messages is counted the same way, by the key of the message, so a living message that misses a part is found wherever it is.
//!
//! What this cannot see: a row of such a segment is gone *and* another with a key and a time of the very segment has come, both
//! outside the window. `gap` reads everything.

use std::collections::{BTreeSet, HashSet};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::layout::{Clock, Layout};
use super::source::{Numbers, SegmentFacts};
use crate::profile::TimeType;
use crate::repository::zone;

/// `[from, to)` on the store's clock of saving, or of arrival where there is none.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Window {
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
}

impl Window {
    /// A message without a time is in every window: in doubt it is put back.
    pub fn holds(&self, instant: Option<Timestamp>) -> bool {
        let Some(instant) = instant else { return true };
        self.from.is_none_or(|from| from <= instant) && self.to.is_none_or(|to| instant < to)
    }

    pub fn is_bounded(&self) -> bool {
        self.from.is_some() || self.to.is_some()
    }

    fn may_hold(&self, instants: &[(Timestamp, Timestamp)]) -> bool {
        let meets = |(low, high): &(Timestamp, Timestamp)| {
            self.from.is_none_or(|from| from <= *high) && self.to.is_none_or(|to| *low < to)
        };
        instants.iter().any(meets)
    }

    /// The segments that can hold a message of the window. In doubt a segment is among them.
    pub fn segments(&self, layout: &Layout, segments: &[SegmentFacts]) -> BTreeSet<usize> {
        let holds = |facts: &SegmentFacts| {
            facts.rows > 0 && instants(layout, facts).is_none_or(|instants| self.may_hold(&instants))
        };
        (0..segments.len()).filter(|at| holds(&segments[*at])).collect()
    }
}

/// Segments whose keys overlap.
#[derive(Debug, Default)]
struct Group {
    segments: Vec<usize>,
    rows: u64,
    /// Ascending and apart; none where the key alone counts.
    instants: Vec<(Timestamp, Timestamp)>,
    /// Live rows with a key and a time of these segments, less those that a row of another segment stands behind.
    alive: i64,
}

impl Group {
    fn is_accounted_for(&self) -> bool {
        self.alive == self.rows as i64
    }
}

/// The segments outside a window, and the live rows that stand for them.
#[derive(Debug, Default)]
pub(super) struct Outside {
    groups: Vec<Group>,
    /// First key, last key, group; ascending and apart.
    keys: Vec<(i64, i64, usize)>,
}

impl Outside {
    /// Splits the segments of the messages into those to be read and those to be counted.
    pub fn of(window: &Window, layout: &Layout, key: usize, segments: &[SegmentFacts]) -> (BTreeSet<usize>, Self) {
        let mut near = window.segments(layout, segments);
        let mut ranges: Vec<(i64, i64, usize)> = Vec::new();
        let mut times = vec![Vec::new(); segments.len()];
        for (at, facts) in segments.iter().enumerate().filter(|(_, facts)| facts.rows > 0) {
            if near.contains(&at) {
                continue;
            }
            match (keys(facts, key), instants(layout, facts)) {
                (Some(keys), Some(instants)) => {
                    ranges.extend(keys.iter().map(|(low, high)| (*low, *high, at)));
                    times[at] = instants;
                }
                _ => _ = near.insert(at),
            }
        }
        (near, Self::grouped(ranges, segments, times))
    }

    /// The same for rows that belong to messages: to be read are the segments that can hold some of the messages in `lost`.
    pub fn of_children(column: usize, lost: &HashSet<Vec<u8>>, segments: &[SegmentFacts]) -> (BTreeSet<usize>, Self) {
        let lost: Option<BTreeSet<i64>> = lost.iter().map(|key| zone::integer(key, false)).collect();
        let (mut near, mut ranges) = (BTreeSet::new(), Vec::new());
        for (at, facts) in segments.iter().enumerate().filter(|(_, facts)| facts.rows > 0) {
            match (keys(facts, column), &lost) {
                (Some(keys), Some(lost)) if keys.iter().all(|(low, high)| lost.range(low..=high).next().is_none()) => {
                    ranges.extend(keys.iter().map(|(low, high)| (*low, *high, at)));
                }
                _ => _ = near.insert(at),
            }
        }
        let times = vec![Vec::new(); segments.len()];
        (near, Self::grouped(ranges, segments, times))
    }

    fn grouped(
        mut ranges: Vec<(i64, i64, usize)>,
        segments: &[SegmentFacts],
        mut times: Vec<Vec<(Timestamp, Timestamp)>>,
    ) -> Self {
        ranges.sort_unstable();
        // Runs of overlapping keys; a segment has up to eight ranges, so runs that share one belong together.
        let mut runs: Vec<(i64, i64, usize)> = Vec::new();
        let members: BTreeSet<usize> = ranges.iter().map(|(_, _, at)| *at).collect();
        let mut leader: Vec<usize> = (0..segments.len()).collect();
        for (low, high, at) in ranges {
            match runs.last_mut().filter(|run| low <= run.1) {
                Some(run) => {
                    run.1 = run.1.max(high);
                    let (one, other) = (find(&mut leader, run.2), find(&mut leader, at));
                    leader[other] = one;
                }
                None => runs.push((low, high, at)),
            }
        }
        let mut groups: Vec<Group> = Vec::new();
        let mut group_of = vec![None; segments.len()];
        let mut keys = Vec::with_capacity(runs.len());
        for at in members {
            let group = *group_of[find(&mut leader, at)].get_or_insert_with(|| {
                groups.push(Group::default());
                groups.len() - 1
            });
            groups[group].segments.push(at);
            groups[group].rows += segments[at].rows;
            groups[group].instants.append(&mut times[at]);
        }
        for (low, high, at) in runs {
            if let Some(group) = group_of[find(&mut leader, at)] {
                keys.push((low, high, group));
            }
        }
        for group in &mut groups {
            group.instants.sort_unstable();
            group.instants.dedup_by(|next, one| {
                let meets = next.0 <= one.1;
                if meets {
                    one.1 = one.1.max(next.1);
                }
                meets
            });
        }
        Self { groups, keys }
    }

    fn group(&self, key: Option<i64>, instant: Option<Timestamp>) -> Option<usize> {
        let key = key?;
        let at = self.keys.partition_point(|(_, high, _)| *high < key);
        let (low, _, group) = *self.keys.get(at)?;
        let times = &self.groups[group].instants;
        let in_time = |instant: Timestamp| {
            let time = times.get(times.partition_point(|(_, high)| *high < instant));
            time.is_some_and(|(low, _)| *low <= instant)
        };
        (low <= key && (times.is_empty() || instant.is_some_and(in_time))).then_some(group)
    }

    /// A live row.
    pub fn live(&mut self, key: Option<i64>, instant: Option<Timestamp>) {
        if let Some(group) = self.group(key, instant) {
            self.groups[group].alive += 1;
        }
    }

    /// A live row that a row of a segment which was read stands behind.
    pub fn paired(&mut self, key: Option<i64>, instant: Option<Timestamp>) {
        if let Some(group) = self.group(key, instant) {
            self.groups[group].alive -= 1;
        }
    }

    /// The segments whose rows are not all accounted for: they must be read. The others are done with.
    pub fn unsettled(&mut self) -> BTreeSet<usize> {
        let open = |group: &&Group| !group.is_accounted_for();
        let segments = self.groups.iter().filter(open).flat_map(|group| group.segments.iter().copied()).collect();
        self.keys.retain(|(_, _, group)| self.groups[*group].is_accounted_for());
        segments
    }

    /// Does a row that was not read stand behind this live one? After [`Self::unsettled`].
    pub fn accounts_for(&self, key: Option<i64>, instant: Option<Timestamp>) -> bool {
        self.group(key, instant).is_some()
    }

    /// Rows that were counted and not read.
    pub fn rows(&self) -> u64 {
        self.groups.iter().filter(|group| group.is_accounted_for()).map(|group| group.rows).sum()
    }

    pub fn highest_key(&self) -> Option<i64> {
        self.keys.last().map(|(_, high, _)| *high)
    }
}

fn find(leader: &mut [usize], mut at: usize) -> usize {
    while leader[at] != at {
        leader[at] = leader[leader[at]];
        at = leader[at];
    }
    at
}

/// The keys that a segment has; `None`: nobody knows.
fn keys(facts: &SegmentFacts, column: usize) -> Option<&[(i64, i64)]> {
    let keys = facts.columns.get(column)?.as_ref()?;
    (!keys.has_nulls && !keys.intervals.is_empty()).then_some(&keys.intervals)
}

/// When the rows of a segment were saved or arrived; `None`: it may have rows without a time, or nobody knows.
fn instants(layout: &Layout, facts: &SegmentFacts) -> Option<Vec<(Timestamp, Timestamp)>> {
    let mut instants = Vec::new();
    for clock in &layout.message.clocks {
        let Numbers { has_nulls, intervals } = facts.columns.get(clock.column)?.as_ref()?;
        for (low, high) in intervals {
            instants.push((at(clock, *low, -1)?, at(clock, *high, 1)?));
        }
        // A later clock is asked only where the earlier ones are NULL.
        if !has_nulls {
            return (!instants.is_empty()).then_some(instants);
        }
    }
    None
}

/// Local times are no order of instants: an hour comes twice in autumn.
const DAYLIGHT_SAVING: SignedDuration = SignedDuration::from_hours(3);

fn at(clock: &Clock, number: i64, direction: i32) -> Option<Timestamp> {
    let instant = clock.instant(number)?;
    match clock.time {
        TimeType::Timestamp => instant.checked_add(DAYLIGHT_SAVING * direction).ok(),
        TimeType::Timestamptz | TimeType::Epoch => Some(instant),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::id::Digest;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn segment(rows: u64) -> SegmentFacts {
        SegmentFacts { rows, digest: Digest([0; 16]), columns: Vec::new() }
    }

    #[test]
    fn a_window_ends_before_its_end_and_holds_what_has_no_time() {
        let at = |n| Some(second(n));
        let window = Window { from: at(10), to: at(20) };
        assert!(window.holds(at(10)) && window.holds(at(19)) && window.holds(None));
        assert!(!window.holds(at(20)) && !window.holds(at(9)));
        assert!(Window::default().holds(at(-5)));
        assert!(window.may_hold(&[(second(0), second(10))]) && !window.may_hold(&[(second(20), second(30))]));
    }

    /// Two segments with overlapping keys, and one apart.
    fn outside() -> Outside {
        let times = vec![vec![(second(0), second(9))], vec![(second(5), second(19))], vec![(second(30), second(39))]];
        let ranges = vec![(1, 10, 0), (50, 60, 0), (8, 20, 1), (30, 40, 2)];
        Outside::grouped(ranges, &[segment(3), segment(2), segment(2)], times)
    }

    #[test]
    fn segments_whose_living_rows_are_all_there_are_not_read() {
        let mut outside = outside();
        for (key, time) in [(1, 0), (9, 3), (55, 9), (12, 15), (20, 19), (30, 30), (35, 39)] {
            outside.live(Some(key), Some(second(time)));
        }
        // Neither key nor time of any.
        outside.live(Some(25), Some(second(3)));
        outside.live(Some(12), Some(second(25)));
        outside.live(None, None);
        assert_eq!(outside.unsettled(), BTreeSet::new());
        assert_eq!((outside.rows(), outside.highest_key()), (7, Some(60)));
        assert!(outside.accounts_for(Some(55), Some(second(9))));
        assert!(!outside.accounts_for(Some(25), Some(second(3))));
    }

    #[test]
    fn what_belongs_to_lost_messages_is_read_and_the_rest_is_counted_by_key() {
        let key = |key: i64| key.to_be_bytes().to_vec();
        let facts = |low: i64, high: i64, rows: u64| {
            let numbers = Numbers { has_nulls: false, intervals: vec![(low, high)] };
            SegmentFacts { columns: vec![Some(numbers)], ..segment(rows) }
        };
        let segments = [facts(1, 10, 3), facts(11, 20, 2), SegmentFacts { columns: vec![None], ..segment(1) }];
        let (near, mut outside) = Outside::of_children(0, &HashSet::from([key(15)]), &segments);
        assert_eq!(near, BTreeSet::from([1, 2]));
        outside.live(Some(2), None);
        outside.live(Some(2), None);
        outside.live(Some(15), None);
        assert_eq!(outside.unsettled(), BTreeSet::from([0]));
    }

    #[test]
    fn a_segment_that_misses_a_row_or_has_one_too_many_is_read() {
        let mut outside = outside();
        for (key, time) in [(1, 0), (9, 3), (55, 9), (12, 15), (30, 30), (35, 39)] {
            outside.live(Some(key), Some(second(time)));
        }
        assert_eq!(outside.unsettled(), BTreeSet::from([0, 1]));
        assert!(!outside.accounts_for(Some(55), Some(second(9))));
        assert!(outside.accounts_for(Some(35), Some(second(39))));

        let mut outside = self::outside();
        for (key, time) in [(1, 0), (9, 3), (55, 9), (12, 15), (20, 19), (30, 30), (35, 39), (36, 39)] {
            outside.live(Some(key), Some(second(time)));
        }
        // It was updated, and its row lies in a segment of the window now.
        outside.paired(Some(9), Some(second(3)));
        assert_eq!(outside.unsettled(), BTreeSet::from([0, 1, 2]));
    }
}
