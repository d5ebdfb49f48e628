//! Holding the store against the model: nothing lost, nothing doubled, nothing resurrected.

use std::collections::HashSet;

use restante::compare::layout::Layout;
use restante::restore::undo::{UndoOptions, UndoReport, undo};

use super::history::{History, Lost, Mail, State};
use super::store::Found;

impl History<'_> {
    /// Looks at every row of the store, and takes into the model what came back. `complete`: nothing may be missing now.
    pub async fn check(&mut self, complete: bool) {
        self.runs += 1;
        let ways = self.ways();
        // What is derived is computed anew when a restore ends; until then it is here as it will be, and then left as it was.
        if !complete {
            self.store.client.batch_execute("BEGIN").await.unwrap();
            self.store.derive().await;
        }
        let found = self.store.found().await;
        let mailboxes = self.store.mailboxes().await;
        let ids: HashSet<i64> = found.iter().map(|found| found.id).collect();
        for (id, mail) in &self.alive {
            assert!(ids.contains(id), "LOST: message {id} is gone: {mail:?}\n{}", self.told());
        }
        // Also one that was made after the snapshot, where an older one of its name comes back.
        for mailbox in &mut self.mailboxes {
            let may_come_back = match mailbox.state {
                State::Destroyed => true,
                // Deleted or lost, nobody can tell.
                State::Deleted => mailbox.held && !ways.deleted_mailboxes,
                _ => false,
            };
            let same = |(account, _, name): &&(i64, i64, String)| *account == mailbox.account && *name == mailbox.name;
            if let Some((_, id, _)) = mailboxes.iter().find(same).filter(|_| may_come_back) {
                mailbox.id = *id;
                mailbox.state = State::Alive;
                self.happened.insert("a lost mailbox came back");
            }
        }
        for found in &found {
            if let Some(mail) = self.alive.get(&found.id) {
                let whole = found.content == Some(mail.content) && found.mailbox == self.mailboxes[mail.mailbox].id;
                // What came after the snapshot cannot be made whole from it.
                let excused = self.broken.contains(&found.id) && (!complete || mail.held.is_none());
                assert!(whole || excused, "CHANGED: {found:?} is not {mail:?}\n{}", self.told());
                let same = !ways.flags || found.seen == mail.seen;
                assert!(same, "CHANGED: the flags of {found:?}\n{}", self.told());
            } else {
                self.came_back(found);
            }
        }
        self.remember(&found);
        if complete {
            let alive = &self.alive;
            self.broken.retain(|id| alive.get(id).is_some_and(|mail| mail.held.is_none()));
            let lost: Vec<&Lost> = self.lost.iter().filter(|lost| !lost.optional).collect();
            let lost: Vec<_> = lost.into_iter().filter(|lost| self.mailboxes[lost.mailbox].held).collect();
            let lost: Vec<_> = lost.into_iter().filter(|lost| !self.stays_away(lost)).collect();
            assert!(lost.is_empty(), "LOST: still missing {lost:?}\n{}", self.told());
            for found in found.iter().filter(|_| ways.uids) {
                // A client of before the damage must not find another mail under a UID that it knows.
                let before = self.issued_before.get(&(found.mailbox, found.uidvalidity, found.uid));
                let mail = &self.alive[&found.id];
                // Nothing helps where new mail took it.
                let late = !ways.uidvalidity && mail.restored.is_none();
                let same = late || before.is_none_or(|serial| *serial == mail.serial);
                assert!(same, "UID: {found:?} stands under another mail's UID\n{}", self.told());
            }
        }
        if !ways.checks_parts || !self.broken.iter().any(|id| self.alive.contains_key(id)) {
            let checked = self.store.client.execute("SELECT driver.check()", &[]).await;
            checked.unwrap_or_else(|error| panic!("RULES: {error:?}\n{}", self.told()));
        }
        if !complete {
            self.store.client.batch_execute("ROLLBACK").await.unwrap();
        }
    }

    /// Something lives that a restore rightly takes for a lost mail, or that leaves no place for it.
    fn stays_away(&self, lost: &Lost) -> bool {
        let ways = self.ways();
        let account = |mailbox: usize| self.mailboxes[mailbox].account;
        let is_new = |mail: &Mail| mail.restored.is_none() && self.damaged_at.is_some_and(|at| mail.saved >= at);
        self.alive.values().any(|mail| {
            let moved = !ways.tombstones
                && is_new(mail)
                && mail.content == lost.content
                && account(mail.mailbox) == account(lost.mailbox);
            let id = mail.content.message_id();
            let taken =
                ways.message_id_once && mail.mailbox == lost.mailbox && id.is_some() && id == lost.content.message_id();
            moved || taken
        })
    }

    fn came_back(&mut self, found: &Found) {
        let content = found.content.unwrap_or_else(|| panic!("CHANGED: {found:?} is no mail\n{}", self.told()));
        let fits = |lost: &&Lost| lost.content == content && self.mailboxes[lost.mailbox].id == found.mailbox;
        let fitting: Vec<&Lost> = self.lost.iter().filter(fits).collect();
        let at = self
            .lost
            .iter()
            .position(|lost| fits(&lost) && !lost.optional && lost.seen == found.seen)
            .or_else(|| self.lost.iter().position(|lost| fits(&lost) && !lost.optional))
            .or_else(|| self.lost.iter().position(|lost| fits(&lost)));
        let Some(at) = at else { panic!("DOUBLED or RESURRECTED: {found:?}\n{}", self.told()) };
        assert!(found.restored || !self.ways().marks, "{found:?} has no mark\n{}", self.told());
        let known = self.ways().uids && self.issued.contains_key(&(found.mailbox, found.uidvalidity, found.uid));
        assert!(!known, "UID: {found:?} has one that was seen before\n{}", self.told());
        if self.ways().flags
            && fitting.len() == 1
            && !self.alive.values().any(|mail| mail.content == content && mail.mailbox == fitting[0].mailbox)
        {
            assert_eq!(found.seen, fitting[0].seen, "CHANGED: {found:?} lost its flags\n{}", self.told());
        }
        let lost = self.lost.remove(at);
        let alive = |one: &super::history::Mailbox| one.state == State::Alive && one.id == found.mailbox;
        let mail = Mail {
            serial: self.serial(),
            mailbox: self.mailboxes.iter().position(alive).unwrap_or(lost.mailbox),
            content,
            saved: self.minute,
            seen: found.seen,
            held: None,
            instead_of: None,
            restored: Some(self.runs),
            optional: lost.optional && !self.ways().tombstones_stay,
            touched: false,
        };
        self.alive.insert(found.id, mail);
    }

    /// Clients look, and remember every UID.
    pub async fn remember_uids(&mut self) {
        let found = self.store.found().await;
        self.remember(&found);
    }

    fn remember(&mut self, found: &[Found]) {
        for found in found {
            let Some(mail) = self.alive.get(&found.id) else { continue };
            self.issued.entry((found.mailbox, found.uidvalidity, found.uid)).or_insert(mail.serial);
        }
    }

    /// Takes the last run back: what nobody touched goes, all of it and nothing else, and is lost once more.
    pub async fn undo(&mut self, layout: &Layout, replay: String) -> UndoReport {
        let before: Vec<i64> = self.store.found().await.iter().map(|found| found.id).collect();
        let options = UndoOptions { replay, ..Default::default() };
        let undone = undo(&self.store.reader, layout, &options).await.unwrap();
        self.tell("undo", format!("{undone:?}"));
        let left: HashSet<i64> = self.store.found().await.iter().map(|found| found.id).collect();
        let gone: Vec<i64> = before.into_iter().filter(|id| !left.contains(id)).collect();
        let ours = |mail: &Mail| mail.restored == Some(self.runs) && !mail.touched;
        let wanted: Vec<i64> = self.alive.iter().filter(|(_, mail)| ours(mail)).map(|(id, _)| *id).collect();
        let told = self.told();
        for id in &gone {
            assert!(wanted.contains(id), "LOST: undo took {:?}\n{told}", self.alive[id]);
        }
        assert_eq!(gone.len(), wanted.len(), "undo left {wanted:?} but for {gone:?}\n{told}");
        assert_eq!(gone.len() as u64, undone.undone, "{told}");
        for id in gone {
            if let Some(mail) = self.alive.remove(&id) {
                let Mail { mailbox, content, seen, optional, .. } = mail;
                self.lost.push(Lost { mailbox, content, seen, optional });
            }
        }
        undone
    }
}
