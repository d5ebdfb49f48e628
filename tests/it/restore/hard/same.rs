//! Mails that are the same and do not look it, and mails that look the same and are not.

use restante::restore::Doubtful;

use super::trial::Trial;
use crate::restore::store::{ANOTHER_WAY, WITH_FOOTER, WRAPPED_AGAIN};

/// The mail came again as `variant`; where the store has its bytes it is known for the same.
async fn came_again_as(trial: &mut Trial<'_>, variant: u32, name: &str, rung: &'static str) {
    let inbox = trial.inbox("a").await;
    let ids = trial.deliver(inbox, [2, 4, 10]).await;
    trial.snapshot().await;
    trial.lose(&ids[1..]).await;
    trial.deliver(inbox, [variant + 4]).await;
    let (name, rung) = if trial.ways.headers { (name, rung) } else { ("", "duplicate: copy: stored-bytes") };
    if trial.ways.bodies {
        trial.expect(&format!("a/INBOX: 2 4{name} 10"));
        trial.expect_classes(&["absent: no-trace", rung]);
    } else {
        // Another hash is all that can be seen.
        trial.expect(&format!("a/INBOX: 2 4 4{name} 10"));
        trial.expect_lost_alone();
    }
}

pub async fn delivered_again_with_other_received_lines(trial: &mut Trial<'_>) {
    came_again_as(trial, ANOTHER_WAY, "+way", "duplicate: copy: without-trace").await;
}

pub async fn wrapped_again_by_list_software(trial: &mut Trial<'_>) {
    came_again_as(trial, WRAPPED_AGAIN, "+wrapped", "duplicate: copy: same-id-same-parts").await;
}

pub async fn another_mail_under_the_same_message_id(trial: &mut Trial<'_>) {
    if trial.ways.message_id_once {
        return trial.cannot_occur("a mailbox takes each Message-ID once");
    }
    let inbox = trial.inbox("a").await;
    // 1, 8 and 15 share one.
    let ids = trial.deliver(inbox, [2, 4, 1, 8]).await;
    trial.snapshot().await;
    trial.lose(&ids[1..]).await;
    trial.deliver(inbox, [WITH_FOOTER + 4, 15]).await;
    trial.expect("a/INBOX: 1 2 4 4+footer 8 15");
    trial.expect_lost_alone();
}

pub async fn no_message_id(trial: &mut Trial<'_>) {
    let inbox = trial.inbox("a").await;
    let ids = trial.deliver(inbox, [7, 14, 21, 2]).await;
    trial.snapshot().await;
    trial.lose(&ids[1..]).await;
    // One of them comes again, and one that nobody knew.
    trial.deliver(inbox, [14, 28]).await;
    if trial.ways.makes_message_ids && !trial.ways.headers {
        // Under another Message-ID it is another mail: all that is left to go by is its text.
        trial.expect("a/INBOX: 2 7 14 14 21 28");
    } else {
        trial.expect("a/INBOX: 2 7 14 21 28");
    }
}

pub async fn two_equal_copies_of_which_one_is_lost(trial: &mut Trial<'_>) {
    if !trial.ways.equal_mail_twice {
        return trial.cannot_occur("a mailbox takes an equal mail once");
    }
    let inbox = trial.inbox("a").await;
    let ids = trial.deliver(inbox, [3, 5, 3]).await;
    trial.snapshot().await;
    trial.lose(&ids[2..]).await;
    trial.expect("a/INBOX: 3 3 5");
    trial.expect_lost_alone();
}

pub async fn two_equal_copies_of_which_both_are_lost(trial: &mut Trial<'_>) {
    if !trial.ways.equal_mail_twice {
        return trial.cannot_occur("a mailbox takes an equal mail once");
    }
    let inbox = trial.inbox("a").await;
    let ids = trial.deliver(inbox, [2, 3, 3, 6, 6]).await;
    trial.snapshot().await;
    trial.lose(&ids[1..]).await;
    // Of one pair a third came meanwhile: it stands for one of the two.
    trial.deliver(inbox, [6]).await;
    trial.expect("a/INBOX: 2 3 3 6 6");
}

pub async fn copies_in_inbox_and_archive_of_which_one_is_lost(trial: &mut Trial<'_>) {
    let (inbox, archive) = (trial.inbox("a").await, trial.folder("Archive").await);
    let ids = trial.deliver(inbox, [3, 5]).await;
    trial.copy(ids[0], archive).await;
    let in_archive = trial.copy(ids[1], archive).await;
    trial.snapshot().await;
    trial.lose(&[ids[0], in_archive]).await;
    trial.expect("a/INBOX: 3 5; a/Archive: 3 5");
    trial.expect_lost_alone();
}

pub async fn a_lost_mail_that_came_again_elsewhere_goes_aside_when_told(trial: &mut Trial<'_>) {
    if trial.is_naive() {
        return trial.cannot_occur("it knows no doubt");
    }
    let (inbox, archive) = (trial.inbox("a").await, trial.folder("Archive").await);
    let ids = trial.deliver(inbox, [3, 5]).await;
    trial.snapshot().await;
    trial.lose(&ids[..1]).await;
    trial.deliver(archive, [3]).await;
    trial.plan.doubtful = Doubtful::SideFolder;
    if !trial.ways.accounts {
        // Of another mailing list it says nothing.
        trial.expect("a/INBOX: 3 5; a/Archive: 3");
        trial.expect_lost_alone();
    } else {
        trial.expect("a/INBOX: 5; a/Archive: 3; a/Recovered/INBOX: 3");
        trial.expect_classes(&["cannot-tell: copy-elsewhere: stored-bytes"]);
    }
}

pub async fn a_lost_mail_that_came_again_elsewhere_is_left_out_when_told(trial: &mut Trial<'_>) {
    a_lost_mail_that_came_again_elsewhere_goes_aside_when_told(trial).await;
    trial.plan.doubtful = Doubtful::Skip;
    if trial.ways.accounts {
        trial.expect("a/INBOX: 5; a/Archive: 3");
    }
}
