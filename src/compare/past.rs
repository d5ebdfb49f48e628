//! What earlier replays put back, from the journal that they left in the live store.
//!
//! Memory: about 50 bytes a restored message.

use std::collections::{HashMap, HashSet};

use super::error::CompareError;
use super::live;
use super::row::Print;
use crate::postgres::session::Session;
use crate::repository::zone;

/// The table of the journal, in Restante's own schema.
pub const JOURNAL: &str = "\"restante\".\"journal\"";
/// The accounts and mailboxes that replays made, beside it.
pub const PARENTS: &str = "\"restante\".\"parent\"";

#[derive(Debug, Default)]
pub struct Past {
    /// Source identity → print of the row that was put back.
    active: HashMap<Print, Print>,
    restored: HashSet<Print>,
    undone: HashSet<Print>,
    /// Source identity → UIDNEXT of the mailbox when its replay was undone last.
    taken_back: HashMap<Print, i64>,
    /// Source identity of an account or mailbox → live keys under which replays made it, as text.
    made: HashMap<Print, Vec<String>>,
}

impl Past {
    /// Reads the journal, if there is one.
    pub async fn read(session: &Session) -> Result<Self, CompareError> {
        let failed = |error| CompareError::Journal {
            message: crate::postgres::PostgresError::server("looking for it")(error).to_string(),
        };
        let there = format!("SELECT pg_catalog.to_regclass('{JOURNAL}') IS NOT NULL");
        if !session.client().query_one(&there, &[]).await.map_err(failed)?.get::<_, bool>(0) {
            return Ok(Self::default());
        }
        let mut past = Self::default();
        let select = format!("SELECT source, restored, buried, undone IS NOT NULL, next_uid FROM {JOURNAL}");
        let mut row = |row: &[Option<&[u8]>]| {
            let print = |field: Option<&[u8]>| Some(Print(field?.try_into().ok()?));
            if let (Some(source), Some(restored)) = (print(row[0]), print(row[1])) {
                if row[3] == Some(&[1]) {
                    past.undone.extend(print(row[2]));
                    if let Some(next) = row[4].and_then(|bytes| zone::integer(bytes, false)) {
                        let last = past.taken_back.entry(source).or_insert(next);
                        *last = next.max(*last);
                    }
                } else {
                    past.active.insert(source, restored);
                    past.restored.insert(restored);
                }
            }
            Ok(())
        };
        let read = live::copy(session, "reading the journal of replays", &select, 5, &mut row).await;
        read.map_err(|error| CompareError::Journal { message: error.to_string() })?;
        let made = session.client().query(&format!("SELECT source, key FROM {PARENTS}"), &[]).await.map_err(failed)?;
        for row in made {
            if let Ok(source) = row.get::<_, &[u8]>(0).try_into() {
                past.made.entry(Print(source)).or_default().push(row.get(1));
            }
        }
        Ok(past)
    }

    /// The print of the row that stands for this one since an earlier replay.
    pub fn restored_as(&self, source: &Print) -> Option<&Print> {
        self.active.get(source)
    }

    /// The first UID of what arrived after this message was taken back again: older mail in its mailbox stood beside it.
    pub fn stands_from(&self, source: &Print) -> Option<i64> {
        self.taken_back.get(source).copied()
    }

    /// Live keys under which replays made this account or mailbox of a snapshot.
    pub fn made(&self, parent: &Print) -> &[String] {
        self.made.get(parent).map_or(&[], Vec::as_slice)
    }

    /// Was this live row put back by a replay? Then it stands for its own source and for nobody else.
    pub fn is_restored(&self, row: &Print) -> bool {
        self.restored.contains(row)
    }

    /// Is this tombstone (its key and evidence) one that undoing a replay left? Then no user deleted anything.
    pub fn is_undone(&self, tombstone: &Print) -> bool {
        self.undone.contains(tombstone)
    }
}
