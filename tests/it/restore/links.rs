//! Stores whose mail lies in mailboxes by links: several may share one content.

use restante::restore::{ApplyOptions, Plan, PlanOptions};

use super::memory::MemorySource;
use super::store::{Content, Store};

/// What users see: mailbox and content.
async fn seen(store: &Store) -> Vec<(String, u32)> {
    let found = store.found().await.into_iter();
    let mut seen: Vec<_> = found.map(|one| (one.name, one.content.unwrap().0)).collect();
    seen.sort();
    seen
}

async fn contents(store: &Store) -> Vec<i64> {
    let rows = store.client.query("SELECT id FROM dbmail_physmessage ORDER BY id", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn a_living_content_is_linked_to_again_and_a_lost_one_comes_back_once_for_all_its_links() {
    for batch_messages in [1, 200] {
        let store = Store::named("dbmail").await.unwrap();
        let account = store.account("a@example.org").await;
        let inbox = store.mailbox(account, "INBOX", 0).await;
        let archive = store.mailbox(account, "Archive", 0).await;
        let kept = store.deliver(inbox, Content(2), 1, 0).await;
        let gone = store.deliver(inbox, Content(3), 2, 0).await;
        let copies = [store.copy(kept, archive, 3).await, store.copy(gone, archive, 4).await];
        let snapshot = MemorySource::take(&store.reader).await;
        store.lose(&[copies[0], gone, copies[1]], &[], true).await;
        assert_eq!(contents(&store).await.len(), 1);

        let plan = Plan::new(store.compare(&snapshot, None).await, &PlanOptions::default());
        let report = store.apply(&snapshot, plan, ApplyOptions { batch_messages, ..Default::default() }).await;
        assert_eq!(report.mail.restored, 3, "{report:?}");
        let all = [("Archive", 2), ("Archive", 3), ("INBOX", 2), ("INBOX", 3)];
        assert_eq!(seen(&store).await, all.map(|(name, content)| (name.to_owned(), content)));
        assert_eq!(contents(&store).await.len(), 2);
        store.check_counters().await;
        assert_eq!(store.restore(&snapshot, None).await.replay, None);
    }
}

#[tokio::test]
async fn a_content_under_the_key_of_a_lost_one_is_another() {
    let store = Store::named("dbmail").await.unwrap();
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let lost = store.deliver(inbox, Content(2), 1, 0).await;
    let snapshot = MemorySource::take(&store.reader).await;
    let before = contents(&store).await;
    store.lose(&[lost], &[], true).await;
    // In the same second, and as long.
    store.deliver(inbox, Content(6), 1, 0).await;
    assert_eq!(contents(&store).await, before);
    assert_eq!(store.restore(&snapshot, None).await.mail.restored, 1);
    assert_eq!(seen(&store).await, [("INBOX".to_owned(), 2), ("INBOX".to_owned(), 6)]);
    store.check_counters().await;
}
