//! Which snapshot to restore from: not the one that was taken after the damage.
//!
//! The newest snapshot is held against older ones: a message that an older one has, the newest has not, and whose deletion no
//! tombstone of the newest records, was lost before the newest was taken. The older snapshot that shows most of these is the fullest.
//! Only row chunks are read.

use std::collections::HashSet;

use jiff::Timestamp;

use super::compare::row_print;
use super::error::CompareError;
use super::layout::{Layout, layout};
use super::parents::inline;
use super::row::Print;
use super::source::Source;
use crate::postgres::catalog::Catalog;
use crate::profile::Profile;

/// A loss of fewer messages is no damage: a tombstone may be missing for other reasons.
const MARKEDLY: u64 = 3;

/// What was found for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Holds {
    /// Messages that this snapshot has and the newest one has lost.
    pub lost_since: u64,
    /// Messages in the window.
    pub messages: u64,
}

/// Counts, for each of the sources (newest first), what the first one has lost since. A source without the message table has nothing.
pub async fn holdings(
    sources: &[&dyn Source],
    profile: &Profile,
    catalog: &Catalog,
    holds: impl Fn(Option<Timestamp>) -> bool + Sync,
) -> Result<Vec<Holds>, CompareError> {
    let Some(newest) = sources.first() else { return Ok(Vec::new()) };
    let layout_of = |source: &dyn Source| layout(profile, source.facts(), catalog);
    let own = layout_of(*newest)?;
    let mut present: HashSet<Print> = HashSet::new();
    let messages = scan(*newest, &own, &holds, |print| {
        present.insert(print);
    })
    .await?;
    buried(*newest, &own, &mut present).await?;
    let mut found = vec![Holds { lost_since: 0, messages }];
    for source in &sources[1..] {
        let Ok(own) = layout_of(*source) else {
            found.push(Holds { lost_since: 0, messages: 0 });
            continue;
        };
        let mut lost_since = 0;
        let messages = scan(*source, &own, &holds, |print| lost_since += u64::from(!present.contains(&print))).await?;
        found.push(Holds { lost_since, messages });
    }
    Ok(found)
}

/// The position of the fullest: the newest, unless an older one holds markedly more. Among equals the newer one.
pub fn fullest(holdings: &[Holds]) -> Option<usize> {
    let best = (0..holdings.len()).rev().max_by_key(|at| holdings[*at].lost_since)?;
    Some(if holdings[best].lost_since >= MARKEDLY { best } else { 0 })
}

async fn scan(
    source: &dyn Source,
    layout: &Layout,
    holds: &(impl Fn(Option<Timestamp>) -> bool + Sync),
    mut each: impl FnMut(Print) + Send,
) -> Result<u64, CompareError> {
    let message = &layout.message;
    let key = message.table.single_key()?;
    let mut messages = 0;
    source
        .scan(&message.table.source, None, &mut |cells| {
            if holds(super::compare::instant(&message.clocks, cells)) {
                messages += 1;
                each(row_print(inline(cells, key), message.evidence.iter().map(|at| inline(cells, *at))));
            }
            Ok(())
        })
        .await?;
    Ok(messages)
}

/// Adds what the snapshot's own tombstones record.
async fn buried(source: &dyn Source, layout: &Layout, present: &mut HashSet<Print>) -> Result<(), CompareError> {
    for tombstone in &layout.tombstones {
        let Some(table) = source.facts().table(&tombstone.name) else { continue };
        let place = |name: &str| table.columns.iter().position(|column| column.name == name);
        let Some(key) = tombstone.message.as_deref().and_then(place) else { continue };
        // In the order of the message's own evidence.
        let evidence: Option<Vec<usize>> = layout
            .message
            .evidence
            .iter()
            .map(|at| tombstone.evidence.iter().find(|(_, of)| of == at).and_then(|(own, _)| place(own)))
            .collect();
        let Some(evidence) = evidence else { continue };
        source
            .scan(table, None, &mut |cells| {
                present.insert(row_print(inline(cells, key), evidence.iter().map(|at| inline(cells, *at))));
                Ok(())
            })
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(lost_since: u64) -> Holds {
        Holds { lost_since, messages: 100 }
    }

    #[test]
    fn the_newest_is_taken_unless_it_is_a_copy_of_the_hole() {
        assert_eq!(fullest(&[holds(0), holds(0), holds(2)]), Some(0));
        assert_eq!(fullest(&[holds(0), holds(1), holds(50), holds(50), holds(20)]), Some(2));
        assert_eq!(fullest(&[]), None);
    }
}
