//! What people's mail programs will make of it, in plain words, for whoever must answer their calls.
//!
//! RFC 9051 §2.3.1.1 and RFC 4549 §4.3.1: a client asks for what is above the highest UID that it has seen, and forgets a mailbox whose
//! UIDVALIDITY changed.

use crate::compare::layout::Layout;

/// Sentences about messages that come back, and mailboxes that get another UIDVALIDITY.
pub(super) fn clients(layout: &Layout, messages: u64, uidvalidity: u64) -> Vec<String> {
    let mut said = Vec::new();
    if layout.message.uid.is_none() {
        return said;
    }
    if messages > 0 {
        said.push(
            "IMAP: what is put back has new UIDs, so clients fetch it at their next visit, as messages with old dates"
                .to_owned(),
        );
    }
    if uidvalidity > 0 {
        let mailboxes =
            if uidvalidity == 1 { "1 mailbox gets".to_owned() } else { format!("{uidvalidity} mailboxes get") };
        said.push(format!(
            "IMAP: {mailboxes} another UIDVALIDITY, so clients drop what they keep of it and download the whole mailbox again; \
             mbsync and OfflineIMAP may stop at it until their user acts"
        ));
    }
    if messages > 0 {
        said.push("POP: clients that leave mail on the server download what is put back once more".to_owned());
        said.push(
            "JMAP: a log of changes that the store keeps for JMAP is left alone and nothing is pushed, so clients see what is put back \
             when they read their lists anew"
                .to_owned(),
        );
    }
    said
}
