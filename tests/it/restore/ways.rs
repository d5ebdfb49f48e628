//! Where mail stores differ: what each can do, and what of it leaves a trace.

/// Read off the drivers in `fixtures/stores`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ways {
    /// A mail has flags of its own.
    pub flags: bool,
    /// Users put words on a mail.
    pub keywords: bool,
    /// Those are rows of their own.
    pub children: bool,
    /// What was put back bears a mark.
    pub marks: bool,
    pub uids: bool,
    /// The UID is the key, so one is never issued again without the other.
    pub uid_is_key: bool,
    /// A mailbox whose UIDs were issued again can say so by another UIDVALIDITY.
    pub uidvalidity: bool,
    /// An expunge and a move leave a trace; without one nobody can tell them from a loss.
    pub tombstones: bool,
    /// Instead a log of changes tells for a time what was destroyed, and the engine does not read it.
    pub logs_deletions: bool,
    /// That trace stays when the mailbox is lost.
    pub tombstones_stay: bool,
    /// A deleted mailbox leaves a trace.
    pub deleted_mailboxes: bool,
    /// A deleted account leaves a trace.
    pub deleted_accounts: bool,
    /// What a living message lost of its flags and keywords is told from what its user took off.
    pub children_come_back: bool,
    /// What a mail says is in the database, not its hash alone.
    pub bodies: bool,
    /// What is kept tells a mail from the same one that came another way.
    pub headers: bool,
    /// Mailboxes belong to accounts, which come back with them.
    pub accounts: bool,
    /// Keys of mailboxes and accounts are numbers, and so may be issued again.
    pub numbered: bool,
    /// A mailbox is told from another one that has its name.
    pub mailboxes_told_apart: bool,
    /// It is known when a mail came into its mailbox, whatever date it bears.
    pub saved: bool,
    /// A mail can be copied into the mailbox that it lies in.
    pub copies_within: bool,
    /// The very row can be moved, without a trace.
    pub moves_row: bool,
    /// A mailbox takes an equal mail a second time.
    pub equal_mail_twice: bool,
    /// A mailbox takes each Message-ID once, whatever the mail says.
    pub message_id_once: bool,
    /// A mail without a Message-ID is given one, another one at each delivery.
    pub makes_message_ids: bool,
    /// `driver.check()` minds what a mail that lost its parts misses.
    pub checks_parts: bool,
}

/// All that can be told is told.
pub const REFERENCE: Ways = Ways {
    flags: true,
    keywords: true,
    children: true,
    marks: true,
    uids: true,
    uid_is_key: false,
    uidvalidity: true,
    tombstones: true,
    logs_deletions: false,
    tombstones_stay: true,
    deleted_mailboxes: true,
    deleted_accounts: false,
    children_come_back: false,
    bodies: true,
    headers: true,
    accounts: true,
    numbered: true,
    mailboxes_told_apart: true,
    saved: true,
    copies_within: true,
    moves_row: true,
    equal_mail_twice: true,
    message_id_once: false,
    makes_message_ids: false,
    checks_parts: false,
};

/// A tombstone is a row of the mailbox, and goes with it. `driver.copy` refuses a message's own mailbox.
const SORA: Ways = Ways {
    tombstones_stay: false,
    deleted_accounts: true,
    children_come_back: true,
    bodies: false,
    copies_within: false,
    moves_row: false,
    equal_mail_twice: false,
    makes_message_ids: true,
    checks_parts: true,
    ..REFERENCE
};

/// Users read whole threads and vote for mails, whose text alone is kept; nobody owns a list, and all that is gone is gone without a trace.
const HYPERKITTY: Ways = Ways {
    flags: false,
    marks: false,
    uids: false,
    uidvalidity: false,
    tombstones: false,
    tombstones_stay: false,
    deleted_mailboxes: false,
    moves_row: false,
    headers: false,
    accounts: false,
    equal_mail_twice: false,
    message_id_once: true,
    makes_message_ids: true,
    ..REFERENCE
};

/// Mailboxes have random keys, and accounts are their names. Flags and keywords lie in the link. What was destroyed stands in `email_change` and
/// `mailbox_change`, for JMAP clients; that a mail left one of several mailboxes does not.
const JAMES: Ways = Ways {
    children: false,
    numbered: false,
    tombstones: false,
    logs_deletions: true,
    tombstones_stay: false,
    deleted_mailboxes: false,
    moves_row: false,
    checks_parts: true,
    ..REFERENCE
};

/// UIDVALIDITY is the key of the mailbox, and a deleted one takes its tombstones along.
const DBMAIL: Ways = Ways {
    uid_is_key: true,
    uidvalidity: false,
    tombstones_stay: false,
    deleted_mailboxes: false,
    mailboxes_told_apart: false,
    saved: false,
    moves_row: false,
    ..REFERENCE
};

/// A mailbox that is made anew is the old row again.
const ARCHIVEOPTERYX: Ways = Ways {
    tombstones_stay: false,
    deleted_accounts: true,
    bodies: false,
    mailboxes_told_apart: false,
    saved: false,
    moves_row: false,
    ..REFERENCE
};

impl Ways {
    pub fn of(store: &str) -> Self {
        match store {
            "sora" => SORA,
            "hyperkitty" => HYPERKITTY,
            "james" => JAMES,
            "dbmail" => DBMAIL,
            "archiveopteryx" => ARCHIVEOPTERYX,
            _ => panic!("nobody said what {store} can do"),
        }
    }
}
