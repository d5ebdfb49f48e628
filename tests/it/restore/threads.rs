//! A store whose messages refer to each other and to threads that refer back: HyperKitty's. Threads are told apart by their list, and users
//! mark them; attachments are rows of one mail; a list takes each Message-ID once.

use restante::compare::{Class, Window};
use restante::restore::undo::{UndoOptions, undo};
use restante::restore::{ApplyOptions, PlanOptions};

use restante::profile::Profile;

use super::changed::{PADDED, becomes, padded};
use super::memory::MemorySource;
use super::store::{Store, clock};

struct Archive {
    store: Store,
    list: i64,
}

impl Archive {
    async fn new() -> Self {
        Self::of(Store::named("hyperkitty").await.unwrap(), "list").await
    }

    async fn of(store: Store, name: &str) -> Self {
        let account = store.account("a@example.org").await;
        let list = store.mailbox(account, name, 0).await;
        Self { store, list }
    }

    async fn run(&self, sql: &str) {
        self.store.client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// A mail from `<name>@example.org`, which is its Message-ID too.
    async fn mail(&self, list: i64, name: &str, answers: Option<&str>, minute: i64) -> i64 {
        let answers = answers.map(|name| format!("In-Reply-To: <{name}@example.org>\r\n")).unwrap_or_default();
        let header = format!("From: {name}@example.org\r\nSubject: {name}\r\n{answers}\r\n").into_bytes();
        let (body, at) = (format!("{name} says {minute}\r\n").into_bytes(), clock(minute).to_string());
        let attachment = format!("attached to {name}").repeat(50).into_bytes();
        let sql = "SELECT driver.deliver($1, $2, $3, $4, $5, $6::text::timestamptz, $6::text::timestamptz)";
        let id = format!("<{name}@example.org>");
        let row = self.store.client.query_one(sql, &[&list.to_string(), &id, &header, &body, &attachment, &at]).await;
        row.unwrap().get::<_, String>(0).parse().unwrap()
    }

    /// Each mail with what it answers, what begins its thread, and its attachment's length; then marks of threads and who set them.
    async fn told(&self) -> Vec<String> {
        let sql = "SELECT concat_ws(' ', l.display_name, split_part(e.message_id, '@', 1), 'answers', coalesce(split_part(p.message_id, '@', 1), 'none'),
                          'in', split_part(s.message_id, '@', 1), octet_length(a.content), c.name,
                          (SELECT string_agg(u.username, ' ' ORDER BY u.id) FROM hyperkitty_favorite f JOIN auth_user u ON u.id = f.user_id
                           WHERE f.thread_id = t.id), (SELECT string_agg(g.name, ' ' ORDER BY g.name) FROM hyperkitty_tagging h
                           JOIN hyperkitty_tag g ON g.id = h.tag_id WHERE h.thread_id = t.id))
                   FROM hyperkitty_email e JOIN hyperkitty_mailinglist l ON l.id = e.mailinglist_id JOIN hyperkitty_thread t ON t.id = e.thread_id
                   LEFT JOIN hyperkitty_email p ON p.id = e.parent_id LEFT JOIN hyperkitty_email s ON s.id = t.starting_email_id
                   LEFT JOIN hyperkitty_attachment a ON a.email_id = e.id LEFT JOIN hyperkitty_threadcategory c ON c.id = t.category_id
";
        let mut told: Vec<String> =
            self.store.client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        told.sort();
        told
    }

    /// One mail in each transaction, so that most come back before what they answer.
    async fn restore(&self, snapshot: &MemorySource, window: Window) -> restante::restore::ReplayReport {
        let plan = PlanOptions { window, ..Default::default() };
        let options = ApplyOptions { batch_messages: 1, ..Default::default() };
        self.store.restore_with(snapshot, Some(50), &plan, options).await
    }
}

#[tokio::test]
async fn answers_lead_to_what_they_answered_wherever_that_is_now_and_never_to_a_stranger() {
    let archive = Archive::new().await;
    let (store, list) = (&archive.store, archive.list);
    archive.mail(list, "kept", None, 1).await;
    let mut lost = vec![archive.mail(list, "root", None, 2).await];
    for (minute, name, answers) in [(3, "answer", "root"), (4, "reply", "answer"), (5, "word", "kept")] {
        lost.push(archive.mail(list, name, Some(answers), minute).await);
    }
    let gone = archive.mail(list, "gone", None, 6).await;
    lost.push(archive.mail(list, "orphan", Some("gone"), 7).await);
    let before = archive.told().await;
    let snapshot = MemorySource::take(&store.reader).await;
    store.expunge(gone, "expunge").await;
    store.lose(&lost, &[], true).await;
    // Strangers have their keys, and those of their threads and attachments.
    let mut strangers = Vec::new();
    for minute in 60..66 {
        strangers.push(archive.mail(list, &format!("stranger{minute}"), None, minute).await);
    }
    assert!(lost.iter().all(|id| strangers.contains(id)), "{lost:?} {strangers:?}");
    let after = archive.told().await;
    // The last one alone, in a replay of its own: what it answers is not there yet.
    let window = Window { from: Some(clock(4)), to: Some(clock(5)) };
    let first = archive.restore(&snapshot, window).await;
    assert_eq!(first.mail.restored, 1);
    assert!(
        archive.told().await.contains(&"list reply answers none in reply 850".to_owned()),
        "{:?}",
        archive.told().await
    );
    store.check_counters().await;
    let report = archive.restore(&snapshot, Window::default()).await;
    assert_eq!(report.mail.restored, 5, "{report:?}");
    store.check_counters().await;
    let told = archive.told().await;
    // That its user deleted one of them nobody can know here: it comes back too.
    let mut wanted = [&before[..], &after[1..]].concat();
    wanted.sort();
    assert_eq!(told, wanted);

    // Undo leaves nothing that refers to what is gone, and what it took comes back as it was.
    let layout = store.compare(&snapshot, Some(50)).await.layout;
    for replay in [report.replay.unwrap(), first.replay.unwrap()] {
        undo(&store.reader, &layout, &UndoOptions { replay, ..Default::default() }).await.unwrap();
        store.check_counters().await;
    }
    assert_eq!(archive.told().await, after);
    assert_eq!(archive.restore(&snapshot, Window::default()).await.mail.restored, 6);
    assert_eq!(archive.told().await, wanted);
    assert_eq!(store.restore(&snapshot, Some(50)).await.replay, None);
}

#[tokio::test]
async fn what_hangs_on_a_lost_thread_comes_back_with_it_and_its_own_list() {
    let archive = Archive::new().await;
    let store = &archive.store;
    let list = store.mailbox(store.account("b@example.org").await, "lost", 0).await;
    let id = archive.mail(list, "root", None, 1).await;
    let kept = archive.mail(archive.list, "kept", None, 2).await;
    archive
        .run(
            "INSERT INTO hyperkitty_threadcategory (name, color) VALUES ('news', 'red');
             INSERT INTO hyperkitty_tag (name) VALUES ('old'), ('good');
             UPDATE hyperkitty_thread SET category_id = 1;
             INSERT INTO hyperkitty_favorite (thread_id, user_id) SELECT t.id, u.id FROM hyperkitty_thread t, auth_user u;
             INSERT INTO hyperkitty_tagging (thread_id, user_id, tag_id) SELECT t.id, 1, g.id FROM hyperkitty_thread t, hyperkitty_tag g",
        )
        .await;
    let before = archive.told().await;
    let snapshot = MemorySource::take(&store.reader).await;
    // Of a thread that lives its users took their marks away: that stands.
    archive.run(&format!("DELETE FROM hyperkitty_favorite f USING hyperkitty_email e WHERE e.thread_id = f.thread_id AND e.id = {kept}")).await;
    store.lose(&[id], &[list], true).await;
    archive
        .run(
            "DELETE FROM hyperkitty_tagging; DELETE FROM hyperkitty_tag; UPDATE hyperkitty_thread SET category_id = NULL;
             DELETE FROM hyperkitty_threadcategory; SELECT driver.roll_back();
             INSERT INTO hyperkitty_tag (name) VALUES ('stranger'), ('good')",
        )
        .await;
    // A stranger's list has the lost one's key, and a thread that begins with the very Message-ID.
    let stranger = store.mailbox(store.account("z@example.org").await, "stranger", 30).await;
    assert_eq!(stranger, list);
    archive.mail(stranger, "root", None, 40).await;

    let report = archive.restore(&snapshot, Window::default()).await;
    assert_eq!((report.mail.restored, report.mailboxes), (1, 1), "{report:?}");
    assert!(report.mail.changed_columns.is_empty(), "{report:?}");
    store.check_counters().await;
    let told = archive.told().await;
    let came_back: Vec<&String> = told.iter().filter(|line| line.starts_with("lost ")).collect();
    assert_eq!(came_back, before.iter().filter(|line| line.starts_with("lost ")).collect::<Vec<_>>());
    assert!(told.contains(&"list kept answers none in kept 800".to_owned()), "{told:?}");
    assert!(told.contains(&"stranger root answers none in root 800".to_owned()), "{told:?}");
}

#[tokio::test]
async fn votes_and_marks_of_a_user_who_is_gone_stay_out_and_the_mail_comes_back() {
    let archive = Archive::new().await;
    let store = &archive.store;
    let lost = archive.mail(archive.list, "lost", None, 1).await;
    let alive = archive.mail(archive.list, "alive", None, 2).await;
    for user in ["stays", "goes"] {
        store.tag(lost, user).await;
        store.tag(alive, user).await;
    }
    archive.run("INSERT INTO hyperkitty_favorite (thread_id, user_id) SELECT t.id, u.id FROM hyperkitty_thread t, auth_user u").await;
    let snapshot = MemorySource::take(&store.reader).await;
    store.lose(&[lost], &[], true).await;
    // One who stays took a vote back.
    archive
        .run(
            "DELETE FROM hyperkitty_favorite USING auth_user u WHERE u.id = user_id AND u.username = 'goes';
             DELETE FROM hyperkitty_vote; DELETE FROM auth_user WHERE username = 'goes'",
        )
        .await;
    let report = archive.restore(&snapshot, Window::default()).await;
    assert_eq!((report.mail.restored, report.repaired_rows), (1, 0), "{report:?}");
    let left = ["favorite", "vote"].map(|table| (format!("public.hyperkitty_{table}"), 1));
    assert_eq!(report.mail.left_rows.clone().into_iter().collect::<Vec<_>>(), left);
    assert!(report.has_findings());
    store.check_counters().await;
    assert_eq!(store.tags().await.into_values().collect::<Vec<_>>(), [["stays"]]);
    let told = archive.told().await;
    assert!(told.contains(&"list lost answers none in lost 800 a@example.org stays".to_owned()), "{told:?}");
    assert_eq!(store.restore(&snapshot, Some(50)).await.replay, None);
}

#[tokio::test]
async fn attachments_that_only_one_mail_has_come_back_under_it_lost_or_alive() {
    let archive = Archive::new().await;
    let (store, list) = (&archive.store, archive.list);
    let (lost, alive) = (archive.mail(list, "lost", None, 1).await, archive.mail(list, "alive", None, 2).await);
    let before = archive.told().await;
    let snapshot = MemorySource::take(&store.reader).await;
    store.lose(&[lost], &[], false).await;
    store.lose_parts(&[alive]).await;
    archive.run("SELECT driver.roll_back()").await;
    archive.mail(list, "stranger", None, 60).await;
    let report = archive.restore(&snapshot, Window::default()).await;
    assert_eq!((report.mail.restored, report.repaired_messages, report.repaired_rows), (1, 1, 1), "{report:?}");
    let told = archive.told().await;
    assert_eq!(
        told.iter().filter(|line| !line.contains("stranger")).collect::<Vec<_>>(),
        before.iter().collect::<Vec<_>>()
    );
    assert!(report.by_hand.iter().any(|line| line.contains("HYPERKITTY_ATTACHMENT_FOLDER")), "{report:?}");
    assert_eq!(store.restore(&snapshot, Some(50)).await.replay, None);
}

#[tokio::test]
async fn a_mail_whose_place_another_one_took_is_left_out_and_counted_and_the_others_come_back() {
    let archive = Archive::new().await;
    let (store, list) = (&archive.store, archive.list);
    let lost = [archive.mail(list, "one", None, 1).await, archive.mail(list, "two", None, 2).await];
    let late = archive.mail(list, "late", None, 3).await;
    let snapshot = MemorySource::take(&store.reader).await;
    store.lose(&[lost[0], lost[1], late], &[], true).await;
    // The same Message-ID, and other words.
    archive.mail(list, "one", None, 60).await;
    let comparison = store.compare(&snapshot, Some(50)).await;
    let taken = comparison.leftovers.iter().filter(|one| one.class == Class::PlaceTaken).count();
    assert_eq!((taken, comparison.leftovers.len()), (1, 3));
    let plan = store.plan(&snapshot, Some(50)).await;
    // Another one after the plan was made.
    let stranger = archive.mail(list, "late", None, 61).await;
    let report = store.apply(&snapshot, plan, ApplyOptions::default()).await;
    assert_eq!((report.mail.restored, report.mail.place_taken), (1, 2), "{report:?}");
    assert!(report.has_findings());
    store.check_counters().await;
    let again = store.restore(&snapshot, Some(50)).await;
    assert_eq!((again.replay, again.mail.place_taken), (None, 2));
    // When its place is free it comes back.
    store.expunge(stranger, "expunge").await;
    let report = store.restore(&snapshot, Some(50)).await;
    assert_eq!((report.mail.restored, report.mail.place_taken), (1, 1), "{report:?}");
    store.check_counters().await;
}

#[tokio::test]
async fn text_in_another_encoding_is_compared_and_put_back_as_it_was() {
    let options = "TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'";
    let archive = Archive::of(Store::named_in("hyperkitty", options).await.unwrap(), "Entwürfe").await;
    let (store, list) = (&archive.store, archive.list);
    let lost = archive.mail(list, "zoé", None, 1).await;
    archive.mail(list, "chloé", None, 2).await;
    let again = archive.mail(list, "ägir", Some("zoé"), 3).await;
    let before = archive.told().await;
    assert!(before.iter().any(|line| line.starts_with("Entwürfe ")), "{before:?}");
    let snapshot = MemorySource::take(&store.reader).await;
    store.lose(&[lost, again], &[], true).await;
    // The very mail once more.
    let sql = "UPDATE hyperkitty_email SET content = replace(content, '60', '3') WHERE id = $1";
    let stranger = archive.mail(list, "ägir", Some("zoé"), 60).await as i32;
    store.client.execute(sql, &[&stranger]).await.unwrap();

    let comparison = store.compare(&snapshot, Some(50)).await;
    let mut classes: Vec<Class> = comparison.leftovers.iter().map(|one| one.class).collect();
    classes.sort();
    assert_eq!((comparison.same, classes), (1, vec![Class::Absent, Class::Duplicate]));
    assert_eq!(comparison.parents.label(0).1, "Entwürfe--a@example.org");
    let report = archive.restore(&snapshot, Window::default()).await;
    assert_eq!((report.mail.restored, report.mailboxes), (1, 0), "{report:?}");
    assert!(report.mail.changed_columns.is_empty(), "{report:?}");
    store.check_counters().await;
    // What came again began a thread of its own, and goes on so: live mail wins.
    let told = archive.told().await;
    let kept = |lines: &[String]| lines.iter().filter(|line| !line.contains(" ägir")).cloned().collect::<Vec<_>>();
    assert_eq!(kept(&told), kept(&before));
    let layout = store.compare(&snapshot, Some(50)).await.layout;
    let options = UndoOptions { replay: report.replay.unwrap(), ..Default::default() };
    assert_eq!(undo(&store.reader, &layout, &options).await.unwrap().undone, 1);
    assert_eq!(archive.restore(&snapshot, Window::default()).await.mail.restored, 1);
    assert_eq!(kept(&archive.told().await), kept(&before));
}

/// Keys of mails, threads and lists became UUIDs, in all that refers to them.
#[tokio::test]
async fn answers_and_threads_come_back_where_their_keys_are_uuids() {
    let mut archive = Archive::new().await;
    let list = archive.list;
    archive.mail(list, "kept", None, 1).await;
    let mut lost = Vec::new();
    for (minute, name, answers) in
        [(2, "root", None), (3, "answer", Some("root")), (4, "reply", Some("answer")), (5, "word", Some("kept"))]
    {
        lost.push(archive.mail(list, name, answers, minute).await);
    }
    let root = lost[0];
    archive.run(&format!("INSERT INTO hyperkitty_favorite (thread_id, user_id) SELECT e.thread_id, u.id FROM hyperkitty_email e, auth_user u WHERE e.id = {root}")).await;
    let before = archive.told().await;
    let snapshot = MemorySource::take(&archive.store.reader).await;
    archive.store.lose(&lost, &[], true).await;
    let (mut changed, mut keys) = (String::new(), String::new());
    for table in ["hyperkitty_email", "hyperkitty_thread", "hyperkitty_mailinglist"] {
        changed += &format!("ALTER TABLE {table} ALTER id DROP IDENTITY;");
        changed += &becomes("uuid", PADDED, &format!("{table}.id"), &[]);
        keys += &padded(table, "id");
    }
    archive.run(&changed).await;
    let builtin = include_str!("../../../src/profile/builtin/hyperkitty.toml");
    archive.store.profile = Profile::parse("changed", &format!("{builtin}\n{keys}")).unwrap();
    assert_eq!(archive.restore(&snapshot, Window::default()).await.mail.restored, 4);
    assert_eq!(archive.restore(&snapshot, Window::default()).await.replay, None);
    assert_eq!(archive.told().await, before);
}
