//! Numbers that a mailbox issues: a column of the mailbox that keeps pace with a column of what lies in it.

use std::collections::HashMap;

use super::description::Kind;
use super::store::{At, Reference, Store};
use crate::profile::CounterKind;

/// A column of the mailbox against one of its content.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counter {
    pub content: At,
    pub mailbox: At,
    pub kind: CounterKind,
    /// Mailboxes with content, and those of them in which the counter is just what the highest number says.
    pub mailboxes: usize,
    pub exact: usize,
}

impl Counter {
    pub fn share(&self) -> f64 {
        self.exact as f64 / self.mailboxes.max(1) as f64
    }
}

/// All pairs of columns that agree in every mailbox that was seen. Two mailboxes are too few to tell a counter from chance, unless they are all.
pub fn counters(store: &Store<'_>, link: &Reference) -> Vec<Counter> {
    let ([own], [key]) = (link.columns.as_slice(), link.referenced.as_slice()) else { return Vec::new() };
    let (own, key) = ((link.from, *own), (link.to, *key));
    let boxes = store.rows_by(key);
    let integers = |table: usize, but: At| {
        let columns = store.columns(table).filter(move |(at, column)| *at != but && column.kind == Kind::Integer);
        columns.map(|(at, _)| at).collect::<Vec<At>>()
    };
    let mut found = Vec::new();
    for content in integers(link.from, own) {
        if store.refers(content) || store.of(content).distinct < 2 {
            continue;
        }
        let mut highest: HashMap<u64, i64> = HashMap::new();
        for row in &store.table(link.from).sample {
            if let (Some(mailbox), Some(number)) = (row[own.1].print(), row[content.1].number()) {
                let most = highest.entry(mailbox).or_insert(number);
                *most = number.max(*most);
            }
        }
        for mailbox in integers(link.to, key).into_iter().filter(|at| !store.refers(*at)) {
            let pairs: Vec<(i64, i64)> = highest
                .iter()
                .filter_map(|(box_key, most)| Some((*most, boxes.get(box_key)?[mailbox.1].number()?)))
                .collect();
            let levels: std::collections::HashSet<i64> = pairs.iter().map(|(_, counter)| *counter).collect();
            if pairs.len() < 2 || levels.len() < 2 || pairs.iter().any(|(most, counter)| counter < most) {
                continue;
            }
            let next = pairs.iter().all(|(most, counter)| counter > most);
            let exact = pairs.iter().filter(|(most, counter)| *counter == most + i64::from(next)).count();
            let kind = if next { CounterKind::Next } else { CounterKind::Last };
            if exact > 0 {
                found.push(Counter { content, mailbox, kind, mailboxes: pairs.len(), exact });
            }
        }
    }
    found.sort_by(|a, b| b.share().total_cmp(&a.share()));
    found
}
