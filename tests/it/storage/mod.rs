//! The contract of `restante::storage`: one suite of promises for every kind of place, and what happens when an S3 server or the
//! network does what it should not.

mod conformance;
#[cfg(feature = "failpoints")]
mod dying;
#[cfg(feature = "s3")]
mod past;
mod places;
#[cfg(feature = "s3")]
mod trouble;

/// Every promise against one kind of place.
macro_rules! keeps_the_contract {
    ($place:ident) => {
        mod $place {
            promises!($place:
                what_was_put_is_got
                a_lease_is_replaced_whole
                a_range_is_exactly_what_was_asked_for
                what_is_not_there_is_said_to_be_not_there
                deleting_twice_is_no_error
                lists_are_in_order_and_complete
                an_empty_place_lists_nothing
                large_objects_come_back_whole
                an_object_is_never_replaced_by_create
                one_of_many_creators_wins
                a_probe_finds_creation_guarded_and_leaves_nothing
                it_holds_the_same_as_a_map
            );
        }
    };
}

macro_rules! promises {
    ($place:ident: $($promise:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                let Some(place) = super::places::$place().await else { return };
                super::conformance::$promise(&*place.storage).await;
            }
        )*
    };
}

keeps_the_contract!(directory);
#[cfg(feature = "s3")]
keeps_the_contract!(in_process_s3);
#[cfg(feature = "s3")]
keeps_the_contract!(seaweedfs);
#[cfg(feature = "s3")]
mod garage;
