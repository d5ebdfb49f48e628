//! What fails around `restore` and `undo`: calls to the storage, backends, the server, its disk, an S3 server with all its switches.
//! Each ends in success or in a clear error, and then the same command completes; never is a mail wrong, twice or gone.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use restante::compare::source::RepositorySource;
use restante::compare::{self, Window};
use restante::postgres::session::{Session, SessionOptions};
use restante::profile::Profile;
use restante::repository::snapshots::{self, SnapshotReader};
use restante::restore::{Apply, ApplyOptions, Plan, PlanOptions, ReplayReport};
use restante::storage::Storage;
use restante::storage::faults::{Call, Fault, Faulty, Verb};

use super::incident::{DAMAGE, Ended, Incident, Place, Replaying};
use super::kill::SmallDisk;
use super::long;
use super::memory::Memory;
use crate::postgres::support::dsn;
use crate::restore::store::clock;
use crate::server::{ServerOptions, TestServer, give_away, sessions_end};

/// The command `restore` on any storage.
async fn restore(place: &Place<'_>, storage: &Arc<dyn Storage>) -> Result<ReplayReport, String> {
    let work = async {
        let repository = place.incident.keys.as_reader(storage).await?;
        let (all, _) = snapshots::list(&repository).await?;
        let reader = SnapshotReader::open(&repository, snapshots::select(&all, "latest")?).await?;
        // So small a store would be read before the first batch, and no call would fail halfway.
        let source = RepositorySource::keeping(reader, 0).await?;
        let session = Session::connect(&dsn(&place.dsn), SessionOptions::default()).await?;
        let profile = Profile::builtin("reference").unwrap()?;
        let window = Window { from: Some(clock(i64::from(DAMAGE))), to: None };
        let options = compare::Options { window, ..Default::default() };
        let comparison = compare::compare(&session, &source, &profile, &options).await?;
        let plan = Plan::new(comparison, &PlanOptions { window, ..Default::default() });
        let options = ApplyOptions { batch_messages: 7, ..Default::default() };
        Ok(Apply::new(plan, options).run(&session, &source, &profile, &*super::sample::monitor()).await?)
    };
    work.await.map_err(|error: Box<dyn std::error::Error>| {
        let said = error.to_string();
        assert!(said.len() > 20 && !said.contains("the work was interrupted"), "it says only: {said}");
        said
    })
}

/// After a fault: if it said that it went well, it went well; if not, the next run completes.
async fn then_completes(
    place: &Place<'_>,
    storage: &Arc<dyn Storage>,
    outcome: &Result<ReplayReport, String>,
    when: &str,
) {
    if outcome.is_err() {
        // Until the server has seen that nobody is there any more, the run that failed passes for one that goes on.
        sessions_end(&place.store.client).await;
        restore(place, storage).await.unwrap_or_else(|said| panic!("{when}, run again: {said}"));
    }
    place.is_done(Replaying::Restore, when).await;
    let third = restore(place, storage).await.unwrap();
    assert!(third.replay.is_none() && third.finished.is_empty(), "{when}, a third time: {third:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_whose_storage_fails_at_any_call_is_completed_by_the_next_run() {
    let incident = &Incident::new(&TestServer::shared(), 0).await;
    let memory = Memory::of(incident.objects.clone());
    let calls: Vec<Call> = {
        let (faulty, place) = (Arc::new(Faulty::new(memory.clone())), incident.copy(Replaying::Restore).await);
        let storage: Arc<dyn Storage> = faulty.clone();
        restore(&place, &storage).await.unwrap();
        faulty.calls()
    };
    assert!(calls.len() >= 40, "suspiciously few calls: {}", calls.len());
    let mut cases = Vec::new();
    for call in &calls {
        // A reading that fails after it was done is one that was not done.
        cases.push((call, Fault::FailBefore));
        if matches!(call.verb, Verb::Get | Verb::GetRange) {
            cases.extend(
                [Fault::Truncate(100), Fault::FlipBit(3), Fault::FlipBit(8 * 150 + 5)].map(|fault| (call, fault)),
            );
        }
    }
    let tried = cases.len();
    let run = |(call, fault): (&Call, Fault)| {
        let (number, when, memory) = (call.number, format!("{call:?}, {fault:?}"), memory.clone());
        async move {
            let place = incident.copy(Replaying::Restore).await;
            let before = place.kept().await;
            let faulty = Arc::new(Faulty::new(memory));
            faulty.inject(move |call| call.number == number, fault);
            let storage: Arc<dyn Storage> = faulty.clone();
            let outcome = restore(&place, &storage).await;
            faulty.heal();
            // What changed nothing needs no proof that the next run completes: it is the first.
            let touched = outcome.is_ok() || place.kept().await != before;
            if touched {
                then_completes(&place, &storage, &outcome, &when).await;
            }
            place.store.database.drop().await;
            (outcome.is_err(), touched)
        }
    };
    let outcomes: Vec<(bool, bool)> = stream::iter(cases).map(run).buffer_unordered(3).collect().await;
    let failed = outcomes.iter().filter(|(failed, _)| *failed).count();
    let halfway = outcomes.iter().filter(|(failed, touched)| *failed && *touched).count();
    println!("{} calls, {tried} faults, {failed} failed the restore, {halfway} of them halfway", calls.len());
    assert!(failed * 2 > tried && halfway > 5, "the faults do not strike");
    incident.repository_is_untouched().await;
}

/// From now on the number-th statement of Restante that writes to the store does this before it ends.
async fn strike(place: &Place<'_>, number: u32, action: &str) {
    let triggers: String = ["accounts", "mailboxes", "messages", "attachments", "message_attachments", "keywords", "expunged"]
        .map(|table| format!(
            "CREATE TRIGGER strike AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION strike();"
        ))
        .concat();
    // A sequence, because it counts on whatever is rolled back.
    let sql = format!(
        "CREATE SEQUENCE strikes; CREATE FUNCTION strike() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
           IF current_setting('application_name') = 'restante' AND nextval('public.strikes') = {number} THEN PERFORM {action}; END IF;
           RETURN NULL; END $$; {triggers}"
    );
    place.store.client.batch_execute(&sql).await.unwrap();
}

async fn no_more_strikes(place: &Place<'_>) {
    place.store.client.batch_execute("DROP FUNCTION strike CASCADE; DROP SEQUENCE strikes").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_killed_in_any_statement_costs_the_run_and_nothing_else() {
    let incident = &Incident::new(&TestServer::shared(), 0).await;
    for (what, least) in [(Replaying::Restore, 30), (Replaying::Undo, 15)] {
        let every = if long() { 1 } else { 3 };
        let struck = stream::iter((1..).step_by(every)).map(|number| async move {
            let place = incident.copy(what).await;
            strike(&place, number, "pg_terminate_backend(pg_backend_pid())").await;
            let ended = place.run(what, None).await;
            let killed = ended.status.code() != Some(0);
            let clear = ended.status.code() == Some(1) && ended.said.contains("terminating connection");
            assert!(!killed || clear, "{what:?}, statement {number}: {ended:?}");
            no_more_strikes(&place).await;
            place.completes(what, &format!("{what:?}, its backend was killed in statement {number}")).await;
            place.store.database.drop().await;
            killed
        });
        let struck = struck.buffered(3).take_while(|killed| std::future::ready(*killed)).count().await;
        println!("{what:?}: the backend was killed in {struck} statements, every {every}. of them");
        assert!(struck * every >= least, "suspiciously few statements: {struck}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_in_the_middle_costs_the_run_and_nothing_else() {
    let server = TestServer::dedicated(ServerOptions { fsync: true, ..Default::default() });
    let incident = Incident::new(&server, 0).await;
    for (what, number) in [(Replaying::Restore, 9), (Replaying::Restore, 20), (Replaying::Undo, 8)] {
        let when = format!("{what:?}, the server crashed in statement {number}");
        let mut place = incident.copy(what).await;
        strike(&place, number, "pg_advisory_xact_lock(7)").await;
        place.store.client.batch_execute("SELECT pg_advisory_lock(7)").await.unwrap();
        let mut child = place.command(what).spawn().unwrap();
        let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted";
        while place.store.client.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            assert!(child.try_wait().unwrap().is_none(), "{when}: it never came there");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.crash();
        server.start();
        let ended = Ended::of(child).await;
        assert_eq!(ended.status.code(), Some(1), "{when}: {ended:?}");
        let clear = ["terminating connection", "closed", "starting up", "shutting down"];
        assert!(clear.iter().any(|words| ended.said.contains(words)), "{when}: {ended:?}");
        place.store.client = place.store.database.superuser().await;
        place.crashed = true;
        no_more_strikes(&place).await;
        place.completes(what, &when).await;
    }
}

/// The tables of the store lie on the small disk; the WAL does not: without room for that the server stops, which is a crash.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_store_is_told_and_the_next_run_goes_on() {
    let server = TestServer::dedicated(ServerOptions::default());
    let incident = Incident::new(&server, 60_000).await;
    for what in [Replaying::Restore, Replaying::Undo] {
        let when = format!("{what:?}, after the disk was full");
        let size = incident.size(what).await;
        let Some(disk) = SmallDisk::mount(size as u32 + 1500) else {
            println!("skipped: mounting a small file system is not allowed here");
            return;
        };
        let folder = disk.path().join("tables");
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(disk.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        give_away(&folder);
        let admin = crate::server::connect(&server.superuser_dsn("postgres")).await;
        admin.batch_execute(&format!("CREATE TABLESPACE small LOCATION '{}'", folder.display())).await.unwrap();
        let place = incident.copy_on(what, "small").await;
        // To the last byte; a restore has room for its first batches.
        let filler = disk.path().join("filler");
        let mut file = std::fs::File::create(&filler).unwrap();
        assert!(std::io::copy(&mut std::io::repeat(1), &mut file).is_err());
        let room = if what == Replaying::Restore { 1 << 20 } else { 0 };
        file.set_len(file.metadata().unwrap().len() - room).unwrap();
        let before = place.kept().await;
        let ended = place.run(what, None).await;
        let told = ended.status.code() == Some(1) && ended.said.contains("No space left on device");
        println!("{what:?} on a full disk: {}", ended.said.lines().last().unwrap_or_default());
        assert!(place.kept().await != before, "{what:?}: the disk was full before anything was done");
        // Undo removes, and may find room for its tombstones in pages that it has.
        assert!(told || (what == Replaying::Undo && ended.status.code() == Some(0)), "{ended:?}");
        std::fs::remove_file(filler).unwrap();
        disk.grow(256 << 10);
        place.completes(what, &when).await;
        place.store.database.drop().await;
        admin.batch_execute("DROP TABLESPACE small").await.unwrap();
    }
}

#[cfg(feature = "s3")]
#[tokio::test(flavor = "multi_thread")]
async fn whatever_an_s3_server_does_a_restore_puts_nothing_wrong_and_the_next_run_completes() {
    use restante::storage::{Location, PutMode, open};

    let incident = &Incident::new(&TestServer::shared(), 0).await;
    let bucket = crate::s3_server::server();
    let run = |(name, turn, through): super::faults::s3::Setting| async move {
        let mut location = bucket.fresh_bucket();
        location.attempts = 2;
        let storage: Arc<dyn Storage> = open(&Location::S3(location.clone())).await.unwrap();
        for (name, bytes) in &incident.objects {
            storage.put(name, bytes.clone(), PutMode::Create, None).await.unwrap();
        }
        let place = incident.copy(Replaying::Restore).await;
        bucket.bucket(&location, |bucket| {
            turn(&mut bucket.switches);
            // The snapshot is not listed yet.
            if bucket.switches.stale_list.is_some() {
                let known = bucket.keys().into_iter().filter(|key| !key.contains("snapshots/")).collect();
                bucket.switches.stale_list = Some(known);
            }
        });
        let outcome = restore(&place, &storage).await;
        let what = format!("restore, {name}");
        assert_eq!(outcome.is_ok(), through[2], "{what}: {outcome:?}");
        bucket.bucket(&location, |bucket| bucket.switches = Default::default());
        then_completes(&place, &storage, &outcome, &what).await;
        place.store.database.drop().await;
    };
    let settings = super::faults::s3::settings();
    assert!(settings.len() >= 13);
    stream::iter(settings).map(run).buffer_unordered(3).collect::<()>().await;
}
