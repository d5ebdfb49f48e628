//! A store that takes mail apart: header fields, addresses and flags are rows of their own, and a tombstone keeps the mail that it is for.

use restante::compare::{Class, Reason};
use restante::monitor::Silent;
use restante::restore::undo::{UndoOptions, undo};
use restante::restore::{Apply, ApplyOptions, Plan, PlanOptions, ReplayError};

use super::memory::MemorySource;
use super::store::{Content, Store};

/// Delivers a mail of one second from `sender`; of equal lengths they are as long as each other.
async fn deliver(store: &Store, mailbox: i64, sender: &str, subject: &str) -> String {
    let sql = "SELECT driver.deliver($1, $2, $3, $4, NULL, '2026-01-01', NULL)";
    let id = format!("<{subject}@example.org>");
    let header = format!("From: {sender}\r\nSubject: {subject}\r\nMessage-ID: {id}\r\n\r\n").into_bytes();
    let row = store.client.query_one(sql, &[&mailbox.to_string(), &id, &header, &b"text\r\n".to_vec()]).await;
    row.unwrap_or_else(|error| panic!("{error:?}")).get(0)
}

/// Mailbox, UID, message, sender, subject and flags of all that users see.
async fn seen(store: &Store) -> Vec<String> {
    let sql = "SELECT concat_ws(' ', regexp_replace(b.name::text, '.*/', ''), m.uid, m.message,
                      (SELECT a.localpart || '@' || a.domain FROM address_fields f JOIN addresses a ON a.id = f.address
                       WHERE f.message = m.message AND f.field = 1),
                      (SELECT h.value FROM header_fields h WHERE h.message = m.message AND h.field = 20),
                      (SELECT string_agg(n.name, ',' ORDER BY n.name) FROM flags f JOIN flag_names n ON n.id = f.flag
                       WHERE f.mailbox = m.mailbox AND f.uid = m.uid),
                      (SELECT string_agg(u.login || '=' || n.name || '=' || a.value, ',')
                       FROM annotations a JOIN annotation_names n ON n.id = a.name JOIN users u ON u.id = a.owner
                       WHERE a.mailbox = m.mailbox AND a.uid = m.uid))
               FROM mailbox_messages m JOIN mailboxes b ON b.id = m.mailbox ORDER BY b.name, m.uid";
    let rows = store.client.query(sql, &[]).await.unwrap_or_else(|error| panic!("{error:?}"));
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn a_mail_under_the_key_of_a_lost_one_that_differs_in_its_header_alone_is_another() {
    let Some(store) = Store::named("archiveopteryx").await else { return };
    let account = store.account("a@example.org").await;
    let (inbox, archive) = (store.mailbox(account, "INBOX", 0).await, store.mailbox(account, "Archive", 0).await);
    let lost = deliver(&store, inbox, "b@example.org", "one").await;
    let snapshot = MemorySource::take(&store.reader).await;
    store.act_on_links("SELECT driver.lose($1, '{}'), driver.roll_back()", &[&lost]).await;
    // The same message number, second, size and body.
    deliver(&store, archive, "b@example.org", "two").await;
    assert_eq!(seen(&store).await, ["Archive 1 1 b@example.org two"]);
    let report = store.restore(&snapshot, None).await;
    assert_eq!(report.mail.restored, 1, "{report:?}");
    let found = seen(&store).await;
    assert_eq!(found[0], "Archive 1 1 b@example.org two");
    assert!(found[1].starts_with("INBOX ") && found[1].ends_with(" b@example.org one $Restored"), "{found:?}");
    store.check_counters().await;
    assert_eq!(store.restore(&snapshot, None).await.replay, None);
}

#[tokio::test]
async fn shared_values_of_header_and_flags_are_found_by_what_they_say() {
    let Some(store) = Store::named("archiveopteryx").await else { return };
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let lost = deliver(&store, inbox, "b@Example.ORG", "one").await;
    let say = "SELECT driver.tag(l, 'Work'), driver.tag(l, 'mine') FROM unnest($1::text[]) l";
    store.act_on_links(say, &[&lost]).await;
    let annotate = "WITH n AS (INSERT INTO annotation_names (name) VALUES ('/comment') RETURNING id)
                    INSERT INTO annotations (mailbox, uid, owner, name, value)
                    SELECT m.mailbox, m.uid, b.owner, n.id, 'keep' FROM n, mailbox_messages m JOIN mailboxes b ON b.id = m.mailbox";
    store.client.batch_execute(annotate).await.unwrap();
    let before = seen(&store).await;
    let snapshot = MemorySource::take(&store.reader).await;
    store.act_on_links("SELECT driver.lose($1, '{}'), driver.roll_back()", &[&lost]).await;
    // The numbers of the lost values are those of others now; one of them is another spelling of a lost one.
    let other = deliver(&store, inbox, "c@example.net", "second").await;
    let same = deliver(&store, inbox, "b@example.org", "three").await;
    store
        .act_on_links("SELECT driver.tag(l, 'other'), driver.tag(l, 'work') FROM unnest($1::text[]) l", &[&other])
        .await;
    store.client.batch_execute("INSERT INTO annotation_names (name) VALUES ('/altsubject')").await.unwrap();
    assert_eq!(store.restore(&snapshot, None).await.mail.restored, 1);
    let found = seen(&store).await;
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].ends_with(" c@example.net second other,work"), "{other} {found:?}");
    assert!(found[1].ends_with(" b@example.org three"), "{same} {found:?}");
    assert!(
        found[2].ends_with(" b@example.org one $Restored,mine,work a@example.org=/comment=keep"),
        "{before:?} {found:?}"
    );
    store.check_counters().await;
    assert_eq!(store.restore(&snapshot, None).await.replay, None);
}

#[tokio::test]
async fn a_tombstone_is_proven_by_the_mail_that_it_keeps_and_undo_leaves_one() {
    let Some(store) = Store::named("archiveopteryx").await else { return };
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let archive = store.mailbox(account, "Archive", 0).await;
    let [gone, moved, lost, copied] = [2, 3, 4, 5].map(Content);
    let gone = store.deliver(inbox, gone, 1, 0).await;
    let moved = store.deliver(inbox, moved, 2, 0).await;
    let lost = store.deliver(inbox, lost, 3, 0).await;
    let copied = store.deliver(inbox, copied, 4, 0).await;
    store.tag(lost, "work").await;
    // What hangs on a part comes back with it.
    let unparsed = "SELECT count(*) FROM unparsed_messages u JOIN part_numbers p USING (bodypart)";
    let unparsed = async || store.client.query_one(unparsed, &[]).await.unwrap().get::<_, i64>(0);
    let parse = "INSERT INTO unparsed_messages SELECT p.bodypart FROM part_numbers p JOIN bodyparts b ON b.id = p.bodypart WHERE b.text = $1";
    assert_eq!(store.client.execute(parse, &[&"text of 4\r\n"]).await.unwrap(), 1);
    let snapshot = MemorySource::take(&store.reader).await;
    store.expunge(gone, "expunge").await;
    store.move_to(moved, archive, 5).await;
    // Its mail is kept by the copy's tombstone alone.
    let copy = store.copy(copied, archive, 6).await;
    store.expunge(copy, "expunge").await;
    store.lose(&[lost, copied], &[], false).await;
    assert_eq!(unparsed().await, 0);
    let mails = "SELECT count(*) FROM messages";
    let mails = async || store.client.query_one(mails, &[]).await.unwrap().get::<_, i64>(0);
    assert_eq!(mails().await, 3);
    let comparison = store.compare(&snapshot, None).await;
    let count =
        |class, reason| comparison.leftovers.iter().filter(|one| (one.class, one.reason) == (class, reason)).count();
    assert_eq!(count(Class::DeletedByUser, Reason::Tombstone), 2);
    assert_eq!(count(Class::Absent, Reason::NoTrace), 2);
    let report = store.restore(&snapshot, None).await;
    assert_eq!(report.mail.restored, 2, "{report:?}");
    assert_eq!(unparsed().await, 1);
    // The one that was kept is linked to again.
    assert_eq!(mails().await, 4);

    let undone = async |replay: Option<String>| {
        let layout = store.compare(&snapshot, None).await.layout;
        undo(&store.reader, &layout, &UndoOptions { replay: replay.unwrap(), ..Default::default() }).await.unwrap()
    };
    let report = undone(report.replay).await;
    assert_eq!((report.undone, report.touched, store.found().await.len()), (2, 0, 1), "{report:?}");
    let left = "SELECT count(*) FROM deleted_messages WHERE reason = 'restore undone' AND modseq < (SELECT nextmodseq FROM mailboxes WHERE id = mailbox)";
    assert_eq!(store.client.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 2);
    let flags: i64 = store.client.query_one("SELECT count(*) FROM flags", &[]).await.unwrap().get(0);
    assert_eq!(flags, 0, "flags go with the link");
    store.check_counters().await;

    // The tombstones of an undo are no deletions by users.
    assert_eq!(store.restore(&snapshot, None).await.mail.restored, 2);
    let found = store.found().await;
    let again = found.iter().find(|one| one.content == Some(Content(4))).unwrap();
    store.expunge(again.id, "expunge").await;
    assert_eq!(store.restore(&snapshot, None).await.mail.restored, 0);
    store.check_counters().await;
}

#[tokio::test]
async fn a_side_folder_is_made_below_the_home_of_its_account() {
    let Some(store) = Store::named("archiveopteryx").await else { return };
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let lost = store.deliver(inbox, Content(2), 1, 0).await;
    let snapshot = MemorySource::take(&store.reader).await;
    store.lose(&[lost], &[], true).await;
    let plan = PlanOptions { into_folder: Some("Found".to_owned()), ..Default::default() };
    let report = store.restore_with(&snapshot, None, &plan, ApplyOptions::default()).await;
    assert_eq!(report.mail.restored, 1, "{report:?}");
    let found: Vec<_> = store.found().await.into_iter().map(|one| (one.name, one.content)).collect();
    assert_eq!(found, [("Found/INBOX".to_owned(), Some(Content(2)))]);
    store.check_counters().await;
}

#[tokio::test]
async fn a_tombstone_of_the_mail_that_took_all_numbers_of_a_lost_one_proves_nothing() {
    let Some(store) = Store::named("archiveopteryx").await else { return };
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let lost = store.deliver(inbox, Content(2), 1, 0).await;
    let snapshot = MemorySource::take(&store.reader).await;
    store.lose(&[lost], &[], true).await;
    // The same mailbox, UID and message number.
    let other = store.deliver(inbox, Content(6), 9, 0).await;
    assert_eq!(other, lost);
    store.expunge(other, "expunge").await;
    assert_eq!(store.restore(&snapshot, None).await.mail.restored, 1);
    let found: Vec<_> = store.found().await.into_iter().map(|one| one.content).collect();
    assert_eq!(found, [Some(Content(2))]);
    store.check_counters().await;
}

#[tokio::test]
async fn a_field_name_that_the_server_knows_by_number_comes_back_under_it_or_stops_the_restore() {
    let Some(store) = Store::named("archiveopteryx").await else { return };
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let lost = deliver(&store, inbox, "b@example.org", "one").await;
    let snapshot = MemorySource::take(&store.reader).await;
    let lose = "SELECT driver.lose($1, '{}'), driver.roll_back()";
    store.act_on_links(lose, &[&lost]).await;
    store.client.batch_execute("DELETE FROM field_names WHERE name IN ('From', 'Subject')").await.unwrap();
    assert_eq!(store.restore(&snapshot, None).await.mail.restored, 1);
    let found = seen(&store).await;
    assert!(found.len() == 1 && found[0].ends_with(" b@example.org one $Restored"), "{found:?}");

    // Its number is another's now.
    let again =
        store.client.query_one("SELECT format('(%s,%s)', mailbox, uid) FROM mailbox_messages", &[]).await.unwrap();
    store.act_on_links(lose, &[&again.get(0)]).await;
    store
        .client
        .batch_execute("DROP SCHEMA restante CASCADE; UPDATE field_names SET name = 'X-Other' WHERE id = 1")
        .await
        .unwrap();
    let plan = Plan::new(store.compare(&snapshot, None).await, &PlanOptions::default());
    let stopped = Apply::new(plan, ApplyOptions::default());
    let stopped = stopped.run(&store.session().await, &snapshot, &store.profile, &Silent).await;
    assert!(matches!(stopped, Err(ReplayError::ValueTaken { .. })), "{stopped:?}");
    assert_eq!(seen(&store).await.len(), 0);
}

#[tokio::test]
async fn a_flag_that_its_user_took_off_stays_off() {
    let Some(store) = Store::named("archiveopteryx").await else { return };
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let kept = store.deliver(inbox, Content(2), 1, 0).await;
    let lost = store.deliver(inbox, Content(3), 2, 0).await;
    for id in [kept, lost] {
        store.tag(id, "work").await;
    }
    let snapshot = MemorySource::take(&store.reader).await;
    store.client.batch_execute("DELETE FROM flags").await.unwrap();
    store.lose(&[lost], &[], true).await;
    let report = store.restore(&snapshot, None).await;
    assert_eq!((report.mail.restored, report.repaired_messages), (1, 0), "{report:?}");
    let tags = store.tags().await;
    assert_eq!(tags.get(&kept), None);
    assert_eq!(tags.into_values().collect::<Vec<_>>(), [["work"]]);
}
