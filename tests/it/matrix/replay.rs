//! Deaths of `restore` and `undo`: before and after every call to the storage and every COMMIT, and at random instants. Whatever
//! they leave, the same command run again completes, and every mail is there once.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::incident::{Ended, Incident, Place, Replaying};
use super::kill::Dice;
use super::long;
use crate::server::TestServer;

/// Stores that are tried at the same time.
const AT_ONCE: usize = 3;

/// A point that an undisturbed run passes. The COMMITs before it say what the store must hold there.
#[derive(Debug, Clone)]
struct Point {
    name: String,
    number: usize,
    commits: usize,
}

/// All points, in the order in which they are passed, and what is kept in the end.
async fn points(incident: &Incident, what: Replaying) -> (Vec<Point>, String) {
    let place = incident.copy(what).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("points");
    let ended = Ended::of(noting(place.in_order(what), &file).spawn().unwrap()).await;
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let kept = place.kept().await;
    place.store.database.drop().await;
    let (mut points, mut commits): (Vec<Point>, usize) = (Vec::new(), 0);
    for name in std::fs::read_to_string(&file).unwrap().lines() {
        let number = points.iter().filter(|point| point.name == name).count() + 1;
        commits += usize::from(name == "commit:after");
        points.push(Point { name: name.to_owned(), number, commits });
    }
    (points, kept)
}

/// The command, writing down the points that it passes.
fn noting(mut command: tokio::process::Command, file: &Path) -> tokio::process::Command {
    command.env("RESTANTE_FAILPOINTS_PASSED", file);
    command
}

async fn dies_everywhere(incident: &Incident, what: Replaying) {
    let (points, end) = points(incident, what).await;
    let of = |name: &str| points.iter().filter(|point| point.name == name).count();
    let (commits, calls) = (of("commit:before"), of("storage:before"));
    println!(
        "{what:?} dies before and after {commits} commits, before {calls} calls and after {}",
        of("storage:after")
    );
    let least = if what == Replaying::Restore { (20, 20) } else { (5, 0) };
    assert!(commits >= least.0 && calls >= least.1 && of("commit:after") == commits, "suspiciously few points");

    // What was not kept yet cannot be told from nothing: these deaths share a store, and one run completes them all.
    let (reading, writing): (Vec<Point>, Vec<Point>) = points.iter().cloned().partition(|point| point.commits == 0);
    let untouched = incident.copy(what).await;
    let before = untouched.kept().await;
    for point in &reading {
        dies(&untouched, what, point).await;
        assert_eq!(untouched.kept().await, before, "{what:?} wrote something before {point:?}");
    }
    untouched.completes(what, &format!("{what:?} died {} times", reading.len())).await;

    let after = stream::iter(writing).map(|point| async move {
        let place = incident.copy(what).await;
        dies(&place, what, &point).await;
        let kept = place.kept().await;
        place.completes(what, &format!("{what:?} died at {point:?}")).await;
        place.store.database.drop().await;
        (point, kept)
    });
    let after: Vec<(Point, String)> = after.buffered(AT_ONCE).collect().await;
    // Between a COMMIT and the next nothing changes, else something is kept that no point stands around.
    for pair in after.windows(2).filter(|pair| pair[0].0.commits == pair[1].0.commits) {
        assert_eq!(pair[0].1, pair[1].1, "something was kept between {:?} and {:?}", pair[0].0, pair[1].0);
    }
    assert_eq!(after.last().unwrap().1, end, "something was kept after the last point");
    assert_eq!(after.len() + reading.len(), points.len());
}

async fn dies(place: &Place<'_>, what: Replaying, point: &Point) {
    let ended = place.run(what, Some(&format!("{}:{}", point.name, point.number))).await;
    assert_eq!(ended.status.signal(), Some(6), "{what:?} at {point:?}: {ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_dies_around_any_call_or_commit_is_completed_by_the_next_run() {
    let incident = Incident::new(&TestServer::shared(), 0).await;
    for what in [Replaying::Restore, Replaying::Undo] {
        dies_everywhere(&incident, what).await;
    }
    incident.repository_is_untouched().await;
}

/// Kills it somewhere after a point; was it in time?
async fn is_killed(incident: &Incident, what: Replaying, after: usize, pause: Duration) -> bool {
    let place = incident.copy(what).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("points");
    let mut child = noting(place.command(what), &file).spawn().unwrap();
    // On a thread of its own: the runtime's clock knows no less than a millisecond.
    let child = tokio::task::spawn_blocking(move || {
        let passed = || std::fs::read(&file).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count());
        while passed() < after && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(50));
        }
        // The instant is what is random here; nothing waits for anything.
        std::thread::sleep(pause);
        child.start_kill().ok();
        child
    });
    let landed = Ended::of(child.await.unwrap()).await.status.signal() == Some(9);
    place.completes(what, &format!("{what:?} was killed {pause:?} after point {after}")).await;
    place.store.database.drop().await;
    landed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_killed_at_any_instant_is_completed_by_the_next_run() {
    let incident = &Incident::new(&TestServer::shared(), 0).await;
    let kills = if long() { 200 } else { 25 };
    for what in [Replaying::Restore, Replaying::Undo] {
        let points = points(incident, what).await.0.len();
        let mut dice = Dice::new();
        // Work is between the first point and the last. Shortly before the end a kill comes too late: of 200 at 2 ms after all but the
        // last three points of undo 9 did.
        let throws: Vec<(usize, Duration)> = (0..kills)
            .map(|_| (dice.throw() * 0.75 * points as f64, Duration::from_micros((dice.throw() * 1000.0) as u64)))
            .map(|(after, pause)| (1 + after as usize, pause))
            .collect();
        let landed = stream::iter(throws).map(|(after, pause)| is_killed(incident, what, after, pause));
        let landed: Vec<bool> = landed.buffer_unordered(AT_ONCE).collect().await;
        let landed = landed.iter().filter(|landed| **landed).count();
        println!("{what:?}: {landed} of {kills} kills landed inside work; RESTANTE_TEST_SEED={}", dice.seed);
        assert!(landed * 10 >= kills * 9, "{what:?}: {landed} of {kills} kills landed inside work");
    }
    incident.repository_is_untouched().await;
}
