//! How much memory a snapshot and a restore take: the kernel's word about a process of its own.

use std::process::Command;

use super::support::{Place, filled, snapshot_role, text};
use crate::server::{TestDatabase, TestServer};

const MIB: u64 = 1 << 20;

/// What `--memory 64MiB` may take in all with two readers: the buffers in use and those that are kept for the next pack or batch, the program,
/// its threads' stacks and compressors, and what malloc keeps.
const BOUND: u64 = 112 * MIB;

/// So slow a storage that every pack that may wait for it does, on any machine: the peak comes near its ceiling each time.
const STORAGE_DELAY: &str = "250";

/// Runs the program and asks the kernel for its largest resident set; `wait4` cannot be called without `unsafe`, so Python does.
fn peak(program: &Command) -> u64 {
    let script = "import resource, subprocess, sys\ncode = subprocess.call(sys.argv[1:])\n\
                  print('PEAK', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\nsys.exit(code)";
    let mut wrapped = Command::new("python3");
    wrapped.args(["-c", script]).arg(program.get_program()).args(program.get_args());
    wrapped.current_dir(program.get_current_dir().unwrap());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    let output = wrapped.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let kib: u64 = said.lines().find_map(|line| line.strip_prefix("PEAK ")).unwrap().parse().unwrap();
    kib << 10
}

fn taking(place: &Place, store: &str) -> u64 {
    let mut program = place.program(store);
    program.args(["snapshot", "--memory", "64MiB", "--jobs", "2"]).env("RESTANTE_STORAGE_DELAY", STORAGE_DELAY);
    peak(&program)
}

async fn size(database: &TestDatabase) -> i64 {
    let sql = "SELECT pg_database_size(current_database())";
    database.superuser().await.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_twice_as_large_takes_no_more_memory() {
    let mut stores = Vec::new();
    for messages in [5_000, 10_000] {
        let database = filled(messages).await;
        let dsn = database.dsn_as(&snapshot_role(&database).await);
        stores.push((size(&database).await >> 20, dsn, database));
    }
    let [(small, small_dsn, _), (large, large_dsn, _)] = &stores[..] else { unreachable!() };
    assert!(*small >= 190 && *large >= 380, "{small} and {large} MiB");
    // The largest of some runs: where the machine is so busy that the storage seems fast, a peak stays below its ceiling. What grew with the
    // store would raise the ceiling, by a share of 210 MiB.
    let (mut low, mut high) = (0, 0);
    for _ in 0..8 {
        low = low.max(taking(&Place::new().await, small_dsn) / MIB);
        high = high.max(taking(&Place::new().await, large_dsn) / MIB);
        if high * 100 <= low * 110 {
            break;
        }
    }
    println!("databases of {small} and {large} MiB: peaks of {low} and {high} MiB");
    assert!(high <= BOUND / MIB, "{high}");
    assert!(high * 100 <= low * 110, "{low} and {high}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_of_200_mb_takes_at_most_twice_its_size_on_top() {
    let (place, database) = (Place::new().await, TestServer::shared().database(None).await);
    database
        .execute(
            "CREATE TABLE t (id int, body bytea); ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
             INSERT INTO t SELECT 1, decode(repeat(string_agg(md5(g::text), ''), 125), 'hex') FROM generate_series(1, 100000) g",
        )
        .await;
    let role = snapshot_role(&database).await;
    let taking = taking(&place, &database.dsn_as(&role));
    let target = TestServer::shared().database(None).await;
    let mut program = place.program("");
    program
        .args(["restore", "latest", "--full", "--into", &target.superuser_dsn(), "-i"])
        .arg(place.path("reader.key"));
    let restoring = peak(&program);
    println!("peak while taking {} MiB, while restoring {} MiB", taking / MIB, restoring / MIB);
    let limit = BOUND + 2 * 200_000_000;
    assert!(taking <= limit, "{}", taking / MIB);
    assert!(restoring <= limit, "{}", restoring / MIB);
    let same = "SELECT length(body) = 200000000 AND body = (SELECT decode(repeat(string_agg(md5(g::text), ''), 125), 'hex') FROM generate_series(1, 100000) g) FROM t";
    assert!(target.superuser().await.query_one(same, &[]).await.unwrap().get::<_, bool>(0));
}

/// Around the sizes at which a row gets a batch of its own, with small ones before, between and after: each comes back as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_any_size_side_by_side_come_back_as_they_were() {
    let (place, database) = (Place::new().await, TestServer::shared().database(None).await);
    // Of a row 32 bytes are its head.
    let sizes: Vec<usize> = [4 << 20, 1 << 20]
        .into_iter()
        .flat_map(|border: usize| [-500_000, -1, 0, 1, 700_000].map(|by: isize| (border - 32).wrapping_add_signed(by)))
        .flat_map(|size| [90, size, 300, size, 40_000, 600])
        .collect();
    let sizes: Vec<String> = sizes.iter().map(|size| size.to_string()).collect();
    database
        .execute(&format!(
            "CREATE TABLE t (id int, body bytea); ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
             INSERT INTO t SELECT at, substring(decode(repeat(md5(at::text), size / 16 + 1), 'hex') FOR size)
               FROM unnest('{{{}}}'::int[]) WITH ORDINALITY AS of (size, at)",
            sizes.join(",")
        ))
        .await;
    let store = database.dsn_as(&snapshot_role(&database).await);
    let target = TestServer::shared().database(None).await;
    let run = |arguments: &[&str]| {
        let output = place.program(&store).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(&["snapshot", "--memory", "64MiB"]);
    run(&["restore", "latest", "--full", "--into", &target.superuser_dsn(), "-i", "reader.key"]);
    let all = "SELECT string_agg(concat(id, ' ', length(body), ' ', md5(body)), ',' ORDER BY id) FROM t";
    let of = async |database: &TestDatabase| {
        database.superuser().await.query_one(all, &[]).await.unwrap().get::<_, String>(0)
    };
    let (before, after) = (of(&database).await, of(&target).await);
    assert_eq!(before.split(',').count(), 60);
    assert_eq!(before, after);
}
