//! Numbers that were issued again after the counters went back: keys, UIDs, and what refers to them.

use super::trial::Trial;

pub async fn keys_of_lost_mail_issued_again(trial: &mut Trial<'_>) {
    let inbox = trial.inbox("a").await;
    let ids = trial.deliver(inbox, [2, 3, 4, 5]).await;
    trial.store.tag(ids[2], "mine").await;
    trial.store.seen(ids[3], true).await;
    trial.snapshot().await;
    trial.lose(&ids[2..]).await;
    let new = trial.deliver(inbox, [20, 21, 22]).await;
    trial.store.tag(new[0], "other").await;
    trial.expect("a/INBOX: 2 3 4#mine 5* 20#other 21 22");
    trial.expect_lost_alone();
}

pub async fn keys_of_lost_mailboxes_issued_again_to_a_stranger(trial: &mut Trial<'_>) {
    if !trial.ways.numbered {
        return trial.cannot_occur("keys of mailboxes are random");
    }
    let (inbox, folder) = (trial.inbox("a").await, trial.folder("folder").await);
    let of_b = trial.inbox("b").await;
    let team = trial.folder("team").await;
    let [kept] = trial.deliver(inbox, [2]).await;
    let ids = trial.deliver(folder, [3, 5]).await;
    let [of_team] = trial.deliver(team, [6]).await;
    trial.store.tag(ids[0], "mine").await;
    trial.snapshot().await;
    trial.lose_with(&[ids[0], ids[1], of_team], &[folder, team]).await;
    let b = trial.account("b").await;
    let private = [trial.mailbox(b, "private").await, trial.mailbox(b, "secret").await];
    trial.deliver(private[0], [20]).await;
    trial.deliver(private[1], [21]).await;
    trial.deliver(of_b, [22]).await;
    trial.store.seen(kept, true).await;
    trial.expect("a/INBOX: 2*; a/folder: 3#mine 5; a/team: 6; b/INBOX: 22; b/private: 20; b/secret: 21");
}

pub async fn keys_of_a_lost_account_issued_again_to_a_stranger(trial: &mut Trial<'_>) {
    if !trial.ways.accounts {
        return trial.cannot_occur("nobody owns a mailbox");
    }
    if !trial.ways.numbered {
        return trial.cannot_occur("the key of an account is its name");
    }
    let inbox = trial.inbox("a").await;
    let of_c = trial.inbox("c").await;
    let c = trial.account("c").await;
    trial.deliver(inbox, [2]).await;
    let ids = trial.deliver(of_c, [3, 5]).await;
    trial.snapshot().await;
    trial.lose_with(&ids, &[of_c]).await;
    trial.store.lose_account(c).await;
    let of_z = trial.inbox("z").await;
    trial.deliver(of_z, [20]).await;
    trial.expect("a/INBOX: 2; c/INBOX: 3 5; z/INBOX: 20");
}

pub async fn uids_issued_again_under_other_keys(trial: &mut Trial<'_>) {
    if !trial.ways.uids {
        return trial.cannot_occur("mail has no UIDs");
    }
    if trial.ways.uid_is_key {
        return trial.cannot_occur("the UID is the key");
    }
    let (inbox, archive) = (trial.inbox("a").await, trial.folder("Archive").await);
    let ids = trial.deliver(inbox, [2, 3]).await;
    // The highest key lives, so that no key is issued again; the UID is.
    trial.deliver(archive, [5]).await;
    trial.snapshot().await;
    trial.lose(&ids[1..]).await;
    trial.deliver(inbox, [20]).await;
    trial.expect("a/INBOX: 2 3 20; a/Archive: 5");
    trial.expect_lost_alone();
}

pub async fn a_tombstone_of_the_mail_that_took_a_lost_ones_numbers(trial: &mut Trial<'_>) {
    let inbox = trial.inbox("a").await;
    let ids = trial.deliver(inbox, [2, 3]).await;
    trial.snapshot().await;
    trial.lose(&ids[1..]).await;
    let [new] = trial.deliver(inbox, [20]).await;
    trial.expunge(new).await;
    trial.expect("a/INBOX: 2 3");
}

pub async fn parents_lost_with_the_mail(trial: &mut Trial<'_>) {
    let (inbox, folder) = (trial.inbox("a").await, trial.folder("folder").await);
    let empty = trial.folder("empty").await;
    trial.deliver(inbox, [2]).await;
    let ids = trial.deliver(folder, [3, 7, 4]).await;
    trial.store.seen(ids[2], true).await;
    trial.snapshot().await;
    trial.lose_with(&ids, &[folder, empty]).await;
    trial.deliver(inbox, [20]).await;
    trial.expect("a/INBOX: 2 20; a/folder: 3 7 4*");
}

pub async fn an_account_lost_with_all_it_had(trial: &mut Trial<'_>) {
    if !trial.ways.accounts {
        return trial.cannot_occur("nobody owns a mailbox");
    }
    let of_c = trial.inbox("c").await;
    let inbox = trial.inbox("a").await;
    let c = trial.account("c").await;
    let ids = trial.deliver(of_c, [3, 5]).await;
    trial.deliver(inbox, [2]).await;
    trial.snapshot().await;
    trial.lose_with(&ids, &[of_c]).await;
    trial.store.lose_account(c).await;
    trial.expect("a/INBOX: 2; c/INBOX: 3 5");
}
