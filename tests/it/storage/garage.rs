//! Garage, or any server that ignores conditions, as `scripts/garage-conformance` starts it. Everything of the contract that does not
//! need conditions must hold, and `probe` must say what the server ignores.

use restante::storage::{Location, S3Location, open};

use super::conformance;
use super::places::Place;

async fn place(prefix: &str) -> Place {
    let variable = |name: &str| {
        std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/garage-conformance"))
    };
    let mut location = S3Location::new(variable("RESTANTE_TEST_S3_BUCKET"));
    location.prefix = prefix.into();
    location.endpoint = Some(variable("RESTANTE_TEST_S3_ENDPOINT"));
    location.region = Some(variable("RESTANTE_TEST_S3_REGION"));
    location.path_style = true;
    Place::of(open(&Location::S3(location)).await.unwrap())
}

macro_rules! keeps {
    ($($promise:ident)*) => {
        $(
            #[tokio::test]
            #[ignore = "needs the server that scripts/garage-conformance starts"]
            async fn $promise() {
                conformance::$promise(&*place(stringify!($promise)).await.storage).await;
            }
        )*
    };
}

keeps! {
    what_was_put_is_got
    a_lease_is_replaced_whole
    a_range_is_exactly_what_was_asked_for
    what_is_not_there_is_said_to_be_not_there
    deleting_twice_is_no_error
    lists_are_in_order_and_complete
    an_empty_place_lists_nothing
    large_objects_come_back_whole
}

#[tokio::test]
#[ignore = "needs the server that scripts/garage-conformance starts"]
async fn a_probe_says_that_conditions_and_retention_are_ignored() {
    let found = place("probe").await.storage.probe().await.unwrap();
    assert!(!found.conditional_create);
    assert_ne!(found.object_lock, Some(true));
    assert_ne!(found.versioning, Some(true));
}
