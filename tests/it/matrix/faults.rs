//! The storage fails at each call, in each way; the server loses its connections or is restarted; an S3 server does all that its
//! switches know. The outcome is success or a clear error, never a wrong answer; then the next run completes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use restante::storage::Storage;
use restante::storage::faults::{Call, Fault, Faulty, Verb};
use restante::verify::Level;

use super::long;
use super::memory::Memory;
use super::sample::Scene;
use crate::server::{ServerOptions, TestServer, binaries};

/// What is done while something fails. Restores and their undoing join here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Snapshot,
    Verify,
}

const OPERATIONS: [Operation; 2] = [Operation::Snapshot, Operation::Verify];

impl Operation {
    /// What it says when it fails, or finds something. A panic of a thread shows as an interruption.
    async fn run(self, scene: &Scene, storage: &Arc<dyn Storage>) -> Result<(), String> {
        let said = match self {
            Self::Snapshot => scene.keys.snapshot(storage, &scene.dsn).await.map(drop).map_err(|e| e.to_string()),
            Self::Verify => match scene.keys.verify(storage, true, Level::Rows).await {
                Ok(report) => report.findings.into_iter().next().map_or(Ok(()), |finding| Err(finding.message)),
                Err(e) => Err(e.to_string()),
            },
        };
        if let Err(said) = &said {
            assert!(said.len() > 20 && !said.contains("the work was interrupted"), "{self:?} says only: {said}");
        }
        said
    }
}

/// The faults that a call can have.
fn faults(verb: Verb) -> Vec<Fault> {
    let mut faults = vec![Fault::FailBefore, Fault::FailAfter];
    if long() {
        faults.extend([Fault::DieBefore, Fault::DieAfter]);
    }
    match verb {
        Verb::Put => faults.extend([Fault::NoSpace, Fault::HideFromLists]),
        Verb::Get | Verb::GetRange => {
            faults.extend([Fault::Truncate(100), Fault::FlipBit(3), Fault::FlipBit(8 * 150 + 5)]);
        }
        Verb::Head | Verb::List | Verb::Delete | Verb::Probe => {}
    }
    faults
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_fails_in_any_way_costs_no_more_than_the_run() {
    let scene = Scene::new(&TestServer::shared(), 25, 1).await;
    for operation in OPERATIONS {
        let calls: Vec<Call> = {
            let faulty = Arc::new(Faulty::new(Memory::of(scene.objects.clone())));
            let storage: Arc<dyn Storage> = faulty.clone();
            operation.run(&scene, &storage).await.unwrap();
            faulty.calls()
        };
        let (mut tried, mut failed) = (0, 0);
        for call in &calls {
            for fault in faults(call.verb) {
                let what = format!("{operation:?}, call {} ({:?} {}), {fault:?}", call.number, call.verb, call.name);
                let (memory, number) = (Memory::of(scene.objects.clone()), call.number);
                let faulty = Arc::new(Faulty::new(memory.clone()));
                faulty.inject(move |call| call.number == number, fault);
                let storage: Arc<dyn Storage> = faulty.clone();
                tried += 1;
                let outcome = operation.run(&scene, &storage).await;
                failed += u32::from(outcome.is_err());
                faulty.heal();
                faulty.settle();
                if operation == Operation::Verify {
                    assert!(memory.objects() == scene.objects, "{what}: a check changed the repository");
                    continue;
                }
                let certified = scene.certified_is_whole(&storage, &what).await;
                assert!(outcome.is_err() || certified == 2, "{what}: it said that all went well");
                scene.all_is_well(&storage, &what).await;
            }
        }
        println!("{operation:?}: {} calls, {tried} faults, {failed} failed the run", calls.len());
        assert!(failed * 2 > tried, "the faults do not strike");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_snapshot_needs_nothing_that_was_lost_or_damaged() {
    let scene = Scene::new(&TestServer::shared(), 25, 1).await;
    let vital = |name: &str| name == "repository.json" || name.starts_with("keys/");
    for (name, bytes) in scene.objects.iter().filter(|(name, _)| !vital(name.as_str())) {
        for keep in [None, Some(bytes.len() / 2)] {
            let mut objects = scene.objects.clone();
            objects.remove(name);
            objects.extend(keep.map(|keep| (name.clone(), bytes.slice(..keep))));
            let storage: Arc<dyn Storage> = Memory::of(objects);
            let snapshot = scene.keys.snapshot(&storage, &scene.dsn).await.unwrap_or_else(|e| panic!("{name}: {e}"));
            let (rows, _) =
                scene.keys.read(&storage, &snapshot.id.to_hex()).await.unwrap_or_else(|e| panic!("{name}: {}", e.0));
            assert!(rows == scene.after, "{name} was lost");
        }
    }
}

/// Runs a snapshot and lets `trouble` happen when the first pack is put: the store is still being read then.
async fn in_the_middle(
    scene: &Scene,
    trouble: impl Fn() + Send + Sync + 'static,
) -> (Arc<dyn Storage>, Result<(), String>) {
    let storage: Arc<dyn Storage> = {
        let faulty = Faulty::new(Memory::of(scene.objects.clone()));
        let done = AtomicBool::new(false);
        faulty.inject(
            move |call| {
                if call.verb == Verb::Put && call.name.starts_with("packs/") && !done.swap(true, Ordering::SeqCst) {
                    trouble();
                }
                false
            },
            Fault::FailBefore,
        );
        Arc::new(faulty)
    };
    let outcome = Operation::Snapshot.run(scene, &storage).await;
    (storage, outcome)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_backends_end_a_snapshot_with_the_servers_words() {
    let scene = Scene::new(&TestServer::shared(), 40, 250).await;
    let (dsn, name) = (scene.database.superuser_dsn(), scene.database.name().to_owned());
    let (storage, outcome) = in_the_middle(&scene, move || {
        let kill = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        );
        let output = std::process::Command::new(binaries().join("psql")).args(["-qAtc", &kill, &dsn]).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains('t'), "{output:?}");
    })
    .await;
    let said = outcome.unwrap_err();
    assert!(said.contains("terminating connection") || said.contains("closed"), "{said}");
    scene.all_is_well(&storage, "after the backends were killed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_restarted_in_the_middle_costs_the_run_and_nothing_else() {
    let server = TestServer::dedicated(ServerOptions { fsync: true, ..Default::default() });
    let scene = Scene::new(&server, 40, 250).await;
    let (storage, outcome) = in_the_middle(&scene, move || {
        server.stop();
        server.start();
    })
    .await;
    let said = outcome.unwrap_err();
    assert!(said.contains("terminating connection") || said.contains("closed"), "{said}");
    scene.all_is_well(&storage, "after the server was restarted").await;
}

#[cfg(feature = "s3")]
pub mod s3 {
    use std::sync::Arc;

    use restante::storage::{Location, Storage, open};

    use super::super::sample::Scene;
    use super::{OPERATIONS, Operation};
    use crate::s3_server::{Switches, server};
    use crate::server::TestServer;

    /// A name, what is switched, and whether a snapshot, a verify and a restore get through.
    pub type Setting = (&'static str, fn(&mut Switches), [bool; 3]);

    /// Every switch. Exhaustive on purpose.
    pub fn settings() -> Vec<Setting> {
        let Switches {
            ignores_conditions: _,
            ignores_retention: _,
            slow_down: _,
            conflict: _,
            lose_put_answers: _,
            cut_bodies: _,
            shorten_bodies: _,
            ignores_ranges: _,
            stale_list: _,
            list_backwards: _,
            redirect_to_region: _,
            refuse: _,
            says: _,
        } = Switches::default();
        vec![
            ("conditions are ignored", |s| s.ignores_conditions = true, [true, true, true]),
            ("retention is ignored", |s| s.ignores_retention = true, [true, true, true]),
            ("slow down, once", |s| s.slow_down = 1, [true, true, true]),
            ("slow down, always", |s| s.slow_down = u32::MAX, [false, false, false]),
            ("a rival's conflict", |s| s.conflict = 1, [true, true, true]),
            ("an answer to a write is lost", |s| s.lose_put_answers = 1, [true, true, true]),
            ("the connection is cut three times", |s| s.cut_bodies = Some((3, 10)), [true, true, true]),
            ("the connection is always cut", |s| s.cut_bodies = Some((u32::MAX, 1)), [false, false, false]),
            ("answers are too short", |s| s.shorten_bodies = Some(300), [false, false, false]),
            ("ranges are ignored", |s| s.ignores_ranges = true, [true, false, false]),
            ("listings lag", |s| s.stale_list = Some(Default::default()), [true, true, false]),
            ("listings are in disorder", |s| s.list_backwards = true, [false, false, true]),
            ("the bucket is elsewhere", |s| s.redirect_to_region = Some("eu-south-2"), [false, false, false]),
            ("access is denied", |s| s.refuse = Some((403, "AccessDenied")), [false, false, false]),
            ("no space is left", |s| s.refuse = Some((507, "InsufficientStorage")), [false, false, false]),
            ("the server fails", |s| s.refuse = Some((500, "InternalError")), [false, false, false]),
        ]
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whatever_an_s3_server_does_the_next_run_completes() {
        let scene = Scene::new(&TestServer::shared(), 25, 1).await;
        let bucket = server();
        for (name, turn, through) in settings() {
            let mut location = bucket.fresh_bucket();
            location.attempts = 2;
            let storage: Arc<dyn Storage> = open(&Location::S3(location.clone())).await.unwrap();
            scene.copy_into(&*storage).await;
            for (operation, through) in OPERATIONS.into_iter().zip(through) {
                let what = format!("{operation:?}, {name}");
                bucket.bucket(&location, |bucket| {
                    let known = bucket.keys();
                    turn(&mut bucket.switches);
                    // What was there before is listed, what comes now is not.
                    bucket.switches.stale_list = bucket.switches.stale_list.take().map(|_| known);
                });
                let outcome = operation.run(&scene, &storage).await;
                assert_eq!(outcome.is_ok(), through, "{what}: {outcome:?}");
                bucket.bucket(&location, |bucket| bucket.switches = Switches::default());
                if operation == Operation::Snapshot {
                    scene.certified_is_whole(&storage, &what).await;
                    scene.all_is_well(&storage, &what).await;
                }
            }
        }
    }
}
