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
        let found = self.store.found().await;
        let ids: HashSet<i64> = found.iter().map(|found| found.id).collect();
        for (id, mail) in &self.alive {
            assert!(ids.contains(id), "LOST: message {id} is gone: {mail:?}\n{}", self.told());
        }
        // Also one that was made after the snapshot, where an older one of its name comes back.
        for mailbox in self.mailboxes.iter_mut().filter(|mailbox| mailbox.state == State::Destroyed) {
            let sql = "SELECT id FROM mailboxes WHERE account_id = $1 AND name = $2 AND deleted_at IS NULL";
            if let Some(row) = self.store.client.query_opt(sql, &[&mailbox.account, &mailbox.name]).await.unwrap() {
                mailbox.id = row.get(0);
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
                assert_eq!(found.seen, mail.seen, "CHANGED: the flags of {found:?}\n{}", self.told());
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
            assert!(lost.is_empty(), "LOST: still missing {lost:?}\n{}", self.told());
            for found in &found {
                // A client of before the damage must not find another mail under a UID that it knows.
                let before = self.issued_before.get(&(found.mailbox, found.uidvalidity, found.uid));
                let same = before.is_none_or(|serial| *serial == self.alive[&found.id].serial);
                assert!(same, "UID: {found:?} stands under another mail's UID\n{}", self.told());
            }
        }
        self.store.check_counters().await;
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
        assert!(found.restored, "{found:?} has no mark\n{}", self.told());
        let known = self.issued.contains_key(&(found.mailbox, found.uidvalidity, found.uid));
        assert!(!known, "UID: {found:?} has one that was seen before\n{}", self.told());
        if fitting.len() == 1
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
                self.lost.push(Lost { mailbox: mail.mailbox, content: mail.content, seen: mail.seen, optional: false });
            }
        }
        undone
    }
}
