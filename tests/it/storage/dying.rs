//! A process that dies before or after any call to the storage leaves whole objects and nothing else.

use std::process::Command;

use restante::storage::{Location, open};

use super::conformance::{create, name, names};

const OBJECTS: [&str; 3] = ["packs/aa/1", "index/2", "snapshots/3"];
const DIRECTORY: &str = "RESTANTE_TEST_DIRECTORY";

#[tokio::test]
#[ignore = "run by the test below, in a process of its own that dies"]
async fn the_process_that_dies() {
    let storage = open(&Location::Directory(std::env::var_os(DIRECTORY).unwrap().into())).await.unwrap();
    for object in OBJECTS {
        create(&*storage, object, b"whole").await.unwrap();
    }
}

#[tokio::test]
async fn a_death_around_any_call_leaves_whole_objects() {
    for (point, left_of_first) in [("before", 0), ("after", 1)] {
        let mut pass = 0;
        loop {
            pass += 1;
            let above = tempfile::tempdir().unwrap();
            let directory = above.path().join("repository");
            let mut process = Command::new(std::env::current_exe().unwrap());
            process.args(["--ignored", "--exact", "storage::dying::the_process_that_dies"]);
            process.env(DIRECTORY, &directory).env("RESTANTE_FAILPOINT", format!("storage:{point}:{pass}"));
            let lived = process.output().unwrap().status.success();
            let storage = open(&Location::Directory(directory)).await.unwrap();
            let left = names(&*storage, "").await;
            for object in &left {
                assert_eq!(storage.get(&name(object)).await.unwrap(), &b"whole"[..]);
            }
            if lived {
                assert_eq!((pass, left.len()), (OBJECTS.len() + 1, OBJECTS.len()), "no call was without its point");
                break;
            }
            assert_eq!(left.len(), pass - 1 + left_of_first, "{point}:{pass} left {left:?}");
        }
    }
}
