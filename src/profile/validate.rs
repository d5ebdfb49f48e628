//! Holds a profile against the catalog of a store, live or from a snapshot.
//!
//! Finds names that do not exist, keys that are not unique, clocks of another type, triggers that nobody expected, and
//! tables that hang on the mail but of which the profile says nothing: their rows would stay lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::model::*;
use super::{Place, Profile};

/// What a profile needs to know of a catalog. Names are `schema.table` and as PostgreSQL stores them, without quotes.
#[derive(Debug, Clone, Default)]
pub struct CatalogView {
    pub tables: BTreeMap<String, TableView>,
    pub sequences: BTreeSet<String>,
}

#[derive(Debug, Clone, Default)]
pub struct TableView {
    /// Names and types as `format_type` prints them: `timestamp with time zone`.
    pub columns: BTreeMap<String, String>,
    pub primary_key: Vec<String>,
    /// Of unique constraints and of unique indexes over plain columns without a predicate; the primary key need not be
    /// repeated.
    pub unique_keys: Vec<Vec<String>>,
    pub foreign_keys: Vec<ForeignKeyView>,
    /// Names of the enabled triggers that users made.
    pub triggers: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct ForeignKeyView {
    pub columns: Vec<String>,
    pub table: String,
    pub referenced: Vec<String>,
}

/// Something that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    pub at: Place,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// A restore can go on; a person should look.
    Warning,
    /// A restore must not begin.
    Error,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.message)
    }
}

/// A table of the profile and all that the profile says of it.
pub(super) struct Role<'a> {
    pub name: &'static str,
    pub table: &'a str,
    pub place: Place,
    pub columns: Vec<&'a str>,
    /// Named by the profile, else the primary key of the catalog is needed.
    pub key: Option<&'a Columns>,
    /// Must be unique.
    pub natural: Option<&'a Columns>,
    /// Rows are put into it.
    pub written: bool,
}

pub(super) fn qualified(schema: &str, table: &str) -> String {
    if table.contains('.') { table.to_owned() } else { format!("{schema}.{table}") }
}

impl Profile {
    /// Everything in `catalog` that does not fit this profile, in the order of the profile.
    pub fn validate(&self, catalog: &CatalogView) -> Vec<Finding> {
        let mut findings = Vec::new();
        for role in self.roles() {
            match catalog.tables.get(&self.qualify(role.table)) {
                None => findings.push(Finding::error(role.place, format!("there is no table {}", role.table))),
                Some(table) => self.validate_role(&role, table, &mut findings),
            }
        }
        self.validate_mentions(catalog, &mut findings);
        self.validate_parentage(catalog, &mut findings);
        self.validate_clocks(catalog, &mut findings);
        self.find_names_by_number(catalog, &mut findings);
        for (name, counter) in [("uid", &self.mailbox.uid), ("modseq", &self.mailbox.modseq)] {
            if let Some(sequence) = &counter.sequence
                && !catalog.sequences.contains(&self.qualify(sequence))
            {
                let message = format!("there is no sequence {sequence}, from which {name} would come");
                findings.push(Finding::error(self.place(&self.mailbox), message));
            }
        }
        self.find_forgotten_tables(catalog, &mut findings);
        self.validate_keys(catalog, &mut findings);
        for tombstone in self.tombstone.iter().filter(|one| one.table.is_some() && one.message.is_none()) {
            let message = "without `message` this tombstone is not believed, and what it tells of counts as lost";
            findings.push(Finding::warning(self.place(tombstone), message.to_owned()));
        }
        findings
    }

    /// The name that a table has now, with its schema.
    pub fn qualify(&self, table: &str) -> String {
        let written = self.qualify_as_written(table);
        let mut changed = self.changed.iter().filter(|(old, _)| self.qualify_as_written(old) == written);
        let now = changed.next().and_then(|(_, changed)| changed.table.as_deref());
        now.map_or(written, |now| self.qualify_as_written(now))
    }

    /// The name with its schema.
    pub fn qualify_as_written(&self, table: &str) -> String {
        qualified(&self.schema, table)
    }

    fn validate_role(&self, role: &Role<'_>, table: &TableView, findings: &mut Vec<Finding>) {
        let name = role.table;
        for column in &role.columns {
            if !table.columns.contains_key(*column) {
                findings.push(Finding::error(role.place.clone(), format!("table {name} has no column {column}")));
            }
        }
        if !role.written {
            return;
        }
        if role.key.is_none() && table.primary_key.is_empty() {
            let message = format!("table {name} has no primary key: name the columns that tell its rows apart as key");
            findings.push(Finding::error(role.place.clone(), message));
        }
        if let Some(natural) = role.natural
            && !table.is_unique(&natural.0)
        {
            let message = format!(
                "nothing makes ({}) unique in table {name}: rows that share it cannot be told apart",
                natural.0.join(", ")
            );
            findings.push(Finding::warning(role.place.clone(), message));
        }
        if self.triggers == TriggerPolicy::NoneExpected && !table.triggers.is_empty() {
            let message = format!(
                "table {name} has triggers ({}): say at the top whether they fire or are off during a restore, as triggers = \"keep\" or \"off\"",
                table.triggers.join(", ")
            );
            findings.push(Finding::error(role.place.clone(), message));
        }
    }

    /// Columns of tables whose role is told elsewhere, or that have none.
    fn validate_mentions(&self, catalog: &CatalogView, findings: &mut Vec<Finding>) {
        let mut mention =
            |place: Place, table: &str, columns: Vec<&String>| match catalog.tables.get(&self.qualify(table)) {
                None => findings.push(Finding::error(place, format!("there is no table {table}"))),
                Some(found) => {
                    for column in columns.into_iter().filter(|column| !found.columns.contains_key(*column)) {
                        findings.push(Finding::error(place.clone(), format!("table {table} has no column {column}")));
                    }
                }
            };
        for derived in &self.derived {
            mention(self.place(derived), &derived.table, derived.column.iter().collect());
        }
        if let Some(flags) = &self.flags
            && let Some(table) = &flags.table
        {
            mention(self.place(flags), table, flags.columns.0.iter().chain(flags.set.keys()).collect());
        }
        for tombstone in &self.tombstone {
            // Copied from the message, or from the link where that has a table of its own.
            let link = catalog.tables.get(&self.qualify(self.link_table()));
            let of_message = |column: &&String| !link.is_some_and(|link| link.columns.contains_key(*column));
            let columns = tombstone.evidence.values().filter(of_message).collect();
            mention(self.place(tombstone), &self.message.table, columns);
        }
    }

    /// Children whose columns the profile leaves to the foreign key need one that leaves no doubt.
    fn validate_parentage(&self, catalog: &CatalogView, findings: &mut Vec<Finding>) {
        let keywords = self.flags.iter().filter_map(|flags| Some((self.place(flags), flags.keywords.as_ref()?)));
        let keywords = keywords.map(|(place, keywords)| (place, &keywords.table, self.link_table(), &keywords.of));
        let children =
            self.child.iter().map(|child| (self.place(child), &child.table, self.parent_of(child), &child.columns));
        for (place, table, parent, _) in keywords.chain(children).filter(|(.., columns)| columns.is_none()) {
            let Some(found) = catalog.tables.get(&self.qualify(table)) else { continue };
            if found.foreign_key_to(&self.qualify(parent)).is_none() {
                let message = format!(
                    "table {table} has not exactly one foreign key to {parent}: name the columns that refer to it"
                );
                findings.push(Finding::error(place, message));
            }
        }
    }

    /// The table that a child hangs on.
    pub fn parent_of<'a>(&'a self, child: &'a Child) -> &'a str {
        match child.of.as_str() {
            "message" => &self.message.table,
            "link" => self.link_table(),
            table => table,
        }
    }

    fn validate_clocks(&self, catalog: &CatalogView, findings: &mut Vec<Finding>) {
        for clock in &self.message.clocks {
            let table = clock.table.as_ref().unwrap_or(&self.message.table);
            let Some(found) = catalog.tables.get(&self.qualify(table)) else { continue };
            let Some(found) = found.columns.get(&clock.column) else {
                // A missing column of the message's own table is found with its role.
                if clock.table.is_some() {
                    let message = format!("table {table} has no column {}", clock.column);
                    findings.push(Finding::error(self.place(&self.message), message));
                }
                continue;
            };
            let fits = match clock.time {
                TimeType::Timestamptz => found.starts_with("timestamp") && found.ends_with("with time zone"),
                TimeType::Timestamp => found.starts_with("timestamp") && found.ends_with("without time zone"),
                TimeType::Epoch => matches!(found.as_str(), "smallint" | "integer" | "bigint"),
            };
            if !fits {
                let message = format!("clock {} has the type {found}, the profile says otherwise", clock.column);
                findings.push(Finding::error(self.place(&self.message), message));
            }
        }
    }

    /// Names of accounts and mailboxes, and content, that are numbers of rows elsewhere: numbers are issued again after a loss, and mean
    /// another row then.
    fn find_names_by_number(&self, catalog: &CatalogView, findings: &mut Vec<Finding>) {
        let owners = self.owner.as_ref().map(|owner| self.qualify(&owner.table));
        let values: BTreeSet<String> = self.dictionary.iter().map(|one| self.qualify(&one.table)).collect();
        let reference = |table: &str, columns: &[String], values: &BTreeSet<String>| -> Option<(String, String)> {
            let keys = &catalog.tables.get(&self.qualify(table))?.foreign_keys;
            let known = |name: &String| Some(name) == owners.as_ref() || values.contains(name);
            let mut others = keys.iter().filter(|key| !known(&key.table));
            let key = others.find(|key| key.columns.iter().any(|column| columns.contains(column)))?;
            Some((key.columns.join(", "), key.table.clone()))
        };
        let owner = self.owner.as_ref().map(|owner| (self.place(owner), &*owner.table, &owner.natural.0, &values));
        let none = BTreeSet::new();
        let mailbox = (self.place(&self.mailbox), &*self.mailbox.table, &self.mailbox.natural.0, &none);
        for (place, table, natural, values) in owner.into_iter().chain([mailbox]) {
            if let Some((column, other)) = reference(table, natural, values) {
                let message = format!(
                    "{column} refers to {other} by a number, which may be issued again and would give mail to strangers: \
                     of an account make {other} a [[dictionary]], name a mailbox by what refers to nothing but its owner"
                );
                findings.push(Finding::error(place, message));
            }
        }
        if let Body::Text { columns } = &self.message.body
            && let Some((column, other)) = reference(&self.message.table, &columns.0, &none)
        {
            let message = format!(
                "{column} refers to {other} by a number, which may be issued again: name columns beside it that tell two mails apart"
            );
            findings.push(Finding::warning(self.place(&self.message), message));
        }
    }

    /// Tables with a foreign key to a message, a link or a part, and without a role.
    fn find_forgotten_tables(&self, catalog: &CatalogView, findings: &mut Vec<Finding>) {
        let derived = self.derived.iter().map(|derived| self.qualify(&derived.table));
        let never = self.never.iter().map(|table| self.qualify(table));
        let known = self.roles().into_iter().map(|role| self.qualify(role.table)).chain(derived).chain(never);
        let known = known.collect::<BTreeSet<_>>();
        let mail = [&*self.message.table, self.link_table()].map(|table| self.qualify(table));
        for (name, table) in catalog.tables.iter().filter(|(name, _)| !known.contains(*name)) {
            if table.foreign_keys.iter().any(|key| mail.contains(&key.table)) {
                let message = format!(
                    "table {name} refers to the mail, but the profile does not say what it is: make it a [[child]], or add it to never if mail lacks nothing without its rows"
                );
                findings.push(Finding::error(self.place(&self.message), message));
            }
        }
    }

    /// Keys of which the profile says what became of them.
    fn validate_keys(&self, catalog: &CatalogView, findings: &mut Vec<Finding>) {
        for (name, changed) in &self.changed {
            let table = catalog.tables.get(&self.qualify(name));
            for (column, sql) in &changed.keys {
                let message = match table {
                    None => format!("there is no table {name}"),
                    Some(table) if table.columns.contains_key(column) => continue,
                    Some(_) => format!("table {name} has no column {column}"),
                };
                findings.push(Finding::error(self.place(sql), message));
            }
        }
    }

    /// Does the profile say what this table is?
    pub fn has_role(&self, qualified: &str) -> bool {
        self.roles().into_iter().any(|role| self.qualify(role.table) == qualified)
    }

    /// Each table that has a role, as often as it has one. `derived` tables have none of their own.
    pub(super) fn roles(&self) -> Vec<Role<'_>> {
        let mut roles = Vec::new();
        if let Some(owner) = &self.owner {
            roles.push(
                Role::new("owner", &owner.table, self.place(owner))
                    .key(owner.key.as_ref())
                    .natural(&owner.natural)
                    .columns(&owner.evidence.0)
                    .columns(owner.made.keys()),
            );
        }
        let mailbox = &self.mailbox;
        roles.push(
            Role::new("mailbox", &mailbox.table, self.place(mailbox))
                .key(mailbox.key.as_ref())
                .natural(&mailbox.natural)
                .columns(mailbox.owner.iter().flat_map(|owner| &owner.0))
                .columns(&mailbox.evidence.0)
                .columns(
                    [&mailbox.uid.column, &mailbox.modseq.column, &mailbox.uidvalidity.column].into_iter().flatten(),
                )
                .columns(mailbox.set.keys().chain(mailbox.made.keys()))
                .columns(mailbox.references.keys()),
        );
        let (link, message) = (&self.link, &self.message);
        let flags = self.flags.as_ref();
        let flag_columns = flags.filter(|flags| flags.table.is_none());
        let flag_columns = flag_columns.into_iter().flat_map(|flags| flags.columns.0.iter().chain(flags.set.keys()));
        let link_columns = [&link.mailbox, &link.evidence, &link.regenerate].into_iter().flat_map(|columns| &columns.0);
        let link_columns = link_columns.chain(link.uid.iter().chain(&link.modseq));
        let link_columns = link_columns.chain(link.set.keys()).chain(link.references.keys()).chain(flag_columns);
        let own_clocks = message.clocks.iter().filter(|clock| clock.table.is_none()).map(|clock| &clock.column);
        let body = match &message.body {
            Body::Raw { column } | Body::Spliced { column } | Body::HeaderAndParts { header: column } => {
                std::slice::from_ref(column)
            }
            Body::PartsOnly { .. } => &[],
            Body::Text { columns } => columns.0.as_slice(),
        };
        let mut role = Role::new("message", &message.table, self.place(message))
            .key(message.key.as_ref())
            .columns(
                [&message.evidence, &message.self_reference, &message.regenerate].into_iter().flat_map(|list| &list.0),
            )
            .columns(message.size.iter().chain(own_clocks).chain(body))
            .columns(message.references.keys().chain(message.set.keys()))
            .columns(self.part.iter().filter_map(|part| part.referred_by.as_ref()).flat_map(|columns| &columns.0));
        match &link.table {
            None => role = role.columns(link_columns),
            Some(table) => roles.push(
                Role::new("link", table, self.place(link))
                    .key(link.key.as_ref())
                    .columns(link.message.iter().flat_map(|columns| &columns.0))
                    .columns(link_columns),
            ),
        }
        roles.push(role);
        if let Some(flags) = flags
            && let Some(keywords) = &flags.keywords
        {
            roles.push(
                Role::new("keywords", &keywords.table, self.place(flags))
                    .key(keywords.of.as_ref())
                    .columns([&keywords.column])
                    .columns(keywords.of.iter().flat_map(|columns| &columns.0)),
            );
        }
        for part in &self.part {
            roles.push(
                Role::new("part", &part.table, self.place(part))
                    .key(part.key.as_ref())
                    .columns(part.hash.iter().chain(&part.bytes.0))
                    .columns(part.message.iter().flat_map(|columns| &columns.0)),
            );
            if let Some(via) = &part.via {
                roles.push(
                    Role::new("via", &via.table, self.place(part))
                        .key(via.key.as_ref())
                        .columns([&via.message, &via.part, &via.order].into_iter().flat_map(|columns| &columns.0))
                        .columns(&via.position),
                );
            }
        }
        for dictionary in &self.dictionary {
            roles.push(
                Role::new("dictionary", &dictionary.table, self.place(dictionary))
                    .key(dictionary.key.as_ref())
                    .natural(&dictionary.natural)
                    .columns(&dictionary.lower.0)
                    .columns(dictionary.cycle.0.iter().chain(dictionary.references.keys())),
            );
        }
        for child in &self.child {
            roles.push(
                Role::new("child", &child.table, self.place(child))
                    .key(child.natural.as_ref())
                    .columns(child.columns.iter().flat_map(|columns| &columns.0))
                    .columns(child.set.keys().chain(child.references.keys())),
            );
        }
        for tombstone in &self.tombstone {
            if let Some(table) = &tombstone.table {
                let mut role = Role::new("tombstone", table, self.place(tombstone))
                    .columns(
                        [&tombstone.mailbox, &tombstone.message].into_iter().flatten().flat_map(|columns| &columns.0),
                    )
                    .columns([&tombstone.uid, &tombstone.modseq, &tombstone.at].into_iter().flatten())
                    .columns(tombstone.evidence.keys().chain(tombstone.set.keys()));
                role.written = tombstone.write != TombstoneWrite::Never;
                roles.push(role);
            }
        }
        for table in &self.never {
            let mut role = Role::new("never written", table, self.place(table));
            role.written = false;
            roles.push(role);
        }
        roles
    }
}

impl<'a> Role<'a> {
    fn new(name: &'static str, table: &'a str, place: Place) -> Self {
        Self { name, table, place, columns: Vec::new(), key: None, natural: None, written: true }
    }

    fn key(mut self, key: Option<&'a Columns>) -> Self {
        self.columns.extend(key.iter().flat_map(|key| &key.0).map(String::as_str));
        self.key = key;
        self
    }

    fn natural(mut self, natural: &'a Columns) -> Self {
        self.natural = Some(natural);
        self.columns(&natural.0)
    }

    fn columns(mut self, columns: impl IntoIterator<Item = &'a String>) -> Self {
        self.columns.extend(columns.into_iter().map(String::as_str));
        self
    }
}

impl TableView {
    /// Does the catalog see to it that no two rows share these columns?
    pub fn is_unique(&self, columns: &[String]) -> bool {
        let within = |key: &Vec<String>| !key.is_empty() && key.iter().all(|column| columns.contains(column));
        within(&self.primary_key) || self.unique_keys.iter().any(within)
    }

    /// The foreign key from this table to `table` (`schema.table`), if there is exactly one.
    pub fn foreign_key_to(&self, table: &str) -> Option<&ForeignKeyView> {
        let mut found = self.foreign_keys.iter().filter(|key| key.table == table);
        found.next().filter(|_| found.next().is_none())
    }
}

impl Finding {
    fn error(at: Place, message: String) -> Self {
        Self { severity: Severity::Error, at, message }
    }

    fn warning(at: Place, message: String) -> Self {
        Self { severity: Severity::Warning, at, message }
    }
}
