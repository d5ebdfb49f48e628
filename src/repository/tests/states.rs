//! Every interleaving of one writer and two pruners, each of whom makes two passes: a model of the protocol that `repository::prune` describes, small enough to
//! be gone through as a whole. One chunk, in two packs, or in one and in one more that each pruner may copy it into; a snapshot that is forgotten and over, and one that stays or that is about to be written.
//!
//! What is modelled is the order of requests and what each decides by, nothing else; `protocol.rs` runs the program itself over random orders. Breaking the
//! protocol on purpose is seen each time. That manifests are listed after what is over was removed matters only when something is forgotten, taken back and forgotten
//! again, which is not modelled; `pruning.rs` has a test for it.

use std::collections::HashSet;

/// The last two are the copies.
const PACKS: usize = 4;
const COPIES: usize = 2;
const PASSES: usize = 4;

/// What is changed in the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// The writer looks whether packs are there before it lists tombstones.
    ExistenceFirst,
    /// The writer certifies before it has looked.
    CertificateFirst,
    /// The writer does not look for the snapshot that it took segments over from.
    ParentNotChecked,
    /// A pass takes away whoever's tombstone of a pack that is needed again.
    SharedTombstones,
    /// A pack goes although what is to stay in its place is not there, or is about to go.
    SurvivorsNotChecked,
    /// A mark counts in the pass that makes it.
    NoGrace,
}

/// How it begins.
#[derive(Debug, Clone, Copy)]
struct Beginning {
    /// Where the chunk lies.
    packs: [bool; 2],
    /// A certified snapshot that stays needs it.
    kept: bool,
    /// The writer takes it over with a segment of the snapshot that is over, or finds it by its bytes.
    takes_over: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tombstone {
    pack: u8,
    pass: u8,
    /// The pack that holds the chunk when this is gone.
    survivor: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Pass {
    step: u8,
    /// Tombstones that were old when it began, and that it listed: by pass that made them, for each pack.
    old: [u8; PACKS],
    seen: [u8; PACKS],
    needs: bool,
    wants: bool,
    packs: [bool; PACKS],
    going: [bool; PACKS],
    stopped: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    packs: [bool; PACKS],
    tombstones: Vec<Tombstone>,
    /// Of the snapshot that is forgotten and over.
    over: (bool, bool),
    /// Of the writer's: manifest, certificate.
    new: (bool, bool),
    writer: u8,
    /// The pack that it relies on.
    relies: Option<u8>,
    pruners: [Pass; 2],
    /// What each has copied; no name is written twice.
    copied: [bool; 2],
    /// Passes that each has ended.
    ended: [u8; 2],
}

impl State {
    fn marks(&self, pack: usize) -> u8 {
        self.tombstones.iter().filter(|one| usize::from(one.pack) == pack).fold(0, |all, one| all | 1 << one.pass)
    }

    fn is_marked(&self, pack: usize) -> bool {
        self.marks(pack) != 0
    }

    /// What no order may lead to: something certified whose chunk is nowhere.
    fn is_lost(&self, from: &Beginning) -> bool {
        (from.kept || self.new.1) && !self.packs.contains(&true)
    }

    /// The writer's next request; `None`: it has ended.
    fn write(&self, from: &Beginning, broken: Broken) -> Option<Self> {
        if self.writer > 5 {
            return None;
        }
        let mut next = self.clone();
        next.writer += 1;
        let stop = |mut state: Self| {
            state.writer = u8::MAX;
            Some(state)
        };
        let tombstones_first = broken != Broken::ExistenceFirst;
        let relied = self.relies.map(usize::from);
        match self.writer {
            0 if from.takes_over => {
                // It believes a snapshot that is certified and not forgotten yet when it looks; being forgotten comes after.
                if !(self.over.0 && self.over.1) {
                    return stop(next);
                }
            }
            0 => {
                let found = (0..PACKS).find(|pack| self.packs[*pack] && !self.is_marked(*pack));
                // Without it the chunk is stored anew, which no prune sees for a while.
                match found {
                    Some(pack) => next.relies = Some(pack as u8),
                    None => return stop(next),
                }
            }
            1 => next.new.0 = true,
            2 if broken == Broken::CertificateFirst => next.new.1 = true,
            2 | 3 if (self.writer == 2) == tombstones_first => {
                if relied.is_some_and(|pack| self.is_marked(pack)) {
                    return stop(next);
                }
            }
            2 | 3 => {
                if relied.is_some_and(|pack| !self.packs[pack]) {
                    return stop(next);
                }
            }
            4 => {
                if from.takes_over && !self.over.0 && broken != Broken::ParentNotChecked {
                    return stop(next);
                }
            }
            5 => next.new.1 = true,
            _ => return None,
        }
        Some(next)
    }

    /// The next request of a pruner; `None`: it has ended.
    fn prune(&self, who: usize, from: &Beginning, broken: Broken) -> Option<Self> {
        if usize::from(self.ended[who]) >= PASSES / 2 {
            return None;
        }
        let number = (who * PASSES / 2) as u8 + self.ended[who];
        let mut next = self.clone();
        let pass = &mut next.pruners[who];
        pass.step += 1;
        let marks = |pack: usize| self.marks(pack);
        let listed = (from.kept || self.new.0, from.kept || self.new.0 || self.over.1);
        match self.pruners[who].step {
            0 => pass.old = std::array::from_fn(marks),
            1 => next.over.0 = false,
            2 => next.over.1 = false,
            3 => (pass.wants, pass.needs) = listed,
            4 => pass.packs = self.packs,
            5 => {
                pass.seen = std::array::from_fn(marks);
                if broken == Broken::NoGrace {
                    pass.old = pass.seen;
                }
                let there = |pack: usize| pass.packs[pack];
                let lasting = |pack: &usize| there(*pack) && pass.seen[*pack] == 0;
                let chosen = (0..PACKS).rev().find(lasting);
                let needed = |pack: usize, wanted: bool| wanted && there(pack) && chosen.is_none_or(|one| one == pack);
                for pack in 0..PACKS {
                    let holds = |one: &Tombstone| {
                        let fine = |survivor: u8| there(survivor.into()) && pass.seen[usize::from(survivor)] == 0;
                        usize::from(one.pack) == pack
                            && pass.old[pack] & pass.seen[pack] & 1 << one.pass != 0
                            && (one.survivor.is_none_or(fine) || broken == Broken::SurvivorsNotChecked)
                    };
                    let stays = needed(pack, pass.needs) && broken != Broken::SurvivorsNotChecked;
                    pass.going[pack] = there(pack) && !stays && self.tombstones.iter().any(holds);
                }
                if pass.needs && !pass.packs.contains(&true) {
                    pass.stopped = true;
                }
            }
            // What stays in the place of what goes is fetched and hashed.
            6 => {
                let survivors_there =
                    (0..PACKS).all(|pack| !pass.needs || pass.going[pack] || !pass.packs[pack] || self.packs[pack]);
                if pass.going.contains(&true) && !survivors_there && broken != Broken::SurvivorsNotChecked {
                    pass.stopped = true;
                }
            }
            7 => {
                let pass = *pass;
                let source = (0..COPIES).find(|pack| pass.packs[*pack] && pass.seen[*pack] == 0 && !pass.going[*pack]);
                let may = from.packs != [true; 2] && pass.wants && !pass.stopped && !self.copied[who];
                if let Some(source) = source.filter(|_| may) {
                    match self.packs[source] {
                        true => (next.packs[COPIES + who], next.copied[who]) = (true, true),
                        false => next.pruners[who].stopped = true,
                    }
                }
            }
            8..12 => {
                let pack = usize::from(self.pruners[who].step) - 8;
                if pass.going[pack] && !pass.stopped {
                    next.packs[pack] = false;
                }
            }
            12 => {
                let pass = *pass;
                let goes = |one: &Tombstone| {
                    let pack = usize::from(one.pack);
                    let gone = pass.going[pack] && !self.packs[pack];
                    let shared =
                        broken == Broken::SharedTombstones && pass.wants && pass.seen[pack] & 1 << one.pass != 0;
                    !pass.stopped && (gone || shared)
                };
                next.tombstones.retain(|one| !goes(one));
            }
            13 => {
                let pass = *pass;
                for pack in (0..PACKS).filter(|pack| pass.packs[*pack] && pass.seen[*pack] == 0 && !pass.stopped) {
                    let chosen = (0..PACKS).rev().find(|one| pass.packs[*one] && pass.seen[*one] == 0);
                    if !(pass.wants && chosen == Some(pack)) {
                        let survivor = chosen.filter(|_| pass.wants).map(|one| one as u8);
                        next.tombstones.push(Tombstone { pack: pack as u8, pass: number, survivor });
                    }
                }
                next.tombstones.sort_by_key(|one| (one.pack, one.pass));
                next.pruners[who] = Pass::default();
                next.ended[who] += 1;
            }
            _ => return None,
        }
        Some(next)
    }
}

/// Every state that can be reached; the first in which something is lost.
fn explore(from: &Beginning, broken: Broken) -> (usize, Option<State>) {
    let first = State {
        packs: [from.packs[0], from.packs[1], false, false],
        copied: [false; 2],
        tombstones: Vec::new(),
        over: (true, true),
        new: (false, false),
        writer: 0,
        relies: None,
        pruners: [Pass::default(); 2],
        ended: [0; 2],
    };
    let (mut known, mut waiting) = (HashSet::from([first.clone()]), vec![first]);
    while let Some(state) = waiting.pop() {
        if state.is_lost(from) {
            return (known.len(), Some(state));
        }
        let nexts = [state.write(from, broken), state.prune(0, from, broken), state.prune(1, from, broken)];
        for next in nexts.into_iter().flatten() {
            if known.insert(next.clone()) {
                waiting.push(next);
            }
        }
    }
    (known.len(), None)
}

fn beginnings() -> Vec<Beginning> {
    let both = [[true, false], [true, true]];
    let all = both.into_iter().flat_map(|packs| [false, true].map(|kept| (packs, kept)));
    all.flat_map(|(packs, kept)| [false, true].map(|takes_over| Beginning { packs, kept, takes_over })).collect()
}

#[test]
fn no_order_of_a_writer_and_two_pruners_loses_what_is_certified() {
    let mut all = 0;
    for from in beginnings() {
        let (states, lost) = explore(&from, Broken::Nothing);
        assert!(lost.is_none(), "{from:?}: {lost:#?}");
        all += states;
    }
    println!("{all} states");
    assert!(all > 10_000, "{all}");
}

#[test]
fn every_break_of_the_protocol_is_seen() {
    for broken in [
        Broken::ExistenceFirst,
        Broken::CertificateFirst,
        Broken::ParentNotChecked,
        Broken::SharedTombstones,
        Broken::SurvivorsNotChecked,
        Broken::NoGrace,
    ] {
        let seen = beginnings().iter().any(|from| explore(from, broken).1.is_some());
        assert!(seen, "{broken:?} loses nothing");
    }
}
