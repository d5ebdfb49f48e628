//! What to run after findings of a comparison, ready to be pasted, and what `restante gap` shows.

use jiff::Timestamp;

use crate::cli::comparing::{Comparing, Live};
use crate::cli::context::Context;
use crate::cli::{again, gap};
use crate::guard::Outcome;
use crate::guard::comparison::TableVerdict;
use crate::postgres::sql;

/// Tables with findings: those that `restore` puts back, and others. It puts back mail with its parts and flags, and what is derived from it.
/// Flags of living mail, which only their own rows tell of, and tables that nobody described come back beside the live ones.
pub fn split<'a>(outcome: &'a Outcome, live: Option<&Live>) -> (Vec<&'a TableVerdict>, Vec<&'a TableVerdict>) {
    let findings: Vec<&TableVerdict> = outcome.comparison.iter().flat_map(|comparison| comparison.findings()).collect();
    let Some(profile) = live.map(|live| &live.profile) else { return (Vec::new(), findings) };
    let message = profile.qualify(&profile.message.table);
    let mail_was_hit = findings.iter().any(|table| table.table == message);
    findings.into_iter().partition(|table| {
        let is = |name: &str| profile.qualify(name) == table.table;
        let keywords = profile.flags.as_ref().and_then(|flags| flags.keywords.as_ref());
        let of_flags = keywords.is_some_and(|keywords| is(&keywords.table));
        let derived = profile.derived.iter().any(|derived| is(&derived.table));
        (profile.has_role(&table.table) || derived) && (mail_was_hit || !of_flags)
    })
}

pub fn commands(
    context: &Context,
    outcome: &Outcome,
    live: Option<&Live>,
    mail: &[&TableVerdict],
    others: &[&TableVerdict],
) -> Vec<String> {
    let Some(snapshot) = &outcome.snapshot else { return Vec::new() };
    let short = snapshot.to_hex()[..12].to_owned();
    let mut commands = Vec::new();
    if let (Some(live), false) = (live, mail.is_empty()) {
        let comparing = comparing(context, outcome.taken);
        commands.push(with_identity(context, again::command(context, &["gap", &short], Some(&comparing))));
        let mut words = vec!["restore".to_owned(), short.clone()];
        let message = live.profile.qualify(&live.profile.message.table);
        for table in mail.iter().filter(|table| table.table == message) {
            for column in &table.columns {
                words.extend(["--repair-columns".to_owned(), format!("{}.{column}", table.table)]);
            }
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        commands.push(with_identity(context, again::command(context, &words, Some(&comparing))));
    }
    for table in others {
        commands.push(rescue(context, &short, &table.table));
        commands.extend(refill(table));
    }
    commands
}

/// What `restante gap` says of the snapshot of before the change: by mailbox and hour.
pub async fn gap(context: &Context, outcome: &Outcome, live: &Live) -> anyhow::Result<()> {
    let Some(snapshot) = outcome.snapshot else { return Ok(()) };
    let comparing = comparing(context, outcome.taken);
    let chosen = comparing.choose(context, live, Some(&snapshot.to_hex())).await?;
    let report = gap::look(context, &comparing, live, &chosen).await?;
    gap::show(context, &report, &chosen.snapshot.short(), None);
    Ok(())
}

/// Damage is later than the snapshot.
fn comparing(context: &Context, damaged_at: Option<Timestamp>) -> Comparing {
    let profile = context.config.profile.clone();
    Comparing { profile, renamed: Vec::new(), from: None, to: None, damaged_at }
}

/// Names an identity where none was given.
fn with_identity(context: &Context, command: String) -> String {
    if context.identities().is_empty() { command + " -i IDENTITY" } else { command }
}

/// A table beside the live one.
fn rescue(context: &Context, short: &str, table: &str) -> String {
    let comparing = Comparing { profile: None, ..comparing(context, None) };
    let words = ["restore", short, "--table", table, "--schema", "rescue", "--into", "DSN"];
    with_identity(context, again::command(context, &words, Some(&comparing)))
}

/// Where rows are gone and none came, the lost ones from there; the key says which are there.
fn refill(table: &TableVerdict) -> Option<String> {
    let (schema, name) = table.table.split_once('.')?;
    let lost_alone = table.removed > Some(0) && table.added == Some(0) && table.note.is_none();
    let (live, rescued) = (sql::qualified(schema, name), sql::qualified("rescue", name));
    let insert = format!("INSERT INTO {live} SELECT * FROM {rescued} ON CONFLICT DO NOTHING");
    lost_alone.then(|| shlex::try_join(["psql", "-d", "DSN", "-c", &insert]).ok()).flatten()
}
