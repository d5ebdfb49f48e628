//! Three ways to put mail back that come to mind first, in SQL over the reference store, and what each would have done in the hard cases.
//!
//! Each is given what a careful person gives it: parents before what belongs to them, rows whose parents are missing left out, one
//! transaction, the store's own triggers. `docs/testing.md` has the table.

use std::collections::BTreeMap;

use super::hard::trial::Mail;
use super::store::Store;

const SQL: &str = include_str!("naive.sql");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naive {
    /// `INSERT … ON CONFLICT DO NOTHING` of all rows of the snapshot.
    OnConflict,
    /// Mail whose Message-ID is not in its mailbox, delivered anew.
    MessageId,
    /// Rows whose key is not there, under their old key.
    Key,
}

impl Naive {
    pub const ALL: [Self; 3] = [Self::OnConflict, Self::MessageId, Self::Key];

    pub fn name(self) -> &'static str {
        match self {
            Self::OnConflict => "`ON CONFLICT DO NOTHING`",
            Self::MessageId => "Message-ID only",
            Self::Key => "key only",
        }
    }

    pub async fn snapshot(self, store: &Store) {
        store.client.batch_execute(SQL).await.unwrap_or_else(|error| panic!("naive.sql: {error:?}"));
    }

    /// The error of the server, where it refuses.
    pub async fn restore(self, store: &Store) -> Result<(), tokio_postgres::Error> {
        let function = match self {
            Self::OnConflict => "on_conflict",
            Self::MessageId => "message_id",
            Self::Key => "key",
        };
        store.client.batch_execute(&format!("SELECT naive.{function}()")).await
    }
}

/// What became of the mail, in words. Flags and keywords count when nothing else is wrong.
pub fn judge(wanted: &Mail, found: &Mail, refused: bool, is_broken: bool) -> String {
    if refused {
        return "refused by the server, nothing restored".to_owned();
    }
    let bare = |mail: &Mail| -> BTreeMap<String, Vec<String>> {
        let bare = |token: &String| token.split(['*', '#']).next().unwrap().to_owned();
        mail.iter().map(|(mailbox, mails)| (mailbox.clone(), mails.iter().map(bare).collect())).collect()
    };
    let account = |mailbox: &str| mailbox.split('/').next().unwrap().to_owned();
    let (wanted_bare, found_bare) = (bare(wanted), bare(found));
    let (mut lost, mut doubled, mut resurrected, mut stranger, mut damaged) = (0, 0, 0, 0, 0);
    let mut labels: Vec<&String> = wanted_bare.keys().chain(found_bare.keys()).collect();
    labels.sort();
    labels.dedup();
    for label in labels {
        let mut missing = wanted_bare.get(label).cloned().unwrap_or_default();
        for mail in found_bare.get(label).into_iter().flatten() {
            if let Some(at) = missing.iter().position(|one| one == mail) {
                missing.swap_remove(at);
                continue;
            }
            let is_of = |own: bool| {
                let mut mailboxes = wanted_bare.iter().filter(|(other, _)| (account(other) == account(label)) == own);
                mailboxes.any(|(_, mails)| mails.contains(mail))
            };
            match () {
                () if mail == "?" => damaged += 1,
                () if is_of(true) => doubled += 1,
                () if is_of(false) => stranger += 1,
                () => resurrected += 1,
            }
        }
        lost += missing.len();
    }
    // A mail without its parts is not lost as well.
    lost -= damaged.min(lost);
    let counts = [
        (lost, "lost"),
        (damaged, "damaged"),
        (doubled, "doubled"),
        (resurrected, "resurrected"),
        (stranger, "given to a stranger"),
    ];
    let mut told: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    if told.is_empty() && wanted != found {
        told.push("flags or keywords wrong".to_owned());
    }
    if is_broken {
        told.push("counters broken".to_owned());
    }
    if told.is_empty() { "right".to_owned() } else { told.join(", ") }
}
