//! What users did before and after the damage: it stands.

use super::trial::Trial;

pub async fn moved(trial: &mut Trial<'_>) {
    if !trial.ways.accounts {
        return trial.cannot_occur("no mail is moved from one mailing list to another");
    }
    let (inbox, archive) = (trial.inbox("a").await, trial.folder("Archive").await);
    let ids = trial.deliver(inbox, [2, 3, 5]).await;
    trial.snapshot().await;
    trial.move_to(ids[0], archive).await;
    trial.lose(&ids[2..]).await;
    trial.move_to(ids[1], archive).await;
    if trial.ways.tombstones {
        trial.expect("a/INBOX: 5; a/Archive: 2 3");
        let by = "deleted-by-user: tombstone";
        trial.expect_lost_and(&[by, by]);
    } else {
        // A move before the damage looks like a copy whose original was lost.
        trial.expect("a/INBOX: 2 5; a/Archive: 2 3");
        trial.expect_lost_and(&["absent: no-trace", "deleted-by-user: moved: stored-bytes"]);
    }
}

pub async fn moved_in_its_own_row(trial: &mut Trial<'_>) {
    if !trial.ways.moves_row {
        return trial.cannot_occur("a move makes a new row");
    }
    let (inbox, archive) = (trial.inbox("a").await, trial.folder("Archive").await);
    let ids = trial.deliver(inbox, [2, 3, 5]).await;
    trial.snapshot().await;
    trial.store.move_row(ids[0], archive).await;
    trial.lose(&ids[2..]).await;
    trial.store.move_row(ids[1], archive).await;
    trial.expect("a/INBOX: 5; a/Archive: 2 3");
    let by = "deleted-by-user: moved-itself";
    trial.expect_lost_and(&[by, by]);
}

pub async fn copied_and_then_lost(trial: &mut Trial<'_>) {
    let (inbox, archive) = (trial.inbox("a").await, trial.folder("Archive").await);
    let ids = trial.deliver(inbox, [2, 3]).await;
    trial.snapshot().await;
    trial.copy(ids[1], archive).await;
    trial.lose(&ids[1..]).await;
    trial.expect("a/INBOX: 2 3; a/Archive: 3");
    trial.expect_lost_alone();
}

pub async fn expunged(trial: &mut Trial<'_>) {
    let inbox = trial.inbox("a").await;
    let ids = trial.deliver(inbox, [2, 3, 4, 5]).await;
    trial.expunge(ids[3]).await;
    trial.snapshot().await;
    trial.expunge(ids[0]).await;
    trial.lose(&ids[2..3]).await;
    trial.expunge(ids[1]).await;
    if trial.ways.tombstones {
        trial.expect("a/INBOX: 4");
        let by = "deleted-by-user: tombstone";
        trial.expect_classes(&["absent: no-trace", by, by]);
    } else {
        trial.deletions_are_unknown();
        trial.expect("a/INBOX: 2 3 4");
    }
}

const RENAMED: &str = "nothing but its name tells a mailbox, so a renamed one is another";

pub async fn a_mailbox_renamed(trial: &mut Trial<'_>) {
    if !trial.ways.mailboxes_told_apart {
        return trial.cannot_occur(RENAMED);
    }
    let (_, folder) = (trial.inbox("a").await, trial.folder("folder").await);
    let ids = trial.deliver(folder, [2, 3]).await;
    trial.snapshot().await;
    trial.store.rename_mailbox(folder, "renamed").await;
    trial.lose(&ids[1..]).await;
    trial.expect("a/renamed: 2 3");
    trial.expect_lost_alone();
}

pub async fn a_mailbox_renamed_and_its_old_name_given_to_another(trial: &mut Trial<'_>) {
    if !trial.ways.mailboxes_told_apart {
        return trial.cannot_occur(RENAMED);
    }
    let (_, folder) = (trial.inbox("a").await, trial.folder("folder").await);
    let ids = trial.deliver(folder, [2, 3]).await;
    trial.snapshot().await;
    trial.store.rename_mailbox(folder, "renamed").await;
    trial.lose(&ids[1..]).await;
    let other = trial.folder("folder").await;
    trial.deliver(other, [20]).await;
    trial.expect("a/renamed: 2 3; a/folder: 20");
    trial.expect_lost_alone();
}

pub async fn a_mailbox_deleted(trial: &mut Trial<'_>) {
    let (inbox, folder) = (trial.inbox("a").await, trial.folder("folder").await);
    let [kept] = trial.deliver(inbox, [2]).await;
    let ids = trial.deliver(folder, [3, 5]).await;
    trial.snapshot().await;
    trial.lose(&[kept, ids[0]]).await;
    trial.store.delete_mailbox(folder).await;
    if trial.ways.deleted_mailboxes {
        trial.expect("a/INBOX: 2");
    } else {
        trial.deletions_are_unknown();
        trial.expect("a/INBOX: 2; a/folder: 3 5");
    }
}

pub async fn a_mailbox_deleted_and_made_anew_under_its_name(trial: &mut Trial<'_>) {
    let (inbox, folder) = (trial.inbox("a").await, trial.folder("folder").await);
    let [kept] = trial.deliver(inbox, [2]).await;
    let ids = trial.deliver(folder, [3, 5]).await;
    trial.snapshot().await;
    trial.lose(&[kept, ids[0]]).await;
    trial.store.delete_mailbox(folder).await;
    let anew = trial.folder("folder").await;
    trial.deliver(anew, [20]).await;
    if trial.ways.deleted_mailboxes && trial.ways.mailboxes_told_apart {
        trial.expect("a/INBOX: 2; a/folder: 20");
    } else if trial.ways.deleted_mailboxes {
        // What was in it when it was deleted has a tombstone; what was lost before may have been in this one.
        trial.expect("a/INBOX: 2; a/folder: 3 20");
    } else {
        trial.deletions_are_unknown();
        trial.expect("a/INBOX: 2; a/folder: 3 5 20");
    }
}

pub async fn an_account_deleted(trial: &mut Trial<'_>) {
    if !trial.ways.accounts {
        return trial.cannot_occur("nobody owns a mailbox");
    }
    let (inbox, of_c) = (trial.inbox("a").await, trial.inbox("c").await);
    let c = trial.account("c").await;
    let ids = trial.deliver(inbox, [2, 3]).await;
    trial.deliver(of_c, [5, 6]).await;
    trial.snapshot().await;
    trial.lose(&ids[1..]).await;
    trial.store.delete_account(c).await;
    if trial.ways.deleted_accounts {
        trial.expect("a/INBOX: 2 3");
    } else {
        trial.known_defect("an account that was deleted without a trace comes back as one that was lost");
        trial.expect("a/INBOX: 2 3; c/INBOX: 5 6");
    }
}

pub async fn a_tombstone_beside_a_living_equal_mail(trial: &mut Trial<'_>) {
    let inbox = trial.inbox("a").await;
    let ids = trial.deliver(inbox, [2, 3, 5, 6]).await;
    trial.snapshot().await;
    // Deleted, and sent again before and after the damage: it lives once, and the tombstone is the old one's.
    trial.expunge(ids[1]).await;
    trial.deliver(inbox, [3]).await;
    trial.lose(&ids[3..]).await;
    trial.expunge(ids[2]).await;
    trial.deliver(inbox, [5]).await;
    if trial.ways.tombstones || trial.ways.message_id_once {
        trial.expect("a/INBOX: 2 3 5 6");
    } else {
        // What came before the damage may have stood beside the one that was lost.
        trial.deletions_are_unknown();
        trial.expect("a/INBOX: 2 3 3 5 6");
    }
}

pub async fn appended_with_an_old_date(trial: &mut Trial<'_>) {
    if !trial.ways.saved {
        return trial.cannot_occur("nobody knows when a mail was saved");
    }
    if trial.is_naive() {
        return trial.cannot_occur("it knows no window");
    }
    let inbox = trial.inbox("a").await;
    let [old] = trial.deliver(inbox, [2]).await;
    let from = trial.now() + 1;
    let appended = trial.append(inbox, 3, 90_000).await;
    let [late] = trial.deliver(inbox, [5]).await;
    let to = trial.now() + 1;
    trial.snapshot().await;
    trial.lose(&[old, appended, late]).await;
    // Saved in the window, whatever date it bears.
    trial.window_of(from..to);
    trial.expect("a/INBOX: 3 5");
}

pub async fn old_rows_moved_to_the_lost_tail_by_a_flag_change(trial: &mut Trial<'_>) {
    let inbox = trial.inbox("a").await;
    let ids = trial.deliver(inbox, [2, 3, 4, 5, 6, 8]).await;
    trial.store.seen(ids[0], true).await;
    trial.store.seen(ids[1], true).await;
    trial.snapshot().await;
    let tail = trial.store.tail(2).await;
    trial.lose(&tail).await;
    trial.deliver(inbox, [20]).await;
    trial.expect("a/INBOX: 2* 3* 4 5 6 8 20");
    trial.expect_lost_alone();
}

pub async fn restored_once_and_then_deleted_by_its_user(trial: &mut Trial<'_>) {
    let (inbox, archive) = (trial.inbox("a").await, trial.folder("Archive").await);
    let ids = trial.deliver(inbox, [2, 3, 5]).await;
    trial.snapshot().await;
    trial.lose(&ids[1..]).await;
    trial.replay().await;
    trial.expect_now("a/INBOX: 2 3 5").await;
    for found in trial.store.found().await.into_iter().filter(|found| !ids.contains(&found.id)) {
        match found.content.unwrap().0 {
            3 => trial.expunge(found.id).await,
            _ => _ = trial.move_to(found.id, archive).await,
        }
    }
    trial.expect("a/INBOX: 2; a/Archive: 5");
}
