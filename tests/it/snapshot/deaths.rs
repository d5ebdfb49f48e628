//! Deaths of `restore --full` and `restore --table`, before and after every call to the storage and the COMMIT of the latter. What a
//! death leaves is never taken for the whole: the next run completes into nothing, or refuses and says what to do.

use std::os::unix::process::ExitStatusExt;
use std::process::Output;

use super::support::{Place, snapshot_of, text};
use crate::matrix::sample::{self, Rows, TABLES, rows_of};
use crate::server::{TestDatabase, TestServer, sessions_end};

/// One of the two commands, with what it writes into.
struct Restoring<'a> {
    place: &'a Place,
    arguments: &'a [&'a str],
}

impl Restoring<'_> {
    fn run(&self, into: &str, variable: (&str, &str)) -> Output {
        let reader = self.place.path("reader.key");
        let mut program = self.place.program("");
        program.args(["restore", "latest", "--into", into, "-i", reader.to_str().unwrap()]).args(self.arguments);
        program.env(variable.0, variable.1).output().unwrap()
    }

    /// Exit code, and what it said.
    fn again(&self, into: &str) -> (i32, String) {
        let output = self.run(into, ("RESTANTE_AGAIN", "1"));
        (output.status.code().unwrap(), text(&output))
    }

    /// The points that an undisturbed run passes, in their order, with their numbers.
    fn points(&self, into: &str) -> Vec<String> {
        let file = self.place.path("points");
        let output = self.run(into, ("RESTANTE_FAILPOINTS_PASSED", file.to_str().unwrap()));
        assert!(output.status.success(), "{}", text(&output));
        let mut points: Vec<String> = Vec::new();
        for name in std::fs::read_to_string(&file).unwrap().lines() {
            let number = points.iter().filter(|point| point.rsplit_once(':').unwrap().0 == name).count() + 1;
            points.push(format!("{name}:{number}"));
        }
        std::fs::remove_file(&file).unwrap();
        points
    }

    fn dies(&self, into: &str, point: &str) {
        let output = self.run(into, ("RESTANTE_FAILPOINT", point));
        assert_eq!(output.status.signal(), Some(6), "at {point}: {}", text(&output));
    }
}

async fn place_and_rows() -> (Place, Rows) {
    let place = Place::new().await;
    let (database, _) = sample::store(&TestServer::shared(), 40, 2).await;
    snapshot_of(&place, &database).await;
    let rows = rows_of(&database).await;
    (place, rows)
}

/// A database that is empty, and a role that owns it as one restores into.
async fn empty() -> (TestDatabase, String) {
    let database = TestServer::shared().database(None).await;
    let into = database.dsn_as(&database.owning_role().await);
    (database, into)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_restore_that_dies_is_refused_or_completed_by_the_next_and_never_taken_for_whole() {
    let (place, rows) = place_and_rows().await;
    let full = Restoring { place: &place, arguments: &["--full"] };
    let (whole, into) = empty().await;
    let points = full.points(&into);
    assert!(rows_of(&whole).await == rows);
    assert!(points.len() >= 20, "suspiciously few points: {points:?}");

    let (mut database, mut into) = empty().await;
    let (mut refused, mut went_on) = (0, 0);
    for point in &points {
        full.dies(&into, point);
        let (code, said) = full.again(&into);
        if code == 0 {
            went_on += 1;
            assert!(rows_of(&database).await == rows, "after a death at {point}");
        } else {
            refused += 1;
            assert!(code == 1 && said.contains("is not empty") && said.contains("createdb"), "{point}: {said}");
        }
        database.drop().await;
        (database, into) = empty().await;
    }
    println!("restore --full died at {} points: {went_on} went on, {refused} were refused", points.len());
    assert!(refused > 0 && went_on > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_rescued_is_there_whole_or_not_at_all() {
    let (place, rows) = place_and_rows().await;
    let table = Restoring { place: &place, arguments: &["--table", TABLES[1], "--schema", "rescue"] };
    let (whole, into) = empty().await;
    let points = table.points(&into);
    whole.drop().await;
    assert!(points.len() >= 8 && points.iter().any(|point| point == "commit:before:1"), "{points:?}");

    let (database, into) = empty().await;
    let committed = points.iter().position(|point| point == "commit:after:1").unwrap();
    for (at, point) in points.iter().enumerate() {
        table.dies(&into, point);
        let client = database.superuser().await;
        // A server process that lost its client ends its transaction before it goes.
        sessions_end(&client).await;
        let there = client.query_one("SELECT to_regclass('rescue.messages') IS NOT NULL", &[]).await.unwrap();
        assert_eq!(there.get::<_, bool>(0), at >= committed, "after a death at {point}");
        if at >= committed {
            let (code, said) = table.again(&into);
            assert!(code == 1 && said.contains("exists already"), "{point}: {said}");
            database.execute("DROP SCHEMA rescue CASCADE").await;
        }
    }
    assert_eq!(table.again(&into).0, 0);
    let count = "SELECT count(*) FROM rescue.messages";
    let count: i64 = database.superuser().await.query_one(count, &[]).await.unwrap().get(0);
    assert_eq!(count as usize, rows["public.messages"].len());
}
