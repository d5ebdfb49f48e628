//! Random histories against a model in memory.
//!
//! A history delivers, flags, moves, copies, expunges, delivers again, appends with an old date, makes and deletes mailboxes; takes a
//! snapshot; loses a window, the tail, single rows or only parts, with or without its counters; goes on; restores, cut short
//! at any point, by windows, by two at once, while mail goes on arriving, again; undoes and redoes. After each restore every row of the store must be
//! one that the model knows alive or one lost mail that came back: nothing lost, nothing doubled, nothing resurrected.
//!
//! The reference store can tell the most, so there the model is the strictest; [`super::ways`] says what others cannot.
//!
//! 500 of them, 10,000 in `scripts/test --long`; `RESTANTE_HISTORIES` and `RESTANTE_SEED` say how many and from where. One history
//! alone is `RESTANTE_HISTORIES=1` with its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::FutureExt;
use restante::compare::{Class, Window};
use restante::restore::{ApplyOptions, Plan, PlanOptions};

use super::history::History;
use super::store::{Store, clock};
use crate::stores::STORES;

/// What a run of some length must have met in one history of twenty at least, or it has proven little.
const WANTED: [&str; 35] = [
    "deliver",
    "flag",
    "move",
    "move the row itself",
    "copy",
    "expunge",
    "expunge a restored mail",
    "deliver again",
    "deliver again elsewhere",
    "a lost mail arrived again",
    "append with an old date",
    "delete mailbox",
    "make a deleted mailbox anew",
    "make a lost mailbox anew",
    "snapshot",
    "lose a window",
    "lose the tail blocks",
    "lose single rows",
    "lose only the parts",
    "lose mailboxes",
    "roll sequences back",
    "restore",
    "crash in restore",
    "mail between plan and restore",
    "two responders",
    "restore a window",
    "restore again",
    "undo",
    "class: absent",
    "class: re-used id",
    "class: duplicate",
    "class: deleted by the user",
    "class: cannot tell",
    "class: orphan",
    "class: incomplete",
];

/// Most restores of a few mails take more steps than that.
const STEPS: usize = 120;

/// The store that the histories are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Reference,
    /// With other names for all that is in it.
    Renamed,
    /// As another project has it.
    Named(&'static str),
}

impl How {
    /// `None` where the server lacks what it needs.
    async fn store(self) -> Option<Store> {
        match self {
            Self::Reference => Some(Store::new().await),
            Self::Renamed => Some(Store::renamed().await),
            Self::Named(name) => Store::named(name).await,
        }
    }
}

async fn history(store: &Store, seed: u64) -> BTreeSet<&'static str> {
    let mut history = History::begin(store, seed).await;
    history.steps(6..30).await;
    let snapshot = history.snapshot().await;
    history.steps(0..8).await;
    history.remember_uids().await;
    history.damage().await;
    history.steps(0..14).await;
    history.remember_uids().await;
    let damaged_at = history.damaged_at;
    let comparison = store.compare(&snapshot, damaged_at).await;
    for leftover in &comparison.leftovers {
        history.happened.insert(match leftover.class {
            Class::Absent => "class: absent",
            Class::ReusedId => "class: re-used id",
            Class::Duplicate => "class: duplicate",
            Class::DeletedByUser => "class: deleted by the user",
            Class::CannotTell => "class: cannot tell",
            Class::Orphan => "class: orphan",
            Class::PlaceTaken => "class: place taken",
        });
    }
    if !comparison.incomplete.messages.is_empty() {
        history.happened.insert("class: incomplete");
    }
    let layout = comparison.layout.clone();
    // Good until something happens.
    let mut fresh = Some(Plan::new(comparison, &PlanOptions::default()));
    if history.random.one_in(3) {
        fresh = None;
        let steps = history.random.below(STEPS);
        let what = match store.crash(&snapshot, damaged_at, steps).await {
            None => "crash in restore",
            Some(_) => "restored before the crash",
        };
        history.tell(what, format!("after {steps} steps"));
        history.check(false).await;
        history.steps(0..4).await;
        history.remember_uids().await;
    }
    if history.random.one_in(4) {
        fresh = None;
        // A plan is an upper bound: what arrives, moves or goes after it counts.
        let plan = store.plan(&snapshot, damaged_at).await;
        history.steps(0..6).await;
        history.remember_uids().await;
        let report = store.apply(&snapshot, plan, ApplyOptions::default()).await;
        history.tell("mail between plan and restore", format!("{} {:?}", report.mail.restored, report.replay));
        history.check(false).await;
        history.steps(0..4).await;
        history.remember_uids().await;
    }
    if history.random.one_in(4) {
        fresh = None;
        // Two windows side by side are the whole; of segments outside each is read no more than must be.
        let cut = Some(clock(history.random.below(history.minute as usize + 2) as i64));
        for (from, to) in [(None, cut), (cut, None)] {
            let plan = PlanOptions { window: Window { from, to }, ..Default::default() };
            let report = store.restore_with(&snapshot, damaged_at, &plan, ApplyOptions::default()).await;
            history.tell("restore a window", format!("{} {:?}, {plan:?}", report.mail.restored, report.replay));
            history.check(to.is_none()).await;
        }
        history.steps(0..4).await;
        history.remember_uids().await;
    }
    let mut replay = None;
    if history.random.one_in(3) {
        let options = || ApplyOptions { batch_messages: 2, ..Default::default() };
        let plan = PlanOptions::default();
        let (one, two) = tokio::join!(
            store.restore_with(&snapshot, damaged_at, &plan, options()),
            store.restore_with(&snapshot, damaged_at, &plan, options())
        );
        history.tell("two responders", format!("{} and {}", one.mail.restored, two.mail.restored));
    } else {
        let report = match fresh {
            Some(plan) => store.apply(&snapshot, plan, ApplyOptions::default()).await,
            None => store.restore(&snapshot, damaged_at).await,
        };
        assert!(report.mail.changed_columns.is_empty(), "{report:?}");
        history.tell("restore", format!("{} {:?}", report.mail.restored, report.replay));
        replay = report.replay.filter(|_| report.mail.restored > 0);
    }
    history.check(true).await;
    history.steps(0..8).await;
    history.remember_uids().await;
    if let Some(replay) = replay.filter(|_| !history.random.one_in(4)) {
        history.undo(&layout, replay).await;
        history.steps(0..4).await;
        history.remember_uids().await;
        let report = store.restore(&snapshot, damaged_at).await;
        history.tell("restore", format!("what was undone, {}", report.mail.restored));
        history.check(true).await;
    }
    let again = store.restore(&snapshot, damaged_at).await;
    history.tell("restore again", format!("{}", again.mail.restored));
    history.check(true).await;
    let nothing = store.restore(&snapshot, damaged_at).await;
    let done = (nothing.replay.clone(), nothing.mail.restored);
    assert_eq!(done, (None, 0), "DOUBLED: there was something left to do: {nothing:?}\n{}", history.told());
    history.happened
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// So many histories on one database: the catalog grows with every temporary table, and nothing is vacuumed meanwhile.
const ON_ONE_DATABASE: u64 = 50;

/// How many of the histories met each thing; `None` where there is no such store.
fn run(histories: u64, seed: u64, how: How) -> Option<BTreeMap<&'static str, u64>> {
    let next = AtomicU64::new(0);
    let held: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(WANTED.iter().map(|what| (*what, 0)).collect());
    let failed: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let is_left_out = AtomicBool::new(false);
    let worker = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            loop {
                let from = next.fetch_add(ON_ONE_DATABASE, Ordering::Relaxed);
                if from >= histories {
                    return;
                }
                let Some(store) = how.store().await else {
                    is_left_out.store(true, Ordering::Relaxed);
                    return;
                };
                for at in from..histories.min(from + ON_ONE_DATABASE) {
                    if failed.lock().unwrap().is_some() {
                        return;
                    }
                    match AssertUnwindSafe(history(&store, seed + at)).catch_unwind().await {
                        Ok(happened) => {
                            let mut held = held.lock().unwrap();
                            happened.into_iter().for_each(|what| *held.entry(what).or_default() += 1);
                        }
                        Err(panic) => {
                            let message = panic.downcast_ref::<String>().cloned();
                            failed.lock().unwrap().get_or_insert((seed + at, message.unwrap_or_default()));
                            return;
                        }
                    }
                }
                store.drop().await;
            }
        });
    };
    std::thread::scope(|scope| (0..workers()).for_each(|_| drop(scope.spawn(worker))));
    let held = held.into_inner().unwrap();
    if let Some((seed, message)) = failed.into_inner().unwrap() {
        let whole = held.get("snapshot").copied().unwrap_or_default();
        panic!("history {seed} is wrong, after {whole} that were right: {message}");
    }
    (!is_left_out.into_inner()).then_some(held)
}

/// Says what the histories held; `of`: " of" and the store, if it is another project's.
fn table(of: &str, histories: u64, seed: u64, held: &BTreeMap<&'static str, u64>) {
    // Past libtest's capture: the table is part of what the run says.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{histories} histories{of} from seed {seed}: 0 lost, 0 doubled, 0 resurrected; of them held");
    for (what, count) in held {
        let _ = writeln!(out, "{:5.1} % {what}", *count as f64 * 100.0 / histories as f64);
    }
}

fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().min(8))
}

#[test]
fn no_history_loses_doubles_or_resurrects_a_mail() {
    let many = if std::env::var_os("RESTANTE_TEST_LONG").is_some() { 10_000 } else { 500 };
    let (histories, seed) = (number("RESTANTE_HISTORIES", many), number("RESTANTE_SEED", 1));
    let held = run(histories, seed, How::Reference).unwrap();
    table("", histories, seed, &held);
    if histories >= 200 {
        let rare: Vec<&str> = WANTED.into_iter().filter(|what| held[what] * 20 < histories).collect();
        assert!(rare.is_empty(), "in fewer than 5 % of the histories: {rare:?}");
    }
}

/// Schema, tables, columns and sequences have hostile names here, and the profile alone says so.
#[test]
fn a_store_by_other_names_is_restored_by_its_profile_alone() {
    run(number("RESTANTE_HISTORIES", 30).min(30), number("RESTANTE_SEED", 1), How::Renamed);
}

/// The model over the store of another project.
fn of_another(name: &'static str, many: u64) {
    let many = if std::env::var_os("RESTANTE_TEST_LONG").is_some() { 10 * many } else { many };
    let (histories, seed) = (number("RESTANTE_HISTORIES", many), number("RESTANTE_SEED", 1));
    if let Some(held) = run(histories, seed, How::Named(name)) {
        table(&format!(" of {name}"), histories, seed, &held);
    }
}

#[test]
fn no_history_of_sora_loses_doubles_or_resurrects_a_mail() {
    of_another("sora", 30);
}

#[test]
fn no_history_of_hyperkitty_loses_doubles_or_resurrects_a_mail() {
    of_another("hyperkitty", 30);
}

#[test]
fn no_history_of_james_loses_doubles_or_resurrects_a_mail() {
    of_another("james", 20);
}

#[test]
fn no_history_of_dbmail_loses_doubles_or_resurrects_a_mail() {
    of_another("dbmail", 20);
}

#[test]
fn no_history_of_archiveopteryx_loses_doubles_or_resurrects_a_mail() {
    of_another("archiveopteryx", 30);
}

/// Without a restore: what users do and what is lost leaves each store as the model has it, and its rules are kept.
#[tokio::test]
async fn every_store_does_what_the_model_thinks() {
    let others = STORES.iter().map(|store| How::Named(store.name));
    let (histories, seed) = (number("RESTANTE_HISTORIES", 20).min(20), number("RESTANTE_SEED", 1));
    for how in [How::Reference, How::Renamed].into_iter().chain(others) {
        let Some(store) = how.store().await else { continue };
        for at in 0..histories {
            let mut history = History::begin(&store, seed + at).await;
            history.steps(10..40).await;
            history.check(false).await;
            history.snapshot().await;
            history.steps(0..10).await;
            history.check(false).await;
            history.damage().await;
            history.check(false).await;
            history.steps(10..40).await;
            history.check(false).await;
        }
        store.drop().await;
    }
}
