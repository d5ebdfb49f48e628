//! The hard cases of a restore, each on every store where it can occur.
//!
//! A case is a short script over the store's driver ([`trial`]): what users had, the snapshot, what was lost, what happened since, and what
//! must be there in the end. After each replay the store is looked at by its own SQL and as its clients remember it, takes the next
//! mail, and is restored again with nothing to do. A case that cannot occur in a store says why; what is wrong still is a known defect,
//! asserted as it is and listed in `docs/testing.md`. Each run prints its table.

mod keys;
mod parts;
mod same;
mod shapes;
mod traffic;
pub mod trial;
mod users;

use std::io::Write;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

use restante::profile::Profile;

use super::naive::Naive;
use super::store::Store;
use shapes::Shape;
use trial::Trial;

const TESTING: &str = include_str!("../../../../docs/testing.md");

pub struct Case {
    /// As people say it.
    name: &'static str,
    script: for<'t, 's> fn(&'t mut Trial<'s>) -> LocalBoxFuture<'t, ()>,
}

macro_rules! case {
    ($module:ident::$name:ident) => {
        Case { name: stringify!($name), script: |trial| Box::pin($module::$name(trial)) }
    };
}

macro_rules! cases {
    ($($module:ident::$name:ident),+ $(,)?) => { &[$(case!($module::$name)),+] };
}

const CASES: &[Case] = cases![
    keys::keys_of_lost_mail_issued_again,
    keys::keys_of_lost_mailboxes_issued_again_to_a_stranger,
    keys::keys_of_a_lost_account_issued_again_to_a_stranger,
    keys::uids_issued_again_under_other_keys,
    keys::a_tombstone_of_the_mail_that_took_a_lost_ones_numbers,
    keys::parents_lost_with_the_mail,
    keys::an_account_lost_with_all_it_had,
    parts::only_the_parts_lost,
    parts::only_the_children_lost,
    parts::a_part_that_new_mail_shares_after_the_replay,
    same::delivered_again_with_other_received_lines,
    same::wrapped_again_by_list_software,
    same::another_mail_under_the_same_message_id,
    same::no_message_id,
    same::two_equal_copies_of_which_one_is_lost,
    same::two_equal_copies_of_which_both_are_lost,
    same::copies_in_inbox_and_archive_of_which_one_is_lost,
    same::a_lost_mail_that_came_again_elsewhere_goes_aside_when_told,
    same::a_lost_mail_that_came_again_elsewhere_is_left_out_when_told,
    users::moved,
    users::moved_in_its_own_row,
    users::copied_and_then_lost,
    users::expunged,
    users::a_mailbox_renamed,
    users::a_mailbox_renamed_and_its_old_name_given_to_another,
    users::a_mailbox_deleted,
    users::a_mailbox_deleted_and_made_anew_under_its_name,
    users::an_account_deleted,
    users::a_tombstone_beside_a_living_equal_mail,
    users::appended_with_an_old_date,
    users::old_rows_moved_to_the_lost_tail_by_a_flag_change,
    users::restored_once_and_then_deleted_by_its_user,
];

/// Of the reference store alone, each in a database of its own.
const SHAPES: &[(Shape, Case)] = &[
    (shapes::IDENTITY_ALWAYS, case!(shapes::identity_always)),
    (shapes::GENERATED, case!(shapes::generated_columns)),
    (shapes::PARTITIONED, case!(shapes::partitioned_targets)),
    (shapes::TYPES, case!(shapes::enum_domain_composite_and_array_columns)),
    (shapes::TIMES, case!(shapes::timestamps_at_the_edges)),
    (shapes::LOCAL_TIMES, case!(shapes::local_times_of_a_daylight_saving_hour)),
    (shapes::SENDERS, case!(shapes::a_dictionary_row_issued_again)),
];

impl Case {
    fn name(&self) -> String {
        self.name.replace('_', " ")
    }

    /// Runs it and says what came of it, or what went wrong.
    async fn run(&self, store: &Store) -> Result<String, String> {
        let run = async {
            let mut trial = Trial::begin(store, None).await;
            (self.script)(&mut trial).await;
            if let Some(why) = trial.cannot {
                return format!("cannot occur: {why}");
            }
            trial.end().await;
            trial.defect.map_or("right".to_owned(), |what| format!("known defect: {what}"))
        };
        AssertUnwindSafe(run).catch_unwind().await.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
        })
    }

    async fn run_naively(&self, store: &Store, naive: Naive) -> String {
        let mut trial = Trial::begin(store, Some(naive)).await;
        (self.script)(&mut trial).await;
        if let Some(why) = trial.cannot {
            return why.to_owned();
        }
        trial.end_naively().await
    }
}

/// Outcomes as a table; any that is wrong fails the test.
#[derive(Default)]
struct Outcomes {
    table: String,
    wrong: Vec<String>,
}

impl Outcomes {
    async fn add(&mut self, case: &Case, store: &Store) {
        match case.run(store).await {
            Ok(outcome) => {
                let defect = outcome.strip_prefix("known defect: ");
                if let Some(defect) = defect.filter(|defect| !TESTING.contains(defect)) {
                    self.wrong
                        .push(format!("{}: docs/testing.md does not tell of a known defect: {defect}", case.name()));
                }
                self.table += &format!("| {} | {outcome} |\n", case.name());
            }
            Err(what) => self.wrong.push(format!("{}: {what}", case.name())),
        }
    }

    fn end(self, of: &str) {
        // Past libtest's capture: the table is part of what the run says.
        let _ = writeln!(std::io::stdout().lock(), "| hard case, {of} | outcome |\n|---|---|\n{}", self.table);
        assert!(self.wrong.is_empty(), "{} cases of {of} are wrong:\n{}", self.wrong.len(), self.wrong.join("\n"));
    }
}

/// Every case, one after the other, on one database.
async fn all_cases_of(name: &str, store: Store) {
    let mut outcomes = Outcomes::default();
    for case in CASES {
        outcomes.add(case, &store).await;
    }
    store.drop().await;
    outcomes.end(name);
}

#[tokio::test]
async fn every_hard_case_of_the_reference_store() {
    all_cases_of("the reference store", Store::new().await).await;
}

macro_rules! stores {
    ($($test:ident: $name:literal),+ $(,)?) => {
        $(#[tokio::test]
        async fn $test() {
            if let Some(store) = Store::named($name).await {
                all_cases_of($name, store).await;
            }
        })+
    };
}

stores! {
    every_hard_case_of_archiveopteryx: "archiveopteryx",
    every_hard_case_of_dbmail: "dbmail",
    every_hard_case_of_hyperkitty: "hyperkitty",
    every_hard_case_of_james: "james",
    every_hard_case_of_sora: "sora",
}

#[tokio::test]
async fn every_shape_of_the_reference_store() {
    let mut outcomes = Outcomes::default();
    for (shape, case) in SHAPES {
        let mut store = Store::new().await;
        store.client.batch_execute(shape.ddl).await.unwrap_or_else(|error| panic!("{}: {error:?}", case.name()));
        store.profile = Profile::parse("changed", &(shape.profile)()).unwrap();
        outcomes.add(case, &store).await;
        store.drop().await;
    }
    outcomes.end("the reference store in other shapes");
}

#[tokio::test]
async fn a_store_in_another_encoding() {
    let options = "TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'";
    let store = Store::made(Store::server().database_with(options).await).await;
    let mut outcomes = Outcomes::default();
    outcomes.add(&case!(shapes::names_in_another_encoding), &store).await;
    store.drop().await;
    outcomes.end("the reference store in LATIN1");
}

/// What the first ideas would have done is written down, and stays true.
#[tokio::test]
async fn naive_restores_fail_in_the_hard_cases_as_the_documents_say() {
    let store = Store::new().await;
    let mut table = String::from("| case |");
    Naive::ALL.iter().for_each(|naive| table += &format!(" {} |", naive.name()));
    table += "\n|---|---|---|---|\n";
    for case in CASES {
        table += &format!("| {} |", case.name());
        for naive in Naive::ALL {
            table += &format!(" {} |", case.run_naively(&store, naive).await);
        }
        table.push('\n');
    }
    store.drop().await;
    assert!(TESTING.contains(&table), "docs/testing.md must have this table:\n\n{table}");
}
