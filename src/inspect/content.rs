//! The mail itself: where its bytes are, its size, its Message-ID, its clocks.

use std::collections::HashMap;

use toml::Value;

use super::description::Kind;
use super::draft::{Confidence, Drafting, Section, sentences, table};
use super::features;
use super::skeleton::GONE;
use super::store::{At, Reference};

/// Content that is kept apart from the message.
#[derive(Debug, Clone)]
pub struct PartFound {
    pub table: usize,
    pub way: Way,
    pub bytes: Vec<usize>,
    pub hash: Option<usize>,
    pub evidence: String,
}

#[derive(Debug, Clone)]
pub enum Way {
    /// A table says which message has which part.
    Via { message: Reference, part: Reference, position: Option<usize> },
    /// The part refers to the message.
    Own(Reference),
    /// The message refers to the part.
    Referred(Reference),
}

const ARRIVAL: [&str; 6] = ["internal", "internaldate", "received", "arriv*", "delivered", "incoming"];
const SAVED: [&str; 9] = ["saved", "save", "created", "stored", "archived", "added", "inserted", "filed", "appended"];
const HEADER: [&str; 3] = ["sent", "date", "header"];
const CHANGES: [&str; 9] =
    ["updated", "modified", "changed", "touched", "read", "flags", "access*", "expires", "synced"];

impl Drafting<'_> {
    pub fn parts(&self) -> Vec<PartFound> {
        let (store, message) = (self.store, self.skeleton.message);
        let mut found: Vec<PartFound> = Vec::new();
        let bytes = |of: usize| -> Vec<usize> {
            let large = |at: At| {
                store.of(at).longest > 0
                    && store.of(at).hash < 0.8
                    && !store.says(at, &["hash", "digest", "checksum", "hmac"])
            };
            let binary = store.columns(of).filter(|(at, column)| column.kind == Kind::Bytes && large(*at));
            let binary: Vec<usize> = binary.map(|(at, _)| at.1).collect();
            if binary.is_empty() {
                return binary;
            }
            let texts = store.columns(of).filter(|(at, column)| {
                column.kind == Kind::Text && large(*at) && store.says(*at, &["text", "content", "body", "data"])
            });
            binary.iter().copied().chain(texts.map(|(at, _)| at.1)).collect()
        };
        let part = |of: usize, way: Way, evidence: &str| {
            let hash =
                store.columns(of).find(|(at, _)| store.says(*at, &["hash", "digest", "checksum", "md5", "sha*"]));
            let hash = hash.or_else(|| store.columns(of).find(|(at, _)| store.of(*at).hash > 0.8));
            PartFound {
                table: of,
                way,
                bytes: bytes(of),
                hash: hash.map(|(at, _)| at.1),
                evidence: evidence.to_owned(),
            }
        };
        for reference in store.references_of(message).filter(|one| self.is_free(one.to)) {
            let hashes = reference.columns.iter().all(|at| store.of((message, *at)).hash > 0.8);
            if !bytes(reference.to).is_empty() || (hashes && !reference.declared) {
                found.push(part(reference.to, Way::Referred(reference.clone()), "the message refers to it"));
            }
        }
        let hanging =
            || store.references.iter().filter(|one| one.to == message && one.from != message && self.is_free(one.from));
        for to_message in hanging() {
            let to_part = store.references_of(to_message.from).find(|one| {
                one.to != message
                    && self.is_free(one.to)
                    && one.columns != to_message.columns
                    && !bytes(one.to).is_empty()
                    && found.iter().all(|part| part.table != one.to)
            });
            if let Some(to_part) = to_part.cloned() {
                let position = self.position(to_message, &to_part);
                let via = Way::Via { message: to_message.clone(), part: to_part.clone(), position };
                found.push(part(to_part.to, via, "a table says which message has which of its rows"));
            }
        }
        let whole = self.raw.is_some_and(|raw| store.of(raw).header_only <= 0.5);
        let via = found.iter().any(|part| matches!(part.way, Way::Via { .. }));
        if !whole && !via {
            for reference in hanging().filter(|one| !bytes(one.from).is_empty()) {
                if found.iter().any(|part| part.table == reference.from) {
                    continue;
                }
                found.push(part(
                    reference.from,
                    Way::Own(reference.clone()),
                    "it refers to the message and holds bytes",
                ));
            }
        }
        found
    }

    /// The column with the place at which a part goes into the body of its message.
    fn position(&self, message: &Reference, part: &Reference) -> Option<usize> {
        let raw = self.raw.filter(|raw| self.store.of(*raw).header_only <= 0.5)?;
        let ([own], [key]) = (message.columns.as_slice(), message.referenced.as_slice()) else { return None };
        let bodies = self.store.rows_by((message.to, *key));
        let columns = self.store.columns(message.from).filter(|((_, at), column)| {
            column.kind == Kind::Integer
                && !message.columns.contains(at)
                && !part.columns.contains(at)
                && !self.store.table(message.from).primary_key.contains(at)
        });
        for (at, _) in columns {
            let places = self
                .store
                .table(at.0)
                .sample
                .iter()
                .filter_map(|row| Some((row[at.1].number()?, bodies.get(&row[*own].print()?)?[raw.1].length()?)));
            let places: Vec<(i64, u64)> = places.collect();
            let inside = places.iter().all(|(place, length)| u64::try_from(*place).is_ok_and(|place| place <= *length));
            let far = places.iter().any(|(place, _)| *place > 40);
            if self.store.says(at, &["position", "offset"]) || (inside && far && !places.is_empty()) {
                return Some(at.1);
            }
        }
        None
    }

    /// The column of the message's table that holds mails or their headers.
    pub fn find_raw(&mut self) {
        let store = self.store;
        let held = store.columns(self.skeleton.message).filter(|(at, _)| store.of(*at).mail > 0.5);
        self.raw =
            held.max_by_key(|(at, _)| (store.of(*at).header_only <= 0.5, store.of(*at).longest)).map(|(at, _)| at);
    }

    pub fn message(&mut self, parts: &[PartFound]) {
        let (store, skeleton) = (self.store, self.skeleton);
        let message = skeleton.message;
        let mut section = Section::new("[message]");
        let points = &skeleton.message_points;
        let guess = section.say("table", self.name(message), Confidence::of(points), "");
        guess.evidence = sentences(points);
        if skeleton.lead < 2 {
            guess.ask("another answer was nearly as good: do the rows of this table lie in the mailboxes?");
        }
        if let Some(key) = self.other_key(message) {
            section.say(
                "key",
                self.columns(message, &key),
                Confidence::Sure,
                "it has no primary key, and these are unique",
            );
        }
        self.size(&mut section, parts);
        self.message_id(&mut section);
        let clocks = self.clocks(&mut section);
        self.message_evidence(&mut section, &clocks);
        self.body(&mut section, parts);
        let own = store.references_of(message).filter(|one| one.to == message).flat_map(|one| one.columns.clone());
        let own: Vec<usize> = own.collect();
        if !own.is_empty() {
            section.say("self_reference", self.columns(message, &own), Confidence::Sure, "refers to another message");
        }
        self.sections.push(section);
    }

    /// How many bytes of each message are stored, by its key.
    fn stored(&self, parts: &[PartFound]) -> HashMap<u64, u64> {
        let (store, message) = (self.store, self.skeleton.message);
        let key = self.skeleton.to_message.as_ref().map_or(&store.table(message).primary_key, |one| &one.referenced);
        let [key] = key.as_slice() else { return HashMap::new() };
        let of_row = |row: &[super::description::Value]| self.raw.and_then(|raw| row[raw.1].length()).unwrap_or(0);
        let rows = &store.table(message).sample;
        let mut stored: HashMap<u64, u64> =
            rows.iter().filter_map(|row| Some((row[*key].print()?, of_row(row)))).collect();
        let bytes = |part: &PartFound, row: &[super::description::Value]| -> u64 {
            part.bytes.iter().filter_map(|at| row[*at].length()).sum()
        };
        for part in parts {
            match &part.way {
                Way::Own(reference) => {
                    let [own] = reference.columns.as_slice() else { continue };
                    for row in &store.table(part.table).sample {
                        if let Some(sum) = row[*own].print().and_then(|print| stored.get_mut(&print)) {
                            *sum += bytes(part, row);
                        }
                    }
                }
                Way::Via { message, part: to_part, .. } => {
                    let ([own], [to], [part_key]) =
                        (message.columns.as_slice(), to_part.columns.as_slice(), to_part.referenced.as_slice())
                    else {
                        continue;
                    };
                    let rows = store.rows_by((part.table, *part_key));
                    for row in &store.table(message.from).sample {
                        let length = row[*to].print().and_then(|print| rows.get(&print)).map(|row| bytes(part, row));
                        if let (Some(length), Some(sum)) =
                            (length, row[*own].print().and_then(|print| stored.get_mut(&print)))
                        {
                            *sum += length;
                        }
                    }
                }
                Way::Referred(reference) => {
                    let ([own], [part_key]) = (reference.columns.as_slice(), reference.referenced.as_slice()) else {
                        continue;
                    };
                    let rows = store.rows_by((part.table, *part_key));
                    for row in &store.table(message).sample {
                        let length = row[*own].print().and_then(|print| rows.get(&print)).map(|row| bytes(part, row));
                        if let (Some(length), Some(sum)) =
                            (length, row[*key].print().and_then(|print| stored.get_mut(&print)))
                        {
                            *sum += length;
                        }
                    }
                }
            }
        }
        stored
    }

    fn size(&mut self, section: &mut Section, parts: &[PartFound]) {
        let (store, message) = (self.store, self.skeleton.message);
        let key = self.skeleton.to_message.as_ref().map_or(&store.table(message).primary_key, |one| &one.referenced);
        // A header alone is not the mail: where the rest was not found, nothing can be compared.
        let headers = self.raw.is_some_and(|raw| store.of(raw).header_only > 0.5)
            && parts.iter().all(|part| part.bytes.is_empty());
        let stored = if headers { HashMap::new() } else { self.stored(parts) };
        let integers = store.columns(message).filter(|(at, column)| {
            column.kind == Kind::Integer
                && !store.refers(*at)
                && !store.is_key(*at)
                && self.skeleton.counters.iter().all(|one| one.content != *at)
        });
        let mut best: Option<(At, usize, usize, bool)> = None;
        for (at, _) in integers {
            let pairs: Vec<(i64, u64)> = store
                .table(message)
                .sample
                .iter()
                .filter_map(|row| {
                    let [key] = key.as_slice() else { return None };
                    Some((row[at.1].number()?, *stored.get(&row[*key].print()?)?))
                })
                .collect();
            let same = pairs.iter().filter(|(size, stored)| u64::try_from(*size) == Ok(*stored) && *size > 0).count();
            let named = store.says(at, &["size", "length", "octets", "bytes", "*size"]);
            let better = best.is_none_or(|(_, most, _, was_named)| (same, named) > (most, was_named));
            if better && (named || same * 2 > pairs.len().max(1)) {
                best = Some((at, same, pairs.len(), named));
            }
        }
        let Some((at, same, of, named)) = best else {
            section.ask("size", "no column holds the size of the mail: is there one?");
            return;
        };
        self.size = Some(at);
        let sure = if same * 5 >= of * 4 && of > 0 { Confidence::Sure } else { Confidence::Likely };
        let evidence = if same > 0 {
            format!("as many bytes as are stored, in {same} of {of} messages")
        } else {
            "by its name".to_owned()
        };
        let guess = section.say("size", self.column(at), sure, evidence);
        if !named && sure != Confidence::Sure {
            guess.ask("is this the size of the mail?");
        }
    }

    fn message_id(&self, section: &mut Section) {
        let (store, message) = (self.store, self.skeleton.message);
        let texts = store.columns(message).filter(|(_, column)| column.kind == Kind::Text);
        let mut best: Option<(i64, At, usize, usize)> = None;
        for (at, _) in texts {
            let pairs: Vec<bool> = store
                .table(message)
                .sample
                .iter()
                .filter_map(|row| {
                    let header = features::field(row[self.raw?.1].start()?, "Message-ID")?;
                    let value = std::str::from_utf8(row[at.1].start()?).ok()?;
                    Some(value.trim_matches(['<', '>']) == header.trim_matches(['<', '>']))
                })
                .collect();
            let same = pairs.iter().filter(|same| **same).count();
            let share = if pairs.is_empty() { 0.0 } else { same as f64 / pairs.len() as f64 };
            let named = store.says(at, &["messageid"]);
            let reply = store.says(at, &["reply", "references", "parent", "irt"]);
            let points = (share * 100.0) as i64 + (store.of(at).message_id * 50.0) as i64 + i64::from(named) * 40
                - i64::from(reply) * 60;
            if points > 30 && best.as_ref().is_none_or(|(most, ..)| points > *most) {
                best = Some((points, at, same, pairs.len()));
            }
        }
        let Some((_, at, same, of)) = best else {
            section.ask("message_id", "no column of the message holds the Message-ID: an expression over the row may find it, else leave it out and `find --message-id` is refused");
            return;
        };
        let (sure, evidence) = if same * 5 >= of * 4 && of > 0 {
            (Confidence::Sure, format!("the Message-ID of the mail in {same} of {of} rows that have both"))
        } else {
            (Confidence::Likely, "its values look like Message-IDs, or its name says so".to_owned())
        };
        section.say("message_id", self.column(at), sure, evidence);
    }

    /// The clocks, and which of them can prove that a row is the same: not NULL, and set once.
    fn clocks(&mut self, section: &mut Section) -> Vec<At> {
        let (store, skeleton) = (self.store, self.skeleton);
        let mut tables = vec![skeleton.message];
        tables.extend(skeleton.to_message.as_ref().map(|_| skeleton.link.from));
        let mut clocks: Vec<(u8, At, &str, Vec<String>, bool)> = Vec::new();
        for (at, column) in tables.iter().flat_map(|table| store.columns(*table)) {
            let epoch = column.kind == Kind::Integer
                && at.0 == skeleton.message
                && store.of(at).is_epoch()
                && !store.refers(at)
                && !store.is_key(at);
            let dead = store.says(at, &GONE) || (store.of(at).is_mostly_null() && !store.says(at, &ARRIVAL));
            if !(column.kind.is_time() || epoch) || store.says(at, &CHANGES) || dead || Some(at) == self.size {
                continue;
            }
            let as_date = self.share_of_dates(at);
            let (order, kind, why, sure) = if store.says(at, &ARRIVAL) {
                (1, "arrival", "by its name", true)
            } else if store.says(at, &SAVED) {
                (0, "saved", "by its name", true)
            } else if as_date.is_some_and(|(same, of)| of > 4 && same * 5 >= of * 4) {
                (2, "header", "the Date of most mails", true)
            } else if self.has_now(at) {
                (0, "saved", "a new row gets the present time by default", true)
            } else if at.0 != skeleton.message {
                (0, "saved", "a time of the row that lies in the mailbox", false)
            } else if store.says(at, &HEADER) {
                (2, "header", "by its name", true)
            } else {
                (1, "arrival", "a time of the mail that no default sets", false)
            };
            clocks.push((order, at, kind, vec![format!("{}: {why}", column.name)], sure));
        }
        if !clocks.is_empty() && clocks.iter().all(|(order, ..)| *order == 2) {
            for clock in &mut clocks {
                (clock.0, clock.2, clock.4) = (1, "arrival", false);
            }
        }
        clocks.sort_by_key(|(order, at, ..)| (*order, at.0 != skeleton.message));
        let (mut list, mut evidence, mut questions) = (Vec::new(), Vec::new(), Vec::new());
        for (_, at, kind, why, sure) in &clocks {
            let column = store.column(*at);
            let mut clock = vec![("column", Value::String(column.name.clone())), ("clock", (*kind).into())];
            match column.kind {
                Kind::Timestamp => {
                    let zone = store.zone().unwrap_or("UTC");
                    clock.extend([("type", "timestamp".into()), ("zone", zone.into())]);
                    let own =
                        store.zone().map(|zone| format!(" ({zone} is the database's own setting)")).unwrap_or_default();
                    questions.push(format!("{} has no zone: in which one does the server write it?{own}", column.name));
                }
                Kind::Integer => clock.push(("type", "epoch".into())),
                _ => {}
            }
            if at.0 != skeleton.message {
                clock.push(("table", self.name(at.0).into()));
            }
            if !sure {
                questions.push(format!(
                    "what moves {}: the arrival, the making of the row, or the sender's Date?",
                    column.name
                ));
            }
            list.push(table(clock));
            evidence.extend(why.clone());
        }
        if list.is_empty() {
            section.ask("clocks", "no time was found: a clock of the kind arrival or saved is needed");
            return Vec::new();
        }
        let sure = if clocks.iter().all(|(.., sure)| *sure) { Confidence::Sure } else { Confidence::Guess };
        let guess = section.say("clocks", Value::Array(list), sure, "");
        guess.evidence = evidence;
        guess.question = (!questions.is_empty()).then(|| questions.join(" "));
        self.saved =
            clocks.iter().find(|(order, at, ..)| *order == 0 && at.0 == skeleton.message).map(|(_, at, ..)| *at);
        let steady = |at: &At| store.of(*at).nulls == 0;
        clocks
            .iter()
            .filter(|(order, at, ..)| *order < 2 && at.0 == skeleton.message && steady(at))
            .map(|(_, at, ..)| *at)
            .collect()
    }

    /// In how many rows a time is the Date of the mail.
    fn share_of_dates(&self, at: At) -> Option<(usize, usize)> {
        let raw = self.raw.filter(|raw| raw.0 == at.0)?;
        let mut dates = std::collections::HashSet::new();
        let (mut same, mut of) = (0, 0);
        for row in &self.store.table(at.0).sample {
            let date = row[raw.1].start().and_then(|start| features::field(start, "Date"));
            let date = date.and_then(|date| {
                jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true).parse_zoned(date).ok()
            });
            if let (Some(date), Some(time)) = (date, row[at.1].number()) {
                let seconds =
                    if self.store.column(at).kind == Kind::Integer { time } else { time.div_euclid(1_000_000) };
                of += 1;
                same += usize::from(date.timestamp().as_second() == seconds);
                dates.insert(seconds);
            }
        }
        // A few dates only would agree with anything.
        (dates.len() * 4 > of).then_some((same, of))
    }

    fn message_evidence(&self, section: &mut Section, clocks: &[At]) {
        let message = self.skeleton.message;
        let mut columns: Vec<usize> = clocks.first().map(|at| at.1).into_iter().collect();
        let hash = self
            .store
            .columns(message)
            .find(|(at, column)| column.not_null && self.store.of(*at).hash > 0.8 && !self.store.is_key(*at));
        match (self.size.filter(|size| self.store.of(*size).nulls == 0), hash) {
            (_, Some((at, _))) => columns.push(at.1),
            (Some(size), None) => columns.push(size.1),
            (None, None) => {}
        }
        if columns.is_empty() {
            section.ask("evidence", "nothing was found that never changes: which columns prove that a row under the same key is the same mail?");
            return;
        }
        let sure = if columns.len() > 1 { Confidence::Likely } else { Confidence::Guess };
        let guess = section.say("evidence", self.list(message, &columns), sure, "never NULL, and no reason to change");
        if columns.len() < 2 {
            guess.ask("is this enough to tell that a row under the same key is the same mail?");
        }
    }

    fn body(&self, section: &mut Section, parts: &[PartFound]) {
        let (store, message) = (self.store, self.skeleton.message);
        let spliced = parts.iter().any(|part| matches!(part.way, Way::Via { position: Some(_), .. }));
        let inner = parts.iter().any(|part| !part.bytes.is_empty());
        let assembly = |name: &str| ("assembly", Value::String(name.to_owned()));
        if let Some(raw) = self.raw {
            let column = || Value::String(self.column(raw));
            let share = (store.of(raw).mail * 100.0).round() as i64;
            let header = store.of(raw).header_only > 0.5;
            match (header && inner, spliced) {
                (true, _) => section.say(
                    "body",
                    table([assembly("header-and-parts"), ("header", column())]),
                    Confidence::Likely,
                    format!("{share} % are headers, and parts hold what follows"),
                ),
                (false, true) => section.say(
                    "body",
                    table([assembly("spliced"), ("column", column())]),
                    Confidence::Likely,
                    format!("{share} % are mails, and parts have places in them"),
                ),
                (false, false) => section.say(
                    "body",
                    table([assembly("raw"), ("column", column())]),
                    if header { Confidence::Guess } else { Confidence::Sure },
                    format!("{share} % of the values that were looked at are mails"),
                ),
            };
            if header && !inner {
                section.ask("body", "only headers were found: where is the rest of the mail?");
            }
            return;
        }
        if parts.iter().any(|part| matches!(part.way, Way::Via { .. }) && !part.bytes.is_empty()) {
            section
                .say(
                    "body",
                    table([assembly("parts-only")]),
                    Confidence::Likely,
                    "no column of the message holds mail, and parts do",
                )
                .ask("is the header among the parts?");
            return;
        }
        let texts: Vec<At> =
            store.columns(message).filter(|(_, column)| column.kind == Kind::Text).map(|(at, _)| at).collect();
        let hashes: Vec<usize> = texts.iter().filter(|at| store.of(**at).hash > 0.8).map(|at| at.1).collect();
        let long = |at: &&At| store.says(**at, &["content", "body", "text", "subject"]) || store.of(**at).longest > 200;
        let columns = if hashes.is_empty() { texts.iter().filter(long).map(|at| at.1).collect() } else { hashes };
        if columns.is_empty() {
            section.ask("body", "no column holds mail, and no parts were found: where are the bytes?");
            return;
        }
        section
            .say(
                "body",
                table([assembly("text"), ("columns", self.list(message, &columns))]),
                Confidence::Guess,
                "no mail was found in this database, only what was taken from it",
            )
            .ask("where are the bytes of the mail? By these columns two mails are told apart");
    }

    pub fn say_parts(&mut self, parts: &[PartFound]) {
        for part in parts {
            let mut section = Section::new("[[part]]");
            let declared = match &part.way {
                Way::Via { message, part, .. } => message.declared && part.declared,
                Way::Own(reference) | Way::Referred(reference) => reference.declared,
            };
            let sure = if declared { Confidence::Sure } else { Confidence::Likely };
            section.say("table", self.name(part.table), sure, part.evidence.clone());
            if let Way::Referred(reference) = &part.way
                && reference.referenced != self.store.table(part.table).primary_key
            {
                section.say("key", self.columns(part.table, &reference.referenced), sure, "what the message refers to");
            }
            if let Some(hash) = part.hash {
                section.say(
                    "hash",
                    self.column((part.table, hash)),
                    Confidence::Likely,
                    "its values look like hashes, or its name says so",
                );
            }
            if part.bytes.is_empty() {
                section
                    .say("external", "?", Confidence::Guess, "the message refers to it by hash, and it holds no bytes")
                    .ask("where are the bytes: which bucket or folder, under which name?");
            } else {
                section.say("bytes", self.columns(part.table, &part.bytes), Confidence::Likely, "what it holds");
            }
            match &part.way {
                Way::Own(reference) => {
                    _ = section.say(
                        "message",
                        self.columns(part.table, &reference.columns),
                        sure,
                        "refers to the message",
                    )
                }
                Way::Referred(reference) => {
                    _ = section.say(
                        "referred_by",
                        self.columns(self.skeleton.message, &reference.columns),
                        sure,
                        "columns of the message",
                    )
                }
                Way::Via { message, part: to_part, position } => {
                    self.say_via(&mut section, message, to_part, *position)
                }
            }
            self.roles.insert(part.table, "part");
            self.sections.push(section);
        }
    }

    fn say_via(&mut self, section: &mut Section, message: &Reference, part: &Reference, position: Option<usize>) {
        let via = message.from;
        let mut pairs = vec![("table", self.name(via).into())];
        let key = self.other_key(via);
        pairs.extend(key.as_ref().map(|key| ("key", self.columns(via, key))));
        pairs.push(("message", self.columns(via, &message.columns)));
        pairs.push(("part", self.columns(via, &part.columns)));
        let key = key.unwrap_or_else(|| self.store.table(via).primary_key.clone());
        let order: Vec<usize> =
            key.into_iter().filter(|at| !message.columns.contains(at) && !part.columns.contains(at)).collect();
        if !order.is_empty() {
            pairs.push(("order", self.list(via, &order)));
        }
        pairs.extend(position.map(|at| ("position", self.column((via, at)).into())));
        let guess = section.say("via", table(pairs), Confidence::Likely, "it refers to both");
        if order.len() != 1 {
            guess.ask("in which order do the parts of a message stand?");
        }
        if position.is_some() {
            guess.evidence.push("a number that lies within the body".to_owned());
        }
        self.roles.insert(via, "via");
    }
}
