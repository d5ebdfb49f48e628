//! Single messages of a snapshot, and what became of each: for the one who asks "I had a mail, where is it?"

use std::collections::HashMap;

use jiff::Timestamp;
use serde::Serialize;

use super::classify::{Comparison, instant};
use super::error::CompareError;
use super::parents::inline;
use super::row::{Class, Reason};
use super::source::{Pick, Source};
use super::window::Window;
use crate::repository::zone;

/// Which messages. Lists that are empty do not narrow.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub accounts: Vec<String>,
    pub mailboxes: Vec<String>,
    /// With or without the angle brackets.
    pub message_id: Option<String>,
    pub uid: Option<i64>,
    pub window: Window,
}

/// A message of the snapshot. Account and mailbox are hostile text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    pub account: String,
    pub mailbox: String,
    pub uid: Option<i64>,
    /// When it was saved or arrived.
    pub time: Option<Timestamp>,
    /// In bytes, as the store says.
    pub size: Option<i64>,
    /// Absent: it is alive.
    pub class: Option<Class>,
    pub reason: Option<Reason>,
}

impl Wanted {
    fn is_id(&self, field: Option<&[u8]>) -> bool {
        let bare = |text: &[u8]| {
            let text = text.trim_ascii();
            let text = text.strip_prefix(b"<").unwrap_or(text);
            text.strip_suffix(b">").unwrap_or(text).to_vec()
        };
        self.message_id.as_ref().is_none_or(|id| field.is_some_and(|field| bare(field) == bare(id.as_bytes())))
    }
}

/// Gives each message that is wanted to `each`, in no order that counts.
pub async fn find(
    source: &dyn Source,
    comparison: &Comparison,
    wanted: &Wanted,
    each: &mut (dyn FnMut(Found) + Send),
) -> Result<(), CompareError> {
    let (layout, parents) = (&comparison.layout, &comparison.parents);
    let message = &layout.message;
    if wanted.message_id.is_some() && message.message_id.is_none() {
        return Err(CompareError::NoMessageId);
    }
    if wanted.uid.is_some() && message.uid.is_none() {
        return Err(CompareError::NoUid);
    }
    let key = message.table.single_key()?;
    let lost: HashMap<&[u8], (Class, Reason)> =
        comparison.leftovers.iter().map(|leftover| (&leftover.key[..], (leftover.class, leftover.reason))).collect();
    let among = |list: &[String], name: &str| list.is_empty() || list.iter().any(|one| one == name);
    let segments = source.segments(&message.link.source).await?;
    let near = wanted.window.segments(layout, &segments);
    let contents = message.contents(source).await?;
    message
        .scan(source, &contents, Pick::Segments(&near), &mut |cells| {
            let field = |at: Option<usize>| inline(cells, at?);
            let number = |at: Option<usize>| zone::integer(field(at)?, false);
            let (time, uid) = (instant(&message.clocks, cells), number(message.uid));
            if !wanted.window.holds(time)
                || !wanted.is_id(field(message.message_id))
                || wanted.uid.is_some_and(|wanted| uid != Some(wanted))
            {
                return Ok(());
            }
            let of = field(Some(message.mailbox)).and_then(|key| parents.mailbox(key));
            let (account, mailbox) = of.map(|at| parents.label(at)).unwrap_or_default();
            if among(&wanted.accounts, &account) && among(&wanted.mailboxes, &mailbox) {
                let fate = field(Some(key)).and_then(|key| lost.get(key));
                each(Found {
                    account,
                    mailbox,
                    uid,
                    time,
                    size: number(message.size),
                    class: fate.map(|(class, _)| *class),
                    reason: fate.map(|(_, reason)| *reason),
                });
            }
            Ok(())
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_id_is_found_with_and_without_its_brackets() {
        let wanted = |id: &str| Wanted { message_id: Some(id.to_owned()), ..Default::default() };
        assert!(wanted("a@b").is_id(Some(b"<a@b>")) && wanted("<a@b>").is_id(Some(b" a@b")));
        assert!(!wanted("a@b").is_id(Some(b"<A@b>")) && !wanted("a@b").is_id(None));
        assert!(Wanted::default().is_id(None));
    }
}
