use super::*;
use proptest::prelude::*;

const REFERENCE: &str = include_str!("builtin/reference.toml");

fn refusal(toml: &str) -> ProfileError {
    Profile::parse("mine.toml", toml).expect_err("it does not fit together")
}

/// The reference profile with one text replaced.
fn altered(what: &str, with: &str) -> String {
    assert!(REFERENCE.contains(what), "{what}");
    REFERENCE.replacen(what, with, 1)
}

/// A catalog in which every table and column of `profile` exists, with unique keys where they are needed.
fn fitting(profile: &Profile) -> CatalogView {
    let mut catalog = CatalogView::default();
    for role in profile.roles() {
        let table: &mut TableView = catalog.tables.entry(profile.qualify(role.table)).or_default();
        table.columns.extend(role.columns.iter().map(|column| ((*column).to_owned(), "text".to_owned())));
        table.primary_key = vec!["id".to_owned()];
        table.unique_keys.extend(role.natural.map(|natural| natural.0.clone()));
    }
    for clock in &profile.message.clocks {
        let table = clock.table.as_ref().unwrap_or(&profile.message.table);
        let kind = match clock.time {
            TimeType::Timestamptz => "timestamp(6) with time zone",
            TimeType::Timestamp => "timestamp without time zone",
            TimeType::Epoch => "integer",
        };
        let table = catalog.tables.entry(profile.qualify(table)).or_default();
        table.columns.insert(clock.column.clone(), kind.to_owned());
    }
    for derived in &profile.derived {
        let table = catalog.tables.entry(profile.qualify(&derived.table)).or_default();
        table.columns.extend(derived.column.iter().map(|column| (column.clone(), "bigint".to_owned())));
    }
    if let Some(flags) = &profile.flags
        && let Some(table) = &flags.table
    {
        let table = catalog.tables.entry(profile.qualify(table)).or_default();
        table.columns.extend(flags.columns.0.iter().map(|column| (column.clone(), "boolean".to_owned())));
    }
    let children = profile.child.iter().map(|child| (&child.table, profile.parent_of(child)));
    let keywords = profile.flags.iter().filter_map(|flags| flags.keywords.as_ref());
    let keywords = keywords.map(|keywords| (&keywords.table, profile.link_table()));
    for (table, parent) in children.chain(keywords) {
        let key = ForeignKeyView {
            columns: vec!["x".to_owned()],
            table: profile.qualify(parent),
            referenced: vec!["id".to_owned()],
        };
        catalog.tables.entry(profile.qualify(table)).or_default().foreign_keys.push(key);
    }
    let sequences = [&profile.mailbox.uid.sequence, &profile.mailbox.modseq.sequence];
    catalog.sequences.extend(sequences.into_iter().flatten().map(|sequence| profile.qualify(sequence)));
    catalog
}

fn messages(findings: Vec<Finding>) -> Vec<String> {
    findings.into_iter().map(|finding| finding.message).collect()
}

#[test]
fn every_shipped_profile_fits_together() {
    for name in Profile::builtin_names() {
        let profile = Profile::builtin(name).unwrap().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(profile.profile, name);
        assert_eq!(messages(profile.validate(&fitting(&profile))), [""; 0]);
    }
    assert!(Profile::builtin("no such store").is_none());
}

#[test]
fn an_error_names_file_line_column_and_table() {
    let error = refusal(&altered("owner = \"account_id\"", "owner = \"account_id\"\nuidnxt = 1"));
    let line = REFERENCE[..REFERENCE.find("owner = \"account_id\"").unwrap()].lines().count() + 2;
    let (file, table) = ("mine.toml".to_owned(), "[mailbox]".to_owned());
    assert_eq!(error.place(), &Place { file, line, column: 1, table });
    assert!(error.to_string().starts_with(&format!("mine.toml, line {line}, column 1, in [mailbox]: ")), "{error}");
    assert!(error.to_string().contains("uidnxt"), "{error}");
}

#[test]
fn an_error_in_one_of_several_tables_names_that_one() {
    let error = refusal(&altered("table = \"mailbox_stats\"\ntrigger = true", "table = \"mailbox_stats\""));
    let header = REFERENCE.rfind("[[derived]]").unwrap();
    assert_eq!(error.place().line, REFERENCE[..header].lines().count() + 1);
    assert_eq!(error.place().table, "[[derived]]");
}

#[test]
fn new_keys_are_said_of_columns_that_are_there() {
    let place = |profile: &str| {
        let profile = Profile::parse("mine.toml", &format!("{REFERENCE}\n{profile}")).unwrap();
        let catalog = fitting(&profile);
        profile
            .validate(&catalog)
            .into_iter()
            .map(|finding| (finding.severity, finding.to_string()))
            .collect::<Vec<_>>()
    };
    let line = REFERENCE.lines().count() + 2;
    let at = |column: usize, table: &str, says: &str| {
        let place = format!("mine.toml, line {}, column {column}, in [changed.{table}]: {says}", line + 1);
        vec![(Severity::Error, place)]
    };
    let said = place("[changed.messages]\nkeys = { ident = \"1\" }");
    assert_eq!(said, at(18, "messages", "table messages has no column ident"));
    let said = place("[changed.letters]\nkeys = { id = \"1\" }");
    assert_eq!(said, at(15, "letters", "there is no table letters"));
    let error = refusal(&format!("{REFERENCE}\n[changed.messages]\nkeys = {{ id = 1 }}"));
    assert_eq!((error.place().line, error.place().column), (line + 1, 15), "{error}");
    assert_eq!(error.place().table, "[changed.messages]");
}

#[test]
fn a_text_that_is_no_toml_is_refused_with_its_place() {
    let error = refusal("profile = \"x\"\nnever = [");
    assert_eq!(error.place().line, 2, "{error}");
    assert_eq!(error.place().table, "");
    assert!(matches!(refusal("").place(), Place { line: 1, column: 1, .. }));
}

#[test]
fn what_does_not_fit_together_is_refused() {
    for (what, with, says) in [
        ("kind = \"next\", column = \"uidnext\"", "kind = \"next\"", "needs a column"),
        ("kind = \"next\", column", "kind = \"global-sequence\", column", "needs a column"),
        ("uid = \"uid\"\nmodseq = \"modseq\"\n\n[flags]", "modseq = \"modseq\"\n\n[flags]", "give both or neither"),
        ("uidvalidity = { column = \"uidvalidity\" }", "", "has a uidvalidity"),
        ("column = \"uidvalidity\" }", "column = \"uidvalidity\", key = true }", "not both"),
        ("column = \"uidvalidity\"", "column = \"created_at\"", "is no evidence of a mailbox"),
        ("owner = \"account_id\"", "", "name the column that refers to them"),
        ("natural = [\"account_id\", \"name\"]", "natural = []", "natural key"),
        ("mailbox = \"mailbox_id\"", "mailbox = \"mailbox_id\"\nmessage = \"id\"", "no message to refer to"),
        ("mailbox = \"mailbox_id\"", "mailbox = \"mailbox_id\"\ntable = \"links\"", "refer to the message"),
        ("clock = \"saved\"", "clock = \"saved\", zone = \"UTC\"", "a zone is given exactly"),
        ("clock = \"saved\"", "clock = \"saved\", type = \"timestamp\"", "a zone is given exactly"),
        (", position = \"position\"", "", "whose via has a position"),
        ("assembly = \"spliced\"", "assembly = \"raw\"", "is not spliced"),
        ("via = {", "message = \"id\"\nvia = {", "exactly one of via"),
        ("bytes = \"content\"", "", "column with the bytes"),
        ("table = \"expunged\"", "table = \"expunged\"\npredicate = \"x\"", "give exactly one"),
        ("triggers = \"keep\"", "triggers = \"off\"", "a trigger keeps it"),
        ("never = [\"outbox\"]", "never = [\"public.messages\"]", "a table has one role"),
        ("[[tombstone]]", "[[after]]\nper = \"owner\"\n[[tombstone]]", "says what is done"),
        ("[[tombstone]]", "[[child]]\ntable = \"x\"\nof = \"y\"\n[[tombstone]]", "neither message, link nor"),
    ] {
        let error = refusal(&altered(what, with));
        assert!(matches!(error, ProfileError::Inconsistent { .. }), "{with}: {error}");
        assert!(error.to_string().contains(says), "{with}: {error}");
    }
}

#[test]
fn a_tombstone_that_only_names_an_id_is_refused() {
    let toml = altered(
        "message = \"message_id\"      # may have been issued again: never enough alone\nevidence = { saved_at = \"saved_at\", size = \"size\" }\n",
        "",
    );
    assert!(refusal(&toml).to_string().contains("numbers are issued again"));
}

#[test]
fn a_sender_s_clock_alone_bounds_no_window() {
    let toml =
        altered("clock = \"saved\"", "clock = \"header\"").replacen("clock = \"arrival\"", "clock = \"header\"", 1);
    assert!(refusal(&toml).to_string().contains("bounds no loss"));
}

#[test]
fn every_name_that_the_catalog_does_not_have_is_found() {
    let profile = Profile::parse("reference", REFERENCE).unwrap();
    let whole = fitting(&profile);
    for (name, table) in &whole.tables {
        let mut without = whole.clone();
        without.tables.remove(name);
        assert!(!profile.validate(&without).is_empty(), "{name}");
        for column in table.columns.keys() {
            if name.ends_with(".outbox") {
                continue;
            }
            let mut without = whole.clone();
            without.tables.get_mut(name).unwrap().columns.remove(column);
            let found = messages(profile.validate(&without));
            assert!(found.iter().any(|message| message.contains(column)), "{name}.{column}: {found:?}");
        }
    }
}

#[test]
fn a_table_that_hangs_on_the_mail_and_is_not_named_is_found() {
    let profile = Profile::parse("reference", REFERENCE).unwrap();
    let mut catalog = fitting(&profile);
    let key = ForeignKeyView {
        columns: vec!["m".to_owned()],
        table: profile.qualify(&profile.message.table),
        referenced: vec!["id".to_owned()],
    };
    catalog.tables.insert("public.notes".to_owned(), TableView { foreign_keys: vec![key], ..TableView::default() });
    let found = profile.validate(&catalog);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].severity, Severity::Error);
    assert!(found[0].message.contains("public.notes"));
}

#[test]
fn a_child_whose_parent_cannot_be_told_is_found() {
    let profile = Profile::parse("reference", REFERENCE).unwrap();
    let whole = fitting(&profile);
    let (name, table) = whole.tables.iter().find(|(_, table)| !table.foreign_keys.is_empty()).unwrap();
    for foreign_keys in [vec![], [table.foreign_keys.clone(), table.foreign_keys.clone()].concat()] {
        let mut catalog = whole.clone();
        catalog.tables.get_mut(name).unwrap().foreign_keys = foreign_keys;
        let found = messages(profile.validate(&catalog));
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("not exactly one foreign key"));
    }
}

#[test]
fn unexpected_triggers_wrong_clocks_and_weak_keys_are_found() {
    let toml = REFERENCE.replacen("triggers = \"keep\"", "", 1).replace("trigger = true", "sql = \"select 1\"");
    let profile = Profile::parse("reference", &toml).unwrap();
    let mailboxes = profile.qualify(&profile.mailbox.table);
    let message = profile.qualify(&profile.message.table);

    let mut catalog = fitting(&profile);
    catalog.tables.get_mut(&message).unwrap().triggers.push("count_it".to_owned());
    assert!(messages(profile.validate(&catalog))[0].contains("count_it"));

    let mut catalog = fitting(&profile);
    let clock = profile.message.clocks[0].column.clone();
    catalog.tables.get_mut(&message).unwrap().columns.insert(clock, "timestamp without time zone".to_owned());
    assert!(messages(profile.validate(&catalog))[0].contains("without time zone"));

    let mut catalog = fitting(&profile);
    catalog.tables.get_mut(&mailboxes).unwrap().unique_keys.clear();
    let found = profile.validate(&catalog);
    assert_eq!(found[0].severity, Severity::Warning);
    assert!(found[0].to_string().contains("[mailbox]"));

    let mut catalog = fitting(&profile);
    catalog.tables.get_mut(&message).unwrap().primary_key.clear();
    assert!(messages(profile.validate(&catalog))[0].contains("no primary key"));
}

#[test]
fn names_and_content_that_are_numbers_of_other_rows_are_found() {
    let key = |column: &str, table: &str| ForeignKeyView {
        columns: vec![column.to_owned()],
        table: table.to_owned(),
        referenced: vec!["id".to_owned()],
    };
    let profile = Profile::parse("reference", REFERENCE).unwrap();
    let owners = profile.qualify(&profile.owner.as_ref().unwrap().table);
    let mailboxes = profile.qualify(&profile.mailbox.table);
    let mut catalog = fitting(&profile);
    let natural = profile.owner.as_ref().unwrap().natural.0[0].clone();
    catalog.tables.get_mut(&owners).unwrap().foreign_keys.push(key(&natural, "public.domains"));
    let found = profile.validate(&catalog);
    assert!(found[0].severity == Severity::Error && found[0].to_string().contains("public.domains"), "{found:?}");

    // A mailbox is named by its owner, whom it refers to.
    let mut catalog = fitting(&profile);
    let own = profile.mailbox.owner.as_ref().unwrap().0[0].clone();
    let table = catalog.tables.get_mut(&mailboxes).unwrap();
    table.foreign_keys.retain(|one| one.table != owners);
    table.foreign_keys.push(key(&own, &owners));
    assert_eq!(profile.validate(&catalog), []);

    let toml = altered("message = \"message_id\"      # may", "# may");
    let profile = Profile::parse("reference", &toml).unwrap();
    let found = profile.validate(&fitting(&profile));
    assert!(found[0].severity == Severity::Warning && found[0].to_string().contains("not believed"), "{found:?}");
}

#[test]
fn tombstones_that_undo_could_not_write_are_refused() {
    let at = REFERENCE.find("[[tombstone]]").unwrap();
    let rest = REFERENCE[at + 1..].find("\n[[").map_or(REFERENCE.len(), |end| at + 1 + end);
    let with = |tombstone: &str| {
        Profile::parse("mine", &format!("{}[[tombstone]]\n{tombstone}\n{}", &REFERENCE[..at], &REFERENCE[rest..]))
    };
    assert!(with("predicate = \"uid < 0\"").unwrap_err().to_string().contains("write"));
    with("predicate = \"uid < 0\"\nwrite = \"never\"").unwrap();
    let twice =
        "table = \"expunged\"\nmessage = \"message_id\"\nat = \"expunged_at\"\nset = { expunged_at = \"now()\" }";
    assert!(with(twice).unwrap_err().to_string().contains("leave it out"));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_with_a_place_in_it(at in any::<prop::sample::Index>(), cut in 0usize..40, with in "[a-z\\[\\]{}=\"'ü\n#.]{0,12}") {
        let start = (0..=at.index(REFERENCE.len())).rev().find(|at| REFERENCE.is_char_boundary(*at)).unwrap();
        let end = (start + cut..=REFERENCE.len()).find(|at| REFERENCE.is_char_boundary(*at)).unwrap_or(REFERENCE.len());
        let toml = format!("{}{with}{}", &REFERENCE[..start], &REFERENCE[end..]);
        if let Err(error) = Profile::parse("mine.toml", &toml) {
            let Place { line, column, .. } = error.place();
            prop_assert!((1..=toml.matches('\n').count() + 1).contains(line), "{error}");
            let text = toml.split('\n').nth(line - 1).unwrap();
            prop_assert!((1..=text.chars().count() + 1).contains(column), "{error}");
        }
    }
}
