//! Which snapshot to restore from: not the one that was taken after the damage.
//!
//! The newest snapshot is held against older ones: a message that an older one has, the newest has not, and whose deletion no
//! tombstone of the newest records, was lost before the newest was taken. The older snapshot that shows most of these is the fullest.
//! Only row chunks are read, and of those only the segments of the window that the two have not in common: segments with equal digests
//! have equal rows.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::classify::row_print;
use super::error::CompareError;
use super::layout::{Contents, Layout, key_of, layout};
use super::parents::inline;
use super::row::Print;
use super::source::{Pick, SegmentFacts, Source};
use super::window::Window;
use crate::postgres::catalog::Catalog;
use crate::profile::Profile;
use crate::repository::id::Digest;

/// A loss of fewer messages is no damage: a tombstone may be missing for other reasons.
const MARKEDLY: u64 = 3;

/// For each of the sources (newest first), how many messages of the window it has that the first one has lost since. A source without the
/// message table has none.
pub async fn holdings(
    sources: &[&dyn Source],
    profile: &Profile,
    catalog: &Catalog,
    window: &Window,
) -> Result<Vec<u64>, CompareError> {
    let Some((newest, older)) = sources.split_first() else { return Ok(Vec::new()) };
    let own = layout(profile, newest.facts(), catalog)?;
    let segments = newest.segments(&own.message.link.source).await?;
    // A message whose clock was set anew lies elsewhere in time, unless that makes another message of it.
    let timed = own.message.clocks.iter().all(|clock| own.message.evidence.contains(&clock.column));
    let reach = if timed { *window } else { Window::default() };
    let mut held = vec![0];
    for source in older {
        let Ok(layout) = layout(profile, source.facts(), catalog) else {
            held.push(0);
            continue;
        };
        // Nobody computed the new keys here: all are read as they were, and what has the new ones has nothing in common with the old ones.
        if layout.keys.is_empty() != own.keys.is_empty() {
            held.push(0);
            continue;
        }
        let theirs = source.segments(&layout.message.link.source).await?;
        let pick = |window: &Window, layout: &Layout, own: &[SegmentFacts], other: &[SegmentFacts]| {
            let common: HashSet<Digest> = other.iter().map(|facts| facts.digest).collect();
            let mut pick = window.segments(layout, own);
            pick.retain(|at| !common.contains(&own[*at].digest));
            pick
        };
        let mut lost = HashMap::new();
        let picked = pick(window, &layout, &theirs, &segments);
        scan(*source, &layout, window, &picked, |print, key| _ = lost.insert(print, key)).await?;
        if !lost.is_empty() {
            let picked = pick(&reach, &own, &segments, &theirs);
            scan(*newest, &own, &Window::default(), &picked, |print, _| _ = lost.remove(&print)).await?;
            buried(*newest, &own, &mut lost).await?;
        }
        held.push(lost.len() as u64);
    }
    Ok(held)
}

/// The position of the fullest: the newest, unless an older one holds markedly more. Among equals the newer one.
pub fn fullest(held: &[u64]) -> Option<usize> {
    let best = (0..held.len()).rev().max_by_key(|at| held[*at])?;
    Some(if held[best] >= MARKEDLY { best } else { 0 })
}

async fn scan(
    source: &dyn Source,
    layout: &Layout,
    window: &Window,
    segments: &BTreeSet<usize>,
    mut each: impl FnMut(Print, Vec<u8>) + Send,
) -> Result<(), CompareError> {
    let message = &layout.message;
    let key_column = message.table.single_key()?;
    let contents = message.contents(source).await?;
    message
        .scan(source, &contents, Pick::Segments(segments), &mut |cells| {
            if window.holds(super::classify::instant(&message.clocks, cells)) {
                let key = inline(cells, key_column);
                let print = row_print(key, message.evidence.iter().map(|at| inline(cells, *at)));
                each(print, key.unwrap_or_default().to_vec());
            }
            Ok(())
        })
        .await
}

/// Takes out what the snapshot's own tombstones record.
async fn buried(source: &dyn Source, layout: &Layout, lost: &mut HashMap<Print, Vec<u8>>) -> Result<(), CompareError> {
    let message = &layout.message;
    for tombstone in &layout.tombstones {
        let Some(table) = source.facts().table(&tombstone.name) else { continue };
        let place = |at: usize| {
            let name = tombstone.copied(message, at)?;
            table.columns.iter().position(|column| column.name == name)
        };
        let key: Option<Vec<usize>> = message.link.key.iter().map(|at| place(*at)).collect();
        let Some(key) = key else { continue };
        let content = message.content.as_ref().filter(|_| tombstone.keeps_content);
        // In the order of the message's own evidence.
        let evidence: Vec<(usize, Option<usize>)> = message.evidence.iter().map(|at| (*at, place(*at))).collect();
        let is_proven =
            |(at, own): &(usize, Option<usize>)| own.is_some() || content.is_some_and(|one| *at >= one.first);
        if !evidence.iter().all(is_proven) {
            continue;
        }
        let contents = match content {
            Some(_) => message.contents(source).await?,
            None => Contents::default(),
        };
        let keys: HashSet<Vec<u8>> = lost.values().cloned().collect();
        let pick = match key[..] {
            [column] => Pick::Keys { column, keys: &keys },
            _ => Pick::All,
        };
        let of = content.and_then(|content| place(content.of));
        source
            .scan(table, pick, &mut |cells| {
                let Some(key) = key_of(key.iter().map(|at| inline(cells, *at))) else { return Ok(()) };
                let of = of.and_then(|at| inline(cells, at));
                let fields = evidence.iter().map(|(at, own)| match own {
                    Some(own) => inline(cells, *own),
                    None => contents.field(content?, of?, *at)?.bytes(),
                });
                lost.remove(&row_print(Some(&key), fields));
                Ok(())
            })
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_taken_unless_it_is_a_copy_of_the_hole() {
        assert_eq!(fullest(&[0, 0, 2]), Some(0));
        assert_eq!(fullest(&[0, 1, 50, 50, 20]), Some(2));
        assert_eq!(fullest(&[]), None);
    }
}
