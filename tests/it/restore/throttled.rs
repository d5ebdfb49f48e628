//! A restore waits for standbys and replication slots.

use std::cell::Cell;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use restante::monitor::Monitor;
use restante::restore::{Apply, ApplyOptions, Limits, Plan, PlanOptions, ReplayReport};

use super::memory::MemorySource;
use super::scripted::role_with_the_printed_grants;
use super::store::{Content, Store};
use crate::server::{ServerOptions, TestServer};

/// Remembers warnings.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Monitor for Heard {
    fn warn(&self, message: &str) {
        self.0.lock().unwrap().push(message.to_owned());
    }
}

/// A store that lost mail, and its snapshot.
struct Scene {
    store: Store,
    snapshot: MemorySource,
    heard: Heard,
}

impl Scene {
    async fn new(server: &Arc<TestServer>) -> Self {
        let store = Store::made(server.database(None).await).await;
        let account = store.account("a@example.org").await;
        let inbox = store.mailbox(account, "INBOX", 0).await;
        let mut ids = Vec::new();
        for number in [1, 2, 3, 4] {
            ids.push(store.deliver(inbox, Content(number), i64::from(number), 0).await);
        }
        let snapshot = MemorySource::take(&store.session().await).await;
        store.lose(&ids, &[], true).await;
        Self { store, snapshot, heard: Heard::default() }
    }

    async fn restore(&self, role: &str, limits: Limits) -> ReplayReport {
        let plan = Plan::new(self.store.compare(&self.snapshot, None).await, &PlanOptions::default());
        let options = ApplyOptions { batch_messages: 1, limits, ..Default::default() };
        let session = self.store.session_as(role).await;
        Apply::new(plan, options).run(&session, &self.snapshot, &self.store.profile, &self.heard).await.unwrap()
    }

    /// Lets a restore begin, sees that it waits because of `why` with nothing written, does `done`, and sees it end.
    async fn waits(&self, limits: Limits, why: &str, done: impl FnOnce()) {
        let ended = Cell::new(false);
        let restore = async {
            let report = self.restore("postgres", limits).await;
            ended.set(true);
            report
        };
        let watch = async {
            let until = Instant::now() + Duration::from_secs(60);
            while !self.heard.0.lock().unwrap().iter().any(|said| said.contains(why)) {
                assert!(!ended.get() && Instant::now() < until, "{:?}", self.heard.0.lock().unwrap());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // It has asked again since.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            assert!(!ended.get() && self.store.found().await.is_empty(), "it did not wait");
            done();
        };
        let (report, ()) = tokio::join!(restore, watch);
        assert_eq!(report.mail.restored, 4);
        let said = self.heard.0.lock().unwrap();
        assert_eq!(said.iter().filter(|said| said.contains("waiting")).count(), 1, "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_does_not_follow_is_waited_for_where_it_can_be_seen() {
    let server = TestServer::dedicated(ServerOptions::default());
    let scene = Scene::new(&server).await;
    let standby = server.standby(ServerOptions::default());
    // It has said how far it is.
    while server.ask("SELECT count(flush_lsn) FROM pg_stat_replication") == "0" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let receiver = standby.ask("SELECT pid FROM pg_stat_wal_receiver");
    let signal = |name: &str| {
        let kill = Command::new("sh").args(["-c", &format!("kill -{name} {receiver}")]).status();
        assert!(kill.unwrap().success());
    };
    signal("STOP");
    let write = "SELECT pg_logical_emit_message(false, 'test', repeat('x', 2000000))";
    scene.store.client.batch_execute(write).await.unwrap();

    // An ordinary role sees that there is one, and no more.
    let other = Scene::new(&server).await;
    let role = role_with_the_printed_grants(&other.store).await;
    assert_eq!(other.restore(&role, Limits { lag: Some(1_000_000), rate: None }).await.mail.restored, 4);
    let said = other.heard.0.lock().unwrap().clone();
    assert!(
        said.len() == 1 && said[0].contains("1 standbys follow") && said[0].contains("pg_read_all_stats"),
        "{said:?}"
    );

    scene
        .waits(Limits { lag: Some(1_000_000), rate: None }, "the standby \"walreceiver\" lacks", || signal("CONT"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_the_server_would_give_up_is_waited_for() {
    let server = TestServer::dedicated(ServerOptions::default().set("max_slot_wal_keep_size", "100MB"));
    let scene = Scene::new(&server).await;
    let make = "SELECT pg_create_physical_replication_slot('far_away', true)";
    scene.store.client.batch_execute(make).await.unwrap();
    let drop = || _ = server.ask("SELECT pg_drop_replication_slot('far_away')");
    scene.waits(Limits { lag: Some(1 << 30), rate: None }, "the replication slot \"far_away\" is given up", drop).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_wal_is_written_in_a_second_than_allowed() {
    let server = TestServer::dedicated(ServerOptions::default());
    let scene = Scene::new(&server).await;
    let plan = Plan::new(scene.store.compare(&scene.snapshot, None).await, &PlanOptions::default());
    let options =
        ApplyOptions { batch_messages: 1, limits: Limits { lag: None, rate: Some(4_000) }, ..Default::default() };
    let session = scene.store.session().await;
    let begun = Instant::now();
    let report =
        Apply::new(plan, options).run(&session, &scene.snapshot, &scene.store.profile, &scene.heard).await.unwrap();
    assert_eq!(report.mail.restored, 4);
    // Each of the three batches that are waited for writes more than 5 kB.
    assert!(begun.elapsed() > Duration::from_secs(3), "{:?}", begun.elapsed());
}
