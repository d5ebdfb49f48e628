//! Pairs lost mails with live ones, as sets in which the number of copies counts.
//!
//! Each live mail stands for at most one lost mail: where the snapshot holds two equal copies and one is alive, one is
//! to be restored. All pairs of a stronger rung are made before the next rung is tried, and within a rung both lists are taken
//! in their order, so the outcome depends on the input alone. Each rung sorts mails into classes of equals, and the classes of a
//! stronger rung lie within those of a weaker one (equal bytes have equal parts), so taking the strongest first costs no pairs.
//!
//! One hash table per rung: the cost grows with the number of mails, not with its square. Used by `compare`.

use std::collections::HashMap;
use std::hash::Hash;

use super::identity::{Digest, Fingerprint, Mail, Origin, Rung};

/// A lost mail that turned out to be alive. Both are positions in the lists that were given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    pub lost: usize,
    pub live: usize,
    pub rung: Rung,
}

/// A lost mail without a live one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leftover {
    pub lost: usize,
    /// Another mail is alive under the same Message-ID.
    pub same_id_different_parts: bool,
}

/// Every lost mail is in exactly one of the lists; both ascend by `lost`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matching {
    pub pairs: Vec<Pair>,
    pub leftovers: Vec<Leftover>,
}

/// Pairs `lost` with `live`. Scope them first: mails of one owner, or of one mailbox.
pub fn matching(lost: &[Fingerprint], live: &[Fingerprint]) -> Matching {
    let mut open = Open { lost: (0..lost.len()).collect(), live: (0..live.len()).collect(), pairs: Vec::new() };
    open.pair(Rung::StoredBytes, lost, live, |print| Some(print.stored));
    open.pair(Rung::WithoutTrace, lost, live, |print| Some(print.mail.as_ref()?.without_trace));
    open.pair(Rung::SameIdSameParts, lost, live, |print| match print.mail.as_ref()? {
        Mail { origin: Origin::MessageId(id), parts, .. } => Some((*id, *parts)),
        _ => None,
    });
    open.pair(Rung::NoIdSameHeadersAndParts, lost, live, |print| match print.mail.as_ref()? {
        Mail { origin: Origin::Headers(headers), parts, .. } => Some((*headers, *parts)),
        _ => None,
    });
    open.pairs.sort_unstable_by_key(|pair| pair.lost);
    let ids = Ids::of(live);
    let leftovers = open
        .lost
        .into_iter()
        .map(|at| Leftover { lost: at, same_id_different_parts: ids.hold_another(&lost[at]) })
        .collect();
    Matching { pairs: open.pairs, leftovers }
}

/// What is not yet paired, ascending, and what is.
struct Open {
    lost: Vec<usize>,
    live: Vec<usize>,
    pairs: Vec<Pair>,
}

impl Open {
    fn pair<K: Hash + Eq>(
        &mut self,
        rung: Rung,
        lost: &[Fingerprint],
        live: &[Fingerprint],
        key: impl Fn(&Fingerprint) -> Option<K>,
    ) {
        let mut free: HashMap<K, Vec<usize>> = HashMap::with_capacity(self.live.len());
        // From the back, so that `pop` gives the first.
        for at in self.live.iter().rev() {
            if let Some(key) = key(&live[*at]) {
                free.entry(key).or_default().push(*at);
            }
        }
        let mut taken = vec![false; live.len()];
        self.lost.retain(|at| {
            let found = key(&lost[*at]).and_then(|key| free.get_mut(&key)?.pop());
            if let Some(live) = found {
                taken[live] = true;
                self.pairs.push(Pair { lost: *at, live, rung });
            }
            found.is_none()
        });
        self.live.retain(|at| !taken[*at]);
    }
}

/// The Message-IDs that are alive, with the parts of one mail that has it and whether others have other parts.
struct Ids(HashMap<Digest, (Digest, bool)>);

impl Ids {
    fn of(live: &[Fingerprint]) -> Self {
        let mut ids = HashMap::new();
        for mail in live.iter().filter_map(|print| print.mail.as_ref()) {
            if let Origin::MessageId(id) = mail.origin {
                let (parts, several) = ids.entry(id).or_insert((mail.parts, false));
                *several |= *parts != mail.parts;
            }
        }
        Self(ids)
    }

    fn hold_another(&self, lost: &Fingerprint) -> bool {
        let Some(Mail { origin: Origin::MessageId(id), parts: own, .. }) = &lost.mail else { return false };
        self.0.get(id).is_some_and(|(parts, several)| *several || parts != own)
    }
}

#[cfg(test)]
mod tests {
    use super::super::identity::same_mail;
    use super::*;
    use proptest::prelude::*;

    fn mail(id: u8, stamp: u8, wrapping: u8, body: u8) -> Fingerprint {
        let id = if id == 0 { String::new() } else { format!("Message-ID: <{id}@x>\n") };
        let raw = format!(
            "Received: {stamp}\nFrom: a@x\nDate: Mon, 11 Aug 2014 10:00:00 +0000\n{id}Content-Type: multipart/mixed; boundary=b{wrapping}\n\n--b{wrapping}\n\n{body}\n--b{wrapping}--\n"
        );
        Fingerprint::of(raw.as_bytes())
    }

    #[test]
    fn of_two_equal_copies_one_is_restored_when_one_is_alive() {
        let copy = mail(1, 0, 0, 0);
        let found = matching(&[copy.clone(), copy.clone()], &[copy]);
        assert_eq!(found.pairs, [Pair { lost: 0, live: 0, rung: Rung::StoredBytes }]);
        assert_eq!(found.leftovers, [Leftover { lost: 1, same_id_different_parts: false }]);
    }

    #[test]
    fn the_strongest_reason_is_served_first() {
        let (exact, stamped, wrapped) = (mail(1, 0, 0, 0), mail(1, 1, 0, 0), mail(1, 0, 1, 0));
        let found = matching(&[wrapped.clone(), stamped, exact.clone()], &[exact, wrapped]);
        assert_eq!(
            found.pairs,
            [Pair { lost: 0, live: 1, rung: Rung::StoredBytes }, Pair { lost: 2, live: 0, rung: Rung::StoredBytes }]
        );
        assert_eq!(found.leftovers, [Leftover { lost: 1, same_id_different_parts: false }]);
    }

    #[test]
    fn a_footer_makes_another_mail_and_is_reported() {
        let found = matching(&[mail(1, 0, 0, 0), mail(2, 0, 0, 0)], &[mail(1, 0, 0, 1)]);
        assert!(found.pairs.is_empty());
        assert_eq!(
            found.leftovers,
            [Leftover { lost: 0, same_id_different_parts: true }, Leftover { lost: 1, same_id_different_parts: false }]
        );
    }

    fn mails() -> impl Strategy<Value = Vec<Fingerprint>> {
        prop::collection::vec((0u8..3, 0u8..2, 0u8..2, 0u8..2), 0..12).prop_map(|mails| {
            mails.into_iter().map(|(id, stamp, wrapping, body)| mail(id, stamp, wrapping, body)).collect()
        })
    }

    /// The largest number of pairs there can be, by augmenting paths.
    fn most_pairs(lost: &[Fingerprint], live: &[Fingerprint]) -> usize {
        fn augment(
            at: usize,
            lost: &[Fingerprint],
            live: &[Fingerprint],
            seen: &mut [bool],
            holder: &mut [Option<usize>],
        ) -> bool {
            for to in 0..live.len() {
                let free = same_mail(&lost[at], &live[to]).is_some() && !std::mem::replace(&mut seen[to], true);
                if free && holder[to].is_none_or(|other| augment(other, lost, live, seen, holder)) {
                    holder[to] = Some(at);
                    return true;
                }
            }
            false
        }
        let mut holder = vec![None; live.len()];
        (0..lost.len()).filter(|at| augment(*at, lost, live, &mut vec![false; live.len()], &mut holder)).count()
    }

    proptest! {
        #[test]
        fn every_lost_mail_is_decided_once_and_no_live_one_is_used_twice(lost in mails(), live in mails()) {
            let found = matching(&lost, &live);
            let mut decided = found.pairs.iter().map(|pair| pair.lost).chain(found.leftovers.iter().map(|left| left.lost)).collect::<Vec<_>>();
            decided.sort_unstable();
            prop_assert_eq!(decided, (0..lost.len()).collect::<Vec<_>>());
            let mut used = found.pairs.iter().map(|pair| pair.live).collect::<Vec<_>>();
            used.sort_unstable();
            used.dedup();
            prop_assert_eq!(used.len(), found.pairs.len());
        }

        #[test]
        fn pairs_are_as_many_as_can_be_and_each_for_its_own_reason(lost in mails(), live in mails()) {
            let found = matching(&lost, &live);
            for pair in &found.pairs {
                prop_assert_eq!(same_mail(&lost[pair.lost], &live[pair.live]), Some(pair.rung));
            }
            prop_assert_eq!(found.pairs.len(), most_pairs(&lost, &live));
            let exact = |prints: &[Fingerprint], of: &Fingerprint| prints.iter().filter(|print| print.stored == of.stored).count();
            for print in &lost {
                let served = found.pairs.iter().filter(|pair| lost[pair.lost].stored == print.stored && pair.rung == Rung::StoredBytes).count();
                prop_assert_eq!(served, exact(&lost, print).min(exact(&live, print)), "exact copies come first");
            }
        }

        #[test]
        fn another_mail_under_the_id_is_reported_exactly_when_there_is_one(lost in mails(), live in mails()) {
            use super::super::identity::{verdict, Verdict};
            for left in matching(&lost, &live).leftovers {
                let other = live.iter().any(|live| verdict(&lost[left.lost], live) == Verdict::SameIdDifferentParts);
                prop_assert_eq!(left.same_id_different_parts, other);
            }
        }
    }
}
