//! Laying a profile over the tables of the snapshot and the catalog of the live store.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::tz::TimeZone;

use super::changed::align;
use super::{
    Body, Buried, Child, Clock, Content, Dictionary, Keyword, Layout, Message, Parent, Part, Refers, Shared, Table,
    Tombstone, Trigger,
};
use crate::compare::error::CompareError;
use crate::compare::keys::Keys;
use crate::compare::source::{Facts, SourceColumn, SourceTable};
use crate::postgres::catalog::{self, Catalog, TableName};
use crate::profile::{self, ClockKind, Columns, CounterKind, Profile, SoftReferences};
use crate::repository::manifest::{StoreIdentity, Wire};

mod children;
mod dictionaries;
mod keys;
mod unique;

/// Lays the profile over both sides.
pub fn layout(profile: &Profile, facts: &Facts, catalog: &Catalog) -> Result<Layout, CompareError> {
    let mut lay = Lay { profile, facts, catalog, known: Vec::new(), keys: Vec::new(), led: HashMap::new() };
    lay.find_keys()?;
    let mut owner = profile.owner.as_ref().map(|owner| lay.owner(owner)).transpose()?;
    let mut mailbox = lay.mailbox()?;
    lay.known.extend(owner.iter().map(|owner| (Refers::Owner, owner.table.source.name.clone())));
    lay.known.push((Refers::Mailbox, mailbox.table.source.name.clone()));
    if profile.message_is_link() {
        lay.known.push((Refers::Message, lay.name(&profile.message.table)));
    } else if !profile.message.self_reference.0.is_empty()
        || profile.dictionary.iter().any(|one| !one.cycle.0.is_empty())
    {
        return Err(CompareError::NotYet { what: "rows refer to mail that several links share" });
    }
    let mut dictionaries = dictionaries::lay(&mut lay)?;
    if let Some(owner) = &mut owner {
        let refers = lay.refers(&owner.table, &SoftReferences::new(), &[])?;
        let named = refers.into_iter().filter_map(|(at, refers)| match refers {
            Refers::Dictionary(kind) if owner.natural.contains(&at) => Some((at, kind)),
            _ => None,
        });
        owner.named = named.collect();
    }
    let mut message = lay.message()?;
    message.unique = unique::of_messages(catalog, &message);
    if let Some(content) = &mut message.content {
        content.unique = unique::of_contents(catalog, content);
    }
    let parts = profile.part.iter().filter(|part| part.via.is_some());
    let parts = parts.map(|part| lay.part(part, &message)).collect::<Result<Vec<_>, _>>()?;
    let (mut children, mut contents) = (Vec::new(), Vec::new());
    for part in profile.part.iter().filter(|part| part.message.is_some()) {
        let child = lay.own_part(part, &message)?;
        contents.push(Content { child: children.len(), columns: lay.columns(&child.table, &part.bytes)? });
        children.push(child);
    }
    for child in &profile.child {
        let of = profile.parent_of(child);
        let of_owner = owner.as_ref().is_some_and(|owner| lay.name(of) == owner.table.source.name);
        let content = message.content.as_ref().filter(|content| lay.name(of) == content.table.source.name);
        let via = parts.iter().map(|part| &part.via).find(|via| lay.name(of) == via.table.source.name);
        let hangs_on_mail = if lay.name(of) == message.link.source.name {
            Some(lay.child(child, &message.link, message.link.key.clone())?)
        } else if let Some(content) = content {
            Some(lay.child(child, &content.table, vec![content.of])?)
        } else if let Some(via) = via {
            Some(lay.under_via(child, via)?)
        } else {
            None
        };
        if let Some(laid) = hangs_on_mail {
            if child.header {
                let columns = lay.header(&laid, &message, &dictionaries)?;
                contents.push(Content { child: children.len(), columns });
            }
            children.push(laid);
        } else if lay.name(of) == mailbox.table.source.name {
            let child = lay.child(child, &mailbox.table, mailbox.table.key.clone())?;
            mailbox.children.push(child);
        } else if let Some(owner) = owner.as_mut().filter(|_| of_owner) {
            let child = lay.child(child, &owner.table, owner.table.key.clone())?;
            owner.children.push(child);
        } else if let Some(one) = dictionaries.iter_mut().find(|one| lay.name(of) == one.table.source.name) {
            let child = lay.child(child, &one.table, one.table.key.clone())?;
            one.children.push(child);
        } else {
            return Err(CompareError::NotYet {
                what: "rows hang on other tables than accounts, mailboxes, messages, what names their parts, and dictionaries",
            });
        }
    }
    let flags = profile.flags.as_ref().and_then(|flags| flags.table.as_ref());
    if flags.is_some_and(|flags| !children.iter().any(|child| child.table.source.name == lay.name(flags))) {
        return Err(CompareError::NotYet { what: "flags lie in a table that is no child of the messages" });
    }
    let keyword = match profile.flags.as_ref().and_then(|flags| flags.keywords.as_ref()) {
        None => None,
        Some(keywords) => {
            let mut by = keywords.of.clone().unwrap_or_default();
            by.0.push(keywords.column.clone());
            let table = lay.keyed(&keywords.table, Some(&by))?;
            let of = lay.references(&table, keywords.of.as_ref(), &message.link)?;
            let column = lay.column(&table, &keywords.column)?;
            children.push(Child {
                natural: table.key.clone(),
                set: BTreeMap::new(),
                issued: Vec::new(),
                refers: lay.refers(&table, &SoftReferences::new(), &of)?,
                foreign: Vec::new(),
                mutable: true,
                of,
                to: message.link.key.clone(),
                table,
            });
            let marked =
                children.last().and_then(|child| child.dictionary(column)).filter(|_| keywords.restored.is_some());
            if marked.is_some_and(|kind| dictionaries[kind].natural.len() != 1) {
                return Err(CompareError::NotYet { what: "keywords are values that several columns tell apart" });
            }
            Some(Keyword { child: children.len() - 1, column, restored: keywords.restored.clone() })
        }
    };
    let mut triggers = Vec::new();
    let written = [&mailbox.table, &message.link].into_iter().chain(owner.iter().map(|owner| &owner.table));
    let written = written.chain(message.content.iter().map(|content| &content.table));
    let hanging = owner.iter().flat_map(|owner| &owner.children).chain(&mailbox.children);
    let written = written.chain(hanging.map(|child| &child.table));
    let written = written.chain(parts.iter().flat_map(|part| [&part.table, &part.via.table]));
    let written = written.chain(dictionaries.iter().map(|one| &one.table));
    let hanging = dictionaries.iter().flat_map(|one| &one.children);
    let written = written.chain(hanging.map(|child| &child.table));
    for table in written.chain(children.iter().map(|child| &child.table)) {
        let Some(facts) = catalog.table(&table.source.name.schema, &table.source.name.name) else { continue };
        triggers.extend(facts.triggers.iter().filter(|trigger| matches!(&*trigger.enabled, "O" | "A")).map(
            |trigger| Trigger { table: table.label(), name: trigger.name.clone(), function: trigger.function.clone() },
        ));
    }
    let buried = profile.tombstone.iter().find_map(|one| Some((one, one.predicate.as_ref()?)));
    let buried = buried.map(|(one, predicate)| lay.buried(one, predicate, &message.link)).transpose()?;
    let tombstones = profile.tombstone.iter().filter(|tombstone| tombstone.table.is_some());
    let tombstones = tombstones.map(|tombstone| lay.tombstone(tombstone, &message)).collect::<Result<_, _>>()?;
    let mut layout = Layout {
        schema: profile.schema.clone(),
        owner,
        mailbox,
        message,
        parts,
        children,
        contents,
        dictionaries,
        keyword,
        uid_sequence: lay.sequence(&profile.mailbox.uid),
        modseq_sequence: lay.sequence(&profile.mailbox.modseq),
        tombstones,
        buried,
        external: profile.part.iter().filter_map(|part| part.external.clone()).collect(),
        triggers,
        derived: profile.derived.iter().filter(|one| !one.trigger).filter_map(|one| one.sql.clone()).collect(),
        deferred: profile.deferred,
        keys: lay.keys,
    };
    align(&mut layout);
    Ok(layout)
}

/// Lays the profile over the live store alone, for work that needs no snapshot.
pub fn layout_of_live(profile: &Profile, catalog: &Catalog) -> Result<Layout, CompareError> {
    let tables = catalog.tables.iter().map(|table| SourceTable {
        name: table.name.clone(),
        columns: table
            .live_columns()
            .map(|column| SourceColumn {
                number: column.number,
                name: column.name.clone(),
                type_name: column.type_name.clone(),
                wire: if column.wire == catalog::Wire::Text { Wire::Text } else { Wire::Binary },
                widened: None,
            })
            .collect(),
        leaves: vec![table.name.clone()],
        rows: 0,
    });
    let facts = Facts {
        repository: String::new(),
        snapshot: String::new(),
        store: StoreIdentity { system_identifier: None, database: String::new(), database_oid: 0 },
        taken: jiff::Timestamp::UNIX_EPOCH,
        encoding: String::new(),
        tables: tables.collect(),
        sequences: Default::default(),
    };
    layout(profile, &facts, catalog)
}

/// `schema.table` in its parts.
pub(super) fn table_name(qualified: &str) -> TableName {
    let (schema, name) = qualified.split_once('.').unwrap_or(("public", qualified));
    TableName { schema: schema.to_owned(), name: name.to_owned() }
}

pub(super) struct Lay<'a> {
    pub(super) profile: &'a Profile,
    pub(super) facts: &'a Facts,
    catalog: &'a Catalog,
    /// What rows may refer to besides their message.
    known: Vec<(Refers, TableName)>,
    /// Keys that became others, and the columns that hold them or refer to them.
    keys: Vec<Arc<Keys>>,
    led: HashMap<(TableName, String), Arc<Keys>>,
}

impl Lay<'_> {
    pub(super) fn name(&self, table: &str) -> TableName {
        table_name(&self.profile.qualify(table))
    }

    fn table(&self, table: &str, key: Option<&Columns>) -> Result<Table, CompareError> {
        let name = self.name(table);
        let missing = |place| CompareError::NoTable { table: name.to_string(), place };
        let mut source = self.before(&name).ok_or_else(|| missing("snapshot"))?;
        let live = self.catalog.table(&name.schema, &name.name).ok_or_else(|| missing("live store"))?;
        let default = |column: &str| {
            let found = self.catalog.sensitive.defaults.iter();
            let mut found = found.filter(|default| default.column.table == name && default.column.column == column);
            found.next().map(|default| default.expression.clone())
        };
        let columns = self.columns_now(&mut source, live, &default)?;
        let mut all: Vec<(String, String)> =
            live.stored_columns().map(|column| (column.name.clone(), column.type_name.clone())).collect();
        all.sort();
        let (added, obstacles) = (self.added(&name), self.obstacles(&columns, live));
        let mut table = Table { source, columns, key: Vec::new(), live: all, from: None, added, obstacles };
        table.key = match (key, live.primary_key()) {
            (Some(key), _) => self.columns(&table, key)?,
            (None, Some(key)) => key.columns.iter().map(|name| self.column(&table, name)).collect::<Result<_, _>>()?,
            (None, None) => return Err(CompareError::NoKey { table: table.label() }),
        };
        Ok(table)
    }

    /// Where there is no primary key, `natural` stands for it.
    fn keyed(&self, table: &str, natural: Option<&Columns>) -> Result<Table, CompareError> {
        let name = self.name(table);
        let live = self.catalog.table(&name.schema, &name.name);
        self.table(table, natural.filter(|_| live.is_some_and(|live| live.primary_key().is_none())))
    }

    fn column(&self, table: &Table, name: &str) -> Result<usize, CompareError> {
        let name = self.now(&table.source.name, name);
        let at = table.columns.iter().position(|column| column.name == name).ok_or_else(|| CompareError::NoColumn {
            table: table.label(),
            column: name.to_owned(),
            place: "snapshot",
        })?;
        let column = &table.columns[at];
        if column.live.is_none() {
            let gone = || "the live store has it no longer, and the profile needs it".to_owned();
            let reason = column.obstacle.clone().unwrap_or_else(gone);
            return Err(CompareError::Changed { table: table.label(), column: name.to_owned(), reason });
        }
        Ok(at)
    }

    fn columns(&self, table: &Table, columns: &Columns) -> Result<Vec<usize>, CompareError> {
        columns.0.iter().map(|name| self.column(table, name)).collect()
    }

    fn single(&self, table: &Table, columns: &Columns, role: &'static str) -> Result<usize, CompareError> {
        match &columns.0[..] {
            [name] => self.column(table, name),
            _ => Err(CompareError::WrongType {
                table: table.label(),
                column: columns.0.join(", "),
                found: format!("{} columns", columns.0.len()),
                role,
            }),
        }
    }

    fn optional(&self, table: &Table, name: Option<&String>) -> Result<Option<usize>, CompareError> {
        name.map(|name| self.column(table, name)).transpose()
    }

    fn assignments(
        &self,
        table: &Table,
        of: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<usize, String>, CompareError> {
        of.iter().map(|(name, sql)| Ok((self.column(table, name)?, sql.clone()))).collect()
    }

    /// The column of `table` that refers to `to`: as the profile says, or as the foreign key does.
    fn reference(&self, table: &Table, columns: Option<&Columns>, to: &Table) -> Result<usize, CompareError> {
        if let Some(columns) = columns {
            return self.single(table, columns, "a reference");
        }
        let live = self.catalog.table(&table.source.name.schema, &table.source.name.name);
        let mut keys = live.into_iter().flat_map(|live| &live.constraints).filter(|constraint| {
            constraint.references.as_ref().is_some_and(|reference| reference.table == to.source.name)
        });
        match keys.next().map(|constraint| &constraint.columns[..]) {
            Some([name]) => self.column(table, name),
            _ => Err(CompareError::NoColumn {
                table: table.label(),
                column: format!("that refers to {}", to.label()),
                place: "profile",
            }),
        }
    }

    /// The columns of `table` that refer to the key of `to`, in the order of that.
    fn references(&self, table: &Table, columns: Option<&Columns>, to: &Table) -> Result<Vec<usize>, CompareError> {
        if to.key.len() == 1 {
            return Ok(vec![self.reference(table, columns, to)?]);
        }
        let found = match columns {
            Some(columns) => self.columns(table, columns)?,
            None => {
                let live = self.catalog.table(&table.source.name.schema, &table.source.name.name);
                let keys = live.into_iter().flat_map(|live| &live.constraints);
                let mut keys = keys.filter_map(|one| Some((one, one.references.as_ref()?)));
                let key = keys.find(|(_, reference)| reference.table == to.source.name);
                let of = |at: &usize| {
                    let (own, reference) = key?;
                    let place = reference.columns.iter().position(|name| *name == to.columns[*at].name)?;
                    self.column(table, own.columns.get(place)?).ok()
                };
                to.key.iter().filter_map(of).collect()
            }
        };
        if found.len() == to.key.len() {
            return Ok(found);
        }
        let column = format!("that refers to all of the key of {}", to.label());
        Err(CompareError::NoColumn { table: table.label(), column, place: "profile" })
    }

    fn derived(&self, table: &Table) -> Vec<usize> {
        let name = &table.source.name;
        let derived = self.profile.derived.iter().filter(|derived| self.name(&derived.table) == *name);
        derived.filter_map(|derived| self.column(table, derived.column.as_ref()?).ok()).collect()
    }

    /// The columns of `table` but `own` that refer to what is `known`: by foreign key, or as the profile says. `own` refers to what the rows
    /// belong to.
    fn refers(
        &self,
        table: &Table,
        soft: &SoftReferences,
        own: &[usize],
    ) -> Result<Vec<(usize, Refers)>, CompareError> {
        let to = |name: &TableName| self.known.iter().find(|(_, known)| known == name).map(|(refers, _)| *refers);
        let mut found = BTreeMap::new();
        let live = self.catalog.table(&table.source.name.schema, &table.source.name.name);
        for constraint in live.into_iter().flat_map(|live| &live.constraints) {
            let reference = constraint.references.as_ref();
            if let ([column], Some(refers)) = (&constraint.columns[..], reference.and_then(|one| to(&one.table))) {
                // A column that is newer than the snapshot is not written.
                if let Ok(column) = self.column(table, column) {
                    found.insert(column, refers);
                }
            }
        }
        for (column, name) in soft {
            if let Some(refers) = to(&self.name(name)) {
                found.insert(self.column(table, column)?, refers);
            }
        }
        found.retain(|column, _| !own.contains(column));
        Ok(found.into_iter().collect())
    }

    /// What other columns than `own` and these refer to by foreign key, in tables without a role.
    fn foreign(&self, table: &Table, own: &[usize], refers: &[(usize, Refers)]) -> Vec<(usize, TableName, String)> {
        let live = self.catalog.table(&table.source.name.schema, &table.source.name.name);
        let constraints = live.into_iter().flat_map(|live| &live.constraints);
        let single = constraints.filter_map(|constraint| {
            let reference = constraint.references.as_ref()?;
            let ([column], [there]) = (&constraint.columns[..], &reference.columns[..]) else { return None };
            if self.profile.has_role(&reference.table.to_string()) {
                return None;
            }
            Some((self.column(table, column).ok()?, reference.table.clone(), there.clone()))
        });
        single.filter(|(at, ..)| !own.contains(at) && refers.iter().all(|(known, _)| known != at)).collect()
    }

    fn sequence(&self, counter: &profile::Counter) -> Option<TableName> {
        let sequence = counter.sequence.as_ref().filter(|_| counter.kind == CounterKind::GlobalSequence);
        sequence.map(|name| self.name(name))
    }

    fn owner(&self, owner: &profile::Owner) -> Result<Parent, CompareError> {
        let table = self.table(&owner.table, owner.key.as_ref())?;
        table.single_key()?;
        Ok(Parent {
            natural: self.columns(&table, &owner.natural)?,
            evidence: self.columns(&table, &owner.evidence)?,
            owner: None,
            home: None,
            live: owner.live.clone(),
            over_quota: owner.over_quota.clone(),
            derived: self.derived(&table),
            uid: None,
            modseq: None,
            uidvalidity: None,
            uid_is_next: false,
            modseq_is_next: false,
            uid_by_rows: false,
            modseq_by_rows: false,
            set: BTreeMap::new(),
            made: self.assignments(&table, &owner.made)?,
            children: Vec::new(),
            named: Vec::new(),
            table,
        })
    }

    fn mailbox(&self) -> Result<Parent, CompareError> {
        let mailbox = &self.profile.mailbox;
        let table = self.table(&mailbox.table, mailbox.key.as_ref())?;
        table.single_key()?;
        let owner = mailbox.owner.as_ref().map(|owner| self.single(&table, owner, "a reference")).transpose()?;
        Ok(Parent {
            natural: self.columns(&table, &mailbox.natural)?,
            evidence: self.columns(&table, &mailbox.evidence)?,
            owner,
            home: mailbox.home.clone(),
            live: mailbox.live.clone(),
            over_quota: None,
            derived: self.derived(&table),
            uid: self.optional(&table, mailbox.uid.column.as_ref())?,
            modseq: self.optional(&table, mailbox.modseq.column.as_ref())?,
            uidvalidity: self.optional(&table, mailbox.uidvalidity.column.as_ref())?,
            uid_is_next: mailbox.uid.kind == CounterKind::Next,
            modseq_is_next: mailbox.modseq.kind == CounterKind::Next,
            uid_by_rows: mailbox.uid.kind == CounterKind::MaxOverRows,
            modseq_by_rows: mailbox.modseq.kind == CounterKind::MaxOverRows,
            set: self.assignments(&table, &mailbox.set)?,
            made: self.assignments(&table, &mailbox.made)?,
            children: Vec::new(),
            named: Vec::new(),
            table,
        })
    }

    fn message(&self) -> Result<Message, CompareError> {
        let (message, link, flags) = (&self.profile.message, &self.profile.link, self.profile.flags.as_ref());
        let (own, content) = match &link.table {
            None => (self.table(&message.table, message.key.as_ref())?, None),
            Some(name) => {
                let (own, content) =
                    (self.table(name, link.key.as_ref())?, self.table(&message.table, message.key.as_ref())?);
                let of = self.reference(&own, link.message.as_ref(), &content)?;
                (own, Some((content, of)))
            }
        };
        let table = match &content {
            None => {
                own.single_key()?;
                own.clone()
            }
            Some((content, of)) => super::joined::joined(&own, content, *of)?,
        };
        // Positions in the joined table of what the profile says of the message, which the content's table has.
        let first = content.as_ref().map_or(0, |_| own.columns.len());
        let mail = content.as_ref().map_or(&own, |(content, _)| content);
        let column = |name: &String| Ok::<_, CompareError>(first + self.column(mail, name)?);
        let columns = |names: &Columns| names.0.iter().map(column).collect::<Result<Vec<_>, _>>();
        let mut clocks = Vec::new();
        for clock in &message.clocks {
            let zone = clock
                .zone
                .as_ref()
                .map(|zone| TimeZone::get(zone).map_err(|_| CompareError::UnknownZone { zone: zone.clone() }));
            let of_link = clock.table.as_ref().is_some_and(|table| self.name(table) == own.source.name);
            clocks.push(Clock {
                column: if of_link { self.column(&own, &clock.column)? } else { column(&clock.column)? },
                kind: clock.clock,
                time: clock.time,
                zone: zone.transpose()?,
            });
        }
        clocks.retain(|clock| clock.kind != ClockKind::Header);
        clocks.sort_by_key(|clock| clock.kind != ClockKind::Saved);
        let body = match &message.body {
            profile::Body::Raw { column: name } => Body::Raw(column(name)?),
            profile::Body::Spliced { column: name } => Body::Spliced(column(name)?),
            profile::Body::Text { columns: names } => Body::Pieces(columns(names)?),
            profile::Body::PartsOnly { header_first } => Body::Parts { header_first: *header_first },
            profile::Body::HeaderAndParts { header } => self.headed(mail, first, header)?,
        };
        let size = message.size.as_ref().map(column).transpose()?;
        let mut evidence = columns(&message.evidence)?;
        // Which content it links to never changes.
        evidence.extend(content.as_ref().map(|(_, of)| *of));
        evidence.extend(self.columns(&own, &link.evidence)?);
        if evidence.is_empty() {
            // What a mail server never changes.
            evidence.extend(clocks.iter().map(|clock| clock.column).chain(size));
        }
        let mut set = self.assignments(&own, &link.set)?;
        let mut regenerate = self.columns(&own, &link.regenerate)?;
        let mut flag_columns = Vec::new();
        if let Some(flags) = flags.filter(|flags| flags.table.is_none()) {
            set.extend(self.assignments(&own, &flags.set)?);
            flag_columns = self.columns(&own, &flags.columns)?;
        }
        let mailbox = self.single(&own, &link.mailbox, "a reference")?;
        let mut soft = message.references.clone();
        for part in &self.profile.part {
            for column in part.referred_by.iter().flat_map(|columns| &columns.0) {
                soft.insert(column.clone(), part.table.clone());
            }
        }
        let own_reference = message.self_reference.0.iter();
        soft.extend(own_reference.map(|column| (column.clone(), message.table.clone())));
        let content = match &content {
            None => {
                soft.extend(link.references.clone());
                set.extend(self.assignments(&own, &message.set)?);
                regenerate.extend(self.columns(&own, &message.regenerate)?);
                None
            }
            Some((content, of)) => Some(Shared {
                of: *of,
                first,
                evidence: self.columns(content, &message.evidence)?,
                set: self.assignments(content, &message.set)?,
                regenerate: self.columns(content, &message.regenerate)?,
                refers: self.refers(content, &std::mem::replace(&mut soft, link.references.clone()), &[])?,
                unique: Vec::new(),
                table: content.clone(),
            }),
        };
        let refers = self.refers(&own, &soft, &[mailbox])?;
        Ok(Message {
            mailbox,
            evidence,
            size,
            // An expression cannot be had from row chunks.
            message_id: message.message_id.as_ref().and_then(|name| column(name).ok()),
            uid: self.optional(&own, link.uid.as_ref())?,
            modseq: self.optional(&own, link.modseq.as_ref())?,
            clocks,
            body,
            flags: flag_columns,
            set,
            regenerate,
            derived: self.derived(&table),
            unique: Vec::new(),
            refers,
            table,
            link: own,
            content,
        })
    }

    /// Content that lies in rows of the message's own.
    fn own_part(&self, part: &profile::Part, message: &Message) -> Result<Child, CompareError> {
        let table = self.table(&part.table, part.key.as_ref())?;
        let mail = message.content.as_ref().map_or(&message.link, |content| &content.table);
        let (of, to) = (self.reference(&table, part.message.as_ref(), mail)?, message.mail_key()?);
        // Numbers are issued again, so what tells the parts of one message apart is what else is unique with it.
        let keys = unique::keys(self.catalog, &table).into_iter().filter(|one| one.predicate.is_none());
        let mut keys = keys.filter(|one| one.columns.contains(&of)).map(|one| one.columns);
        let natural: Vec<usize> = match keys.next() {
            Some(key) => key.into_iter().filter(|at| *at != of).collect(),
            None if table.key.contains(&of) => table.key.iter().copied().filter(|at| *at != of).collect(),
            None => return Err(CompareError::NotYet { what: "parts are told apart by nothing but a number" }),
        };
        let issued = table.key.iter().copied();
        let issued = issued.filter(|at| *at != of && !natural.contains(at) && table.filled(*at)).collect();
        let refers = self.refers(&table, &SoftReferences::new(), &[of])?;
        let (of, to) = (vec![of], vec![to]);
        Ok(Child { of, to, natural, set: BTreeMap::new(), issued, refers, foreign: Vec::new(), mutable: false, table })
    }

    fn part(&self, part: &profile::Part, message: &Message) -> Result<Part, CompareError> {
        let Some(via) = &part.via else {
            return Err(CompareError::NotYet { what: "parts lie in the table that names them" });
        };
        if part.external.is_some() {
            return Err(CompareError::NotYet { what: "parts that have a table of links lie outside the database" });
        }
        let table = self.table(&part.table, part.key.as_ref())?;
        let link = self.table(&via.table, via.key.as_ref())?;
        let soft = via.part.0.iter().map(|column| (column.clone(), part.table.clone())).collect();
        let of = self.single(&link, &via.message, "a reference")?;
        Ok(Part {
            bytes: self.columns(&table, &part.bytes)?,
            part: self.single(&link, &via.part, "a reference")?,
            order: self.columns(&link, &via.order)?,
            position: self.optional(&link, via.position.as_ref())?,
            numbered: self.numbered(part)?.is_some(),
            via: Child {
                of: vec![of],
                to: vec![message.mail_key()?],
                natural: self.columns(&link, &via.order)?,
                set: BTreeMap::new(),
                issued: Vec::new(),
                refers: self.refers(&link, &soft, &[of])?,
                foreign: Vec::new(),
                mutable: false,
                table: link,
            },
            table,
        })
    }

    /// The mail is a header, and behind it a part that its row refers to.
    fn headed(&self, mail: &Table, first: usize, header: &str) -> Result<Body, CompareError> {
        let mut parts = self.profile.part.iter().filter(|part| part.referred_by.is_some());
        let (Some(part), None) = (parts.next(), parts.next()) else {
            return Err(CompareError::NotYet { what: "mail is kept as a header and several parts" });
        };
        let to = self.known.iter().find(|(_, known)| *known == self.name(&part.table)).map(|(refers, _)| *refers);
        let (Some(Refers::Dictionary(kind)), Some(column)) = (to, &part.referred_by) else {
            return Err(CompareError::NotYet {
                what: "mail is kept as a header and a part in a table of another role",
            });
        };
        Ok(Body::Headed {
            header: first + self.column(mail, header)?,
            part: first + self.single(mail, column, "a reference")?,
            kind,
            bytes: self.columns(&self.table(&part.table, part.key.as_ref())?, &part.bytes)?,
        })
    }

    /// A part whose key the store draws.
    pub(super) fn numbered(&self, part: &profile::Part) -> Result<Option<(Table, Vec<usize>)>, CompareError> {
        let table = self.table(&part.table, part.key.as_ref())?;
        if part.via.is_none() || !table.filled(table.single_key()?) {
            return Ok(None);
        }
        let mut natural = self.columns(&table, &part.bytes)?;
        // First what may have an index.
        natural.splice(0..0, self.optional(&table, part.hash.as_ref())?);
        Ok(Some((table, natural)))
    }

    fn buried(&self, one: &profile::Tombstone, predicate: &str, message: &Table) -> Result<Buried, CompareError> {
        Ok(Buried {
            predicate: predicate.to_owned(),
            columns: message.named_in(predicate),
            at: self.optional(message, one.at.as_ref())?,
            modseq: self.optional(message, one.modseq.as_ref())?,
            set: self.assignments(message, &one.set)?,
            written: one.write == profile::TombstoneWrite::OnUndo,
        })
    }

    fn tombstone(&self, tombstone: &profile::Tombstone, message: &Message) -> Result<Tombstone, CompareError> {
        let name = self.name(tombstone.table.as_deref().unwrap_or_default());
        let now = |column: &String| self.now(&name, column).to_owned();
        let first = |columns: &Option<Columns>| columns.as_ref().and_then(|columns| columns.0.first().map(now));
        let evidence = tombstone.evidence.iter();
        // What it refers to is what the profile calls the message: where links have a table of their own, the content.
        let keeps_content = message.content.is_some() && tombstone.message.is_some();
        let of = message.content.as_ref().map_or_else(|| message.link.key.first().copied(), |content| Some(content.of));
        for (own, of) in [(first(&tombstone.mailbox), Some(message.mailbox)), (first(&tombstone.message), of)] {
            if let (Some(own), Some(of)) = (own, of) {
                self.refers_to_new_keys(&name, &own, &message.link.source.columns[of])?;
            }
        }
        Ok(Tombstone {
            keeps_content,
            mailbox: first(&tombstone.mailbox),
            uid: tombstone.uid.as_ref().map(now),
            modseq: tombstone.modseq.as_ref().map(now),
            message: first(&tombstone.message),
            evidence: evidence
                .map(|(own, of)| Ok((now(own), self.of_message(message, of)?)))
                .collect::<Result<_, CompareError>>()?,
            at: tombstone.at.as_ref().map(now),
            set: tombstone.set.iter().map(|(column, sql)| (now(column), sql.clone())).collect(),
            name: name.clone(),
            written: tombstone.write == profile::TombstoneWrite::OnUndo,
        })
    }

    /// A column of the link or, if that has none of the name, of the content: its position in the joined table.
    fn of_message(&self, message: &Message, name: &str) -> Result<usize, CompareError> {
        match (self.column(&message.link, name), &message.content) {
            (Err(_), Some(content)) => Ok(content.first + self.column(&content.table, name)?),
            (own, _) => own,
        }
    }
}
