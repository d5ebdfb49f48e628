//! What refers to what, as far as a profile says so.

use super::Profile;
use super::model::*;

impl Profile {
    /// A table, columns of it, and the table to whose key they refer.
    pub fn references(&self) -> Vec<(&str, Vec<&str>, &str)> {
        fn names(columns: &Columns) -> Vec<&str> {
            columns.0.iter().map(String::as_str).collect()
        }
        fn soft<'a>(table: &'a str, of: &'a SoftReferences) -> impl Iterator<Item = (&'a str, Vec<&'a str>, &'a str)> {
            of.iter().map(move |(column, to)| (table, vec![&**column], &**to))
        }
        let (mail, link, mailbox) = (&*self.message.table, self.link_table(), &self.mailbox);
        let mut found = vec![(link, names(&self.link.mailbox), &*mailbox.table)];
        found.extend(self.link.message.iter().map(|columns| (link, names(columns), mail)));
        if let (Some(owner), Some(columns)) = (&self.owner, &mailbox.owner) {
            found.push((&mailbox.table, names(columns), &owner.table));
        }
        let keywords = self.flags.iter().filter_map(|flags| flags.keywords.as_ref());
        found.extend(keywords.filter_map(|one| Some((&*one.table, names(one.of.as_ref()?), link))));
        for part in &self.part {
            let table = &*part.table;
            found.extend(part.message.iter().map(|columns| (table, names(columns), mail)));
            found.extend(part.referred_by.iter().map(|columns| (mail, names(columns), table)));
            if let Some(via) = &part.via {
                found.push((&via.table, names(&via.message), mail));
                found.push((&via.table, names(&via.part), table));
            }
        }
        for child in &self.child {
            found.extend(child.columns.iter().map(|columns| (&*child.table, names(columns), self.parent_of(child))));
            found.extend(soft(&child.table, &child.references));
        }
        for one in &self.dictionary {
            found.extend(one.cycle.0.iter().map(|column| (&*one.table, vec![&**column], mail)));
            found.extend(soft(&one.table, &one.references));
        }
        found.extend(self.message.self_reference.0.iter().map(|column| (mail, vec![&**column], mail)));
        found.extend(soft(mail, &self.message.references));
        found.extend(soft(link, &self.link.references));
        found.extend(soft(&mailbox.table, &mailbox.references));
        found
    }

    /// The key of a table, if the profile names it.
    pub fn key(&self, table: &str) -> Option<&Vec<String>> {
        let roles = self.roles().into_iter();
        let mut keys = roles.filter(|role| self.qualify(role.table) == self.qualify(table)).filter_map(|role| role.key);
        keys.next().map(|key| &key.0)
    }
}
