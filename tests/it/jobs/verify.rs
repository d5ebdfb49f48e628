//! `restante verify` as a job: it goes on where the last run ended, says what is overdue, marks what is damaged, and the next snapshot mends it.

use std::time::Duration;

use crate::retention::commands::Small;

const DAY: Duration = Duration::from_secs(86_400);

/// A row that nothing compresses: packs of some size.
async fn noise(small: &Small, seed: u32) {
    let insert =
        format!("INSERT INTO t SELECT {seed}, string_agg(md5({seed} || ':' || g), '') FROM generate_series(1, 1000) g");
    small.database.execute(&insert).await;
}

fn verified(small: &Small, wanted: i32, arguments: &[&str]) -> serde_json::Value {
    small.lines(wanted, "verified", &[&["verify"], arguments].concat()).remove(0)
}

fn findings(report: &serde_json::Value) -> Vec<(&str, &str)> {
    let all = report["findings"].as_array().unwrap();
    all.iter().map(|one| (one["kind"].as_str().unwrap(), one["message"].as_str().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_with_a_budget_goes_on_where_the_last_one_ended() {
    let small = Small::new().await;
    for seed in 0..3 {
        noise(&small, seed).await;
        small.snapshot(&[]).await;
    }
    for wrong in [
        &["verify", "--budget", "10m"][..],
        &["verify", "--budget", "much"],
        &["verify", "--max-age", "0d"],
        &["verify", "--newest-within", "soon"],
    ] {
        small.run(2, wrong);
    }
    // Everything was put a while ago, and fetched back then.
    small.age("packs/", 40 * DAY);
    let all = verified(&small, 0, &[]);
    let packs = all["packs"].as_u64().unwrap();
    assert!(packs >= 6 && all["packs_hashed"] == 0 && all["oldest_hash"].is_null(), "{all}");
    let overdue = verified(&small, 3, &["--budget", "1", "--max-age", "30d"]);
    assert_eq!((&overdue["packs_hashed"], findings(&overdue)[0].0), (&1.into(), "overdue"), "{overdue}");
    // A pack a run, and none twice before all had their turn.
    let mut rounds = 1;
    loop {
        let report = verified(&small, if rounds < packs - 1 { 3 } else { 0 }, &["--budget", "1", "--max-age", "30d"]);
        assert_eq!(report["packs_hashed"], 1, "{report}");
        rounds += 1;
        if rounds == packs {
            break;
        }
    }
    let nothing = verified(&small, 0, &["--max-age", "30d"]);
    assert_eq!((&nothing["packs_hashed"], &nothing["bytes_fetched"]), (&0.into(), &0.into()), "{nothing}");
    let young = nothing["oldest_hash"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(jiff::Timestamp::now().duration_since(young).as_secs() < 600, "{nothing}");
    // Without an age all of them, as far as it goes; a copy of a record under another name proves nothing.
    let half = verified(&small, 0, &["--budget", &(all["pack_bytes"].as_u64().unwrap() / 2).to_string()]);
    let hashed = half["packs_hashed"].as_u64().unwrap();
    assert!(hashed > 0 && hashed < packs, "{half}");
    let (record, bytes) = small.place.objects().into_iter().find(|(name, _)| name.starts_with("verified/")).unwrap();
    let copy = format!("verified/20991231T235959Z-{}", record.rsplit('-').next().unwrap());
    std::fs::write(small.place.path("repository").join(&copy), bytes).unwrap();
    let report = verified(&small, 3, &["--data"]);
    assert!(findings(&report)[0].1.contains(&copy), "{report}");
    std::fs::remove_file(small.place.path("repository").join(&copy)).unwrap();
    // A reader alone has nobody to sign what he finds.
    small.run(2, &["verify", "-i", "reader.key", "-k", "", "--budget", "1MB"]);
    let with_both = verified(&small, 0, &["-i", "reader.key", "--budget", "30min"]);
    assert_eq!((&with_both["packs_hashed"], &with_both["rows"]), (&packs.into(), &0.into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_is_marked_and_the_next_snapshot_stores_it_again() {
    let small = Small::new().await;
    for seed in 0..2 {
        noise(&small, seed).await;
        // Whole, so that reading the store again gives the very chunks of the newest one.
        small.snapshot(&["--full"]).await;
    }
    let good = small.place.objects();
    let folder = small.place.path("repository");
    let marks = || small.place.objects().into_keys().filter(|name| name.starts_with("tombstones/")).count();
    let (mut mended, mut lost) = (0, 0);
    for (pack, bytes) in good.iter().filter(|(name, _)| name.starts_with("packs/")) {
        std::fs::remove_dir_all(&folder).unwrap();
        let _ = std::fs::remove_file(small.place.path("writer.key.heads"));
        for (name, bytes) in &good {
            std::fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
            std::fs::write(folder.join(name), bytes).unwrap();
        }
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 4;
        std::fs::write(folder.join(pack), flipped).unwrap();
        verified(&small, 3, &["--data", "-n"]);
        assert_eq!(marks(), 0, "a dry run");
        let report = verified(&small, 3, &["--data"]);
        assert!(findings(&report).iter().all(|(kind, said)| *kind == "damaged" && said.contains(pack)), "{report}");
        assert_eq!(marks(), 1);
        // It comes first, and stays a finding as long as a snapshot needs it; without data too.
        let report = verified(&small, 3, &[]);
        assert!(findings(&report)[0].1.contains(pack), "{report}");
        let report = verified(&small, 3, &["--budget", "1"]);
        assert!(findings(&report)[0].1.contains(pack), "{report}");
        let taken = small.lines(0, "snapshot", &["snapshot"]).remove(0);
        let newest = taken["snapshot"].as_str().unwrap();
        let after = verified(&small, 0, &[newest, "--data", "-i", "reader.key"]);
        assert!(after["rows"].as_u64() > Some(0), "{after}");
        // The older ones need it where reading the store again gave other chunks.
        let (code, all) = small.either("verified", &["verify", "--data", "-i", "reader.key"]);
        let found = findings(&all[0]);
        assert!((code == 0) == found.is_empty() && found.iter().all(|(_, said)| said.contains(pack)), "{all:?}");
        if found.is_empty() {
            mended += 1;
            // And whoever has the hints of an older snapshot alone reads it too.
            let older = good.keys().filter_map(|name| name.strip_prefix("certificates/"));
            for id in older {
                small.run(0, &["dump", id, "t", "-i", "reader.key", "-q"]);
            }
        } else {
            lost += 1;
        }
        // Somebody brings it back.
        std::fs::write(folder.join(pack), bytes).unwrap();
        let report = verified(&small, 0, &["--data", "-i", "reader.key"]);
        assert_eq!(marks(), usize::from(found.is_empty()), "the mark of one that nobody needs goes with it: {report}");
    }
    assert!(mended > 0 && lost > 0, "{mended} mended, {lost} lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_not_made_is_an_alarm_and_monitoring_reads_all_of_it() {
    let small = Small::new().await;
    let id = small.snapshot(&[]).await;
    let metrics = small.place.path("restante.prom");
    let file = metrics.to_str().unwrap();
    let shown = |name: &str| -> Option<f64> {
        let text = std::fs::read_to_string(&metrics).unwrap();
        assert!(text.ends_with("# EOF\n") && text.contains("# TYPE restante_last_run_exit_code gauge"), "{text}");
        let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'))?;
        line.rsplit(' ').next()?.parse().ok()
    };
    small.run(0, &["verify", "--newest-within", "1h", "--metrics", file, "--expect-head", &id[..12]]);
    assert_eq!(shown("restante_last_run_exit_code{command=\"verify\"}"), Some(0.0));
    assert_eq!((shown("restante_findings"), shown("restante_snapshots")), (Some(0.0), Some(1.0)));
    let newest = shown("restante_newest_snapshot_timestamp_seconds{store=").unwrap();
    assert!((jiff::Timestamp::now().as_second() as f64 - newest).abs() < 600.0);
    let late = verified(&small, 3, &["--newest-within", "1ms", "--metrics", file]);
    assert_eq!(findings(&late)[0].0, "overdue", "{late}");
    assert_eq!((shown("restante_last_run_exit_code"), shown("restante_findings")), (Some(3.0), Some(1.0)));
    let behind = verified(&small, 3, &["--expect-head", "0123456789ab"]);
    assert_eq!(findings(&behind)[0].0, "missing", "{behind}");
    // Also of what fails, by whatever command; and who cannot write them says so.
    small.run(5, &["show", "0123456789ab", "--metrics", file]);
    assert_eq!(shown("restante_last_run_exit_code{command=\"show\"}"), Some(5.0));
    let said = small.run(1, &["verify", "--metrics", "/nowhere/at/all"]);
    assert!(said.contains("--metrics"), "{said}");
}

/// On a host that is neither the database's nor a reader's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verifier_checks_and_marks_and_does_nothing_else() {
    let small = Small::new().await;
    noise(&small, 1).await;
    let id = small.snapshot(&[]).await;
    let key = small.place.path("verifier.key");
    let file = key.to_str().unwrap();
    small.run(2, &["key", "verifier"]);
    let added = small.lines(0, "verifier_added", &["key", "verifier", "-o", file]).remove(0);
    small.run(6, &["key", "verifier", "-o", file]); // never over an existing one
    let listed = small.lines(0, "verifier", &["key", "list"]);
    assert!(listed.iter().any(|one| one["signer"] == added["signer"]), "{listed:?}");
    // Nothing of the id secret, by which guesses about mail are confirmed.
    let (own, writers) =
        (std::fs::read_to_string(&key).unwrap(), std::fs::read_to_string(small.place.path("writer.key")).unwrap());
    let secret = |name: &str| {
        writers.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim_matches([' ', '=', '"']).to_owned()
    };
    assert!(
        own.contains(&secret("seal_secret"))
            && !own.contains(&secret("id_secret"))
            && !own.contains(&secret("signing_seed"))
    );

    let with = |arguments: &[&'static str]| [arguments, &["-k", "verifier.key"]].concat();
    let report = small.lines(0, "verified", &with(&["verify", "--budget", "1GiB", "--newest-within", "1h"])).remove(0);
    assert!(report["packs_hashed"].as_u64() > Some(2), "{report}");
    let nothing = verified(&small, 0, &["--max-age", "1h"]);
    assert_eq!(nothing["packs_hashed"], 0, "the writer believes what the verifier wrote down");
    let pack = small.place.objects().into_keys().find(|name| name.starts_with("packs/")).unwrap();
    let file = small.place.path("repository").join(&pack);
    let good = std::fs::read(&file).unwrap();
    std::fs::write(&file, [&good[..good.len() - 1], b"x"].concat()).unwrap();
    small.run(3, &with(&["verify", "--data"]));
    assert!(small.place.objects().keys().any(|name| name.starts_with("tombstones/")));
    std::fs::write(&file, good).unwrap();
    small.run(0, &with(&["verify", "--data"]));
    small.run(0, &with(&["snapshots"]));
    let bin = crate::server::binaries();
    small.run(0, &[&with(&["drill", "-i", "reader.key"])[..], &["--pg-bin", bin.to_str().unwrap()]].concat());
    let drills = small.lines(0, "drill_listed", &with(&["drill", "--history"]));
    assert_eq!((drills.len(), &drills[0]["snapshot"]), (1, &id.as_str().into()));

    for refused in [
        &["snapshot"][..],
        &["forget", "-y", "--keep-last", "1"],
        &["prune", "-y"],
        &["hold", "latest"],
        &["key", "verifier", "-o", "x"],
    ] {
        let said = small.run(6, &[refused, &["-k", "verifier.key"]].concat());
        assert!(said.contains("verifier's key"), "{refused:?}: {said}");
    }
    // A rotation ends it; what it signed stays what it was.
    small.run(0, &["key", "rotate", "-y", "-i", "reader.key"]);
    let said = small.run(6, &with(&["verify"]));
    assert!(said.contains("restante key verifier"), "{said}");
    small.run(0, &["verify", "--data"]);
    small.run(0, &["key", "verifier", "-o", small.place.path("next.key").to_str().unwrap()]);
    small.run(0, &["verify", "--data", "-k", "next.key"]);
}
