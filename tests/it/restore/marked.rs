//! A store that keeps the rows of what its users deleted, marked, for a while: messages and mailboxes. Sora is one; it needs two extensions.

use restante::compare::{Class, Reason};
use restante::restore::undo::{UndoOptions, undo};

use super::memory::MemorySource;
use super::store::{Content, Store};

#[tokio::test]
async fn a_marked_row_is_a_tombstone_on_either_side_and_is_never_put_back() {
    let Some(store) = Store::named("sora").await else { return };
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let folder = store.mailbox(account, "folder", 0).await;
    let mut ids = Vec::new();
    for number in 2..6 {
        ids.push(store.deliver(inbox, Content(number), i64::from(number), 0).await);
    }
    let in_folder = store.deliver(folder, Content(8), 6, 0).await;
    store.expunge(ids[0], "expunge").await;
    store.delete_mailbox(folder).await;
    let again = store.mailbox(account, "folder", 7).await;
    let lost = store.deliver(again, Content(9), 8, 0).await;
    let snapshot = MemorySource::take(&store.reader).await;
    store.expunge(ids[1], "expunge").await;
    // The tombstone of before goes too, and what lies in the deleted mailbox; the name is that of a deleted mailbox now, and of no other.
    store.lose(&[ids[0], ids[2], in_folder, lost], &[again], true).await;
    let comparison = store.compare(&snapshot, None).await;
    let of = |id: i64| {
        let leftover = comparison.leftovers.iter().find(|one| one.key[..] == id.to_be_bytes());
        leftover.map(|one| (one.class, one.reason))
    };
    assert_eq!(of(ids[0]), None);
    assert_eq!(of(ids[1]), Some((Class::DeletedByUser, Reason::Tombstone)));
    assert_eq!(of(ids[2]), Some((Class::Absent, Reason::NoTrace)));
    assert_eq!(of(ids[3]), None);
    assert_eq!(of(in_folder), Some((Class::Orphan, Reason::MailboxDeleted)));
    assert_eq!(of(lost), Some((Class::Absent, Reason::NoTrace)));
    assert!(comparison.incomplete.messages.is_empty(), "what belongs to a tombstone belongs to no living message");
    assert_eq!(store.restore(&snapshot, None).await.mail.restored, 2);
    let mut found: Vec<_> = store.found().await.into_iter().map(|one| (one.name, one.content.unwrap().0)).collect();
    found.sort();
    assert_eq!(found, [("INBOX".to_owned(), 4), ("INBOX".to_owned(), 5), ("folder".to_owned(), 9)]);
    store.check_counters().await;
    assert_eq!(store.restore(&snapshot, None).await.replay, None);
}

#[tokio::test]
async fn what_hangs_on_a_lost_mailbox_comes_back_and_undo_marks_as_the_store_does() {
    let Some(store) = Store::named("sora").await else { return };
    let (one, two) = (store.account("a@example.org").await, store.account("b@example.org").await);
    let team = store.mailbox(one, "team", 0).await;
    let ids = [store.deliver(team, Content(2), 5, 0).await, store.deliver(team, Content(3), 6, 0).await];
    let shared = "INSERT INTO mailbox_acls (mailbox_id, account_id, identifier, rights) VALUES ($1, NULL, 'anyone', 'lr'), ($1, $2, 'b', 'lrs')";
    store.client.execute(shared, &[&team, &two]).await.unwrap();
    let snapshot = MemorySource::take(&store.reader).await;
    store.lose(&ids, &[team], true).await;
    // Its key, and those of its rights, are another's now.
    assert_eq!(store.mailbox(two, "private", 50).await, team);
    let private = "INSERT INTO mailbox_acls (mailbox_id, account_id, identifier, rights) VALUES ($1, $2, 'a', 'l')";
    store.client.execute(private, &[&team, &one]).await.unwrap();

    let report = store.restore(&snapshot, None).await;
    assert_eq!((report.mail.restored, report.mailboxes), (2, 1), "{report:?}");
    assert!(report.by_hand.iter().any(|line| line.contains("S3")), "{report:?}");
    let rights = "SELECT b.name, string_agg(l.identifier || ' ' || l.rights || ' ' || coalesce(l.account_id::text, '-'), ', ' ORDER BY 1)
                  FROM mailbox_acls l JOIN mailboxes b ON b.id = l.mailbox_id GROUP BY b.name ORDER BY 1";
    let rights: Vec<(String, String)> =
        store.client.query(rights, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
    let wanted =
        [("private".to_owned(), format!("a l {one}")), ("team".to_owned(), format!("anyone lr -, b lrs {two}"))];
    assert_eq!(rights, wanted);
    store.check_counters().await;

    let layout = store.compare(&snapshot, None).await.layout;
    let options = UndoOptions { replay: report.replay.unwrap(), ..Default::default() };
    let undone = undo(&store.reader, &layout, &options).await.unwrap();
    assert_eq!((undone.undone, store.found().await.len()), (2, 0));
    let marked = "SELECT count(*) FROM messages m JOIN message_state s ON s.message_id = m.id
                  WHERE m.expunged_at IS NOT NULL AND m.expunged_modseq > m.created_modseq";
    assert_eq!(store.client.query_one(marked, &[]).await.unwrap().get::<_, i64>(0), 2);
    store.check_counters().await;
    let redone = store.restore(&snapshot, None).await;
    assert_eq!((redone.mail.restored, store.found().await.len()), (2, 2), "{redone:?}");
    store.check_counters().await;
}

#[tokio::test]
async fn a_lost_account_that_has_no_name_but_its_number_comes_back_and_no_stranger_gets_its_mail() {
    let Some(store) = Store::named("sora").await else { return };
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let id = store.deliver(inbox, Content(2), 5, 0).await;
    let snapshot = MemorySource::take(&store.reader).await;
    store.lose(&[id], &[inbox], true).await;
    store
        .client
        .batch_execute("DELETE FROM credentials; DELETE FROM accounts; SELECT driver.roll_back()")
        .await
        .unwrap();
    assert_eq!(store.account("z@example.org").await, account);
    assert_eq!(store.mailbox(account, "INBOX", 50).await, inbox);

    let report = store.restore(&snapshot, None).await;
    assert_eq!((report.owners, report.mailboxes, report.mail.restored), (1, 1, 1), "{report:?}");
    let sql = "SELECT c.address, count(m.id) FROM credentials c JOIN mailboxes b USING (account_id) LEFT JOIN messages m ON m.mailbox_id = b.id
               AND m.account_id = c.account_id GROUP BY 1 ORDER BY 1";
    let mail: Vec<(String, i64)> =
        store.client.query(sql, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(mail, [("a@example.org".to_owned(), 1), ("z@example.org".to_owned(), 0)]);
    store.check_counters().await;
    assert_eq!(store.restore(&snapshot, None).await.replay, None);
}
