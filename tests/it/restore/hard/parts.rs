//! What belongs to messages: parts that they share, and children.

use super::trial::Trial;

pub async fn only_the_parts_lost(trial: &mut Trial<'_>) {
    let inbox = trial.inbox("a").await;
    // 3 and 15 have the same attachment, 4 has none.
    let ids = trial.deliver(inbox, [3, 15, 6, 4]).await;
    trial.snapshot().await;
    trial.lose_parts(&ids[..3]).await;
    trial.deliver(inbox, [20]).await;
    trial.expect("a/INBOX: 3 4 6 15 20");
    trial.expect_classes(&[]);
}

pub async fn only_the_children_lost(trial: &mut Trial<'_>) {
    if !trial.ways.children {
        return trial.cannot_occur("flags and keywords are in the message's own row");
    }
    let inbox = trial.inbox("a").await;
    let ids = trial.deliver(inbox, [2, 3, 4]).await;
    trial.store.seen(ids[0], true).await;
    trial.store.tag(ids[1], "work").await;
    trial.snapshot().await;
    trial.lose_children(&ids).await;
    trial.expect_classes(&[]);
    if trial.ways.children_come_back {
        trial.expect("a/INBOX: 2* 3#work 4");
    } else {
        trial.known_defect("keywords that a living message lost alone stay lost: its user may have taken them off");
        trial.expect("a/INBOX: 2* 3 4");
    }
}

pub async fn a_part_that_new_mail_shares_after_the_replay(trial: &mut Trial<'_>) {
    if trial.is_naive() {
        return trial.cannot_occur("it has no undo");
    }
    let inbox = trial.inbox("a").await;
    let ids = trial.deliver(inbox, [2, 3]).await;
    trial.snapshot().await;
    trial.lose(&ids[1..]).await;
    trial.replay().await;
    trial.deliver(inbox, [15]).await;
    trial.undo().await;
    trial.expect_now("a/INBOX: 2 15").await;
    trial.expect("a/INBOX: 2 3 15");
}
