//! `restante find`

use clap::Args;

use super::comparing::{Comparing, Live, known};
use super::context::Context;
use super::exit::{Exit, UsageError};
use super::gap::shortened;
use super::output::table;
use super::units;
use crate::compare::Class;
use crate::compare::find::{self, Wanted};

/// Find messages in a snapshot and say what became of each; writes nothing
///
/// Nothing of a message's text is shown. Times are those of saving or, where the store does not say, of arrival.
#[derive(Args)]
pub struct Find {
    /// Id prefix, latest, latest:tag=…, or @TIME; the fullest if left out
    snapshot: Option<String>,
    #[command(flatten)]
    comparing: Comparing,
    /// Only this account; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    account: Vec<String>,
    /// Only mailboxes of this name; may be repeated
    #[arg(long, value_name = "NAME")]
    mailbox: Vec<String>,
    /// Only messages with this Message-ID, with or without its angle brackets
    #[arg(long, value_name = "ID")]
    message_id: Option<String>,
    /// Only messages with this UID
    #[arg(long, value_name = "UID")]
    uid: Option<i64>,
    /// Lines of the table; `--json` prints all
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: usize,
}

impl Find {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let wanted = Wanted {
            accounts: self.account,
            mailboxes: self.mailbox,
            message_id: self.message_id,
            uid: self.uid,
            window: self.comparing.window(),
        };
        let is_all = wanted.accounts.is_empty() && wanted.mailboxes.is_empty() && !wanted.window.is_bounded();
        if is_all && wanted.message_id.is_none() && wanted.uid.is_none() {
            let options = "--account, --mailbox, --message-id, --uid, --from or --to";
            return Err(UsageError(format!("say what to look for: {options}")).into());
        }
        let live = Live::open(context, self.comparing.profile.as_deref(), &self.comparing.renamed).await?;
        let chosen = self.comparing.choose(context, &live, self.snapshot.as_deref()).await?;
        let comparison = self.comparing.compare(&live, &chosen, wanted.window).await?;
        known(&comparison.parents, &wanted.accounts, &wanted.mailboxes)?;
        let mut all = Vec::new();
        find::find(&chosen.source, &comparison, &wanted, &mut |found| all.push(found)).await?;
        context.progress.finish();
        all.sort_by(|one, other| {
            (one.time, &one.account, &one.mailbox, one.uid).cmp(&(
                other.time,
                &other.account,
                &other.mailbox,
                other.uid,
            ))
        });
        for found in &all {
            context.output.json("found", found)?;
        }
        let short = chosen.snapshot.short();
        context.output.line(format!("snapshot {short}: {} messages", units::count(all.len() as u64)));
        let mut lines = table(&["time", "account", "mailbox", "uid", "size", "now"], &[3, 4]);
        for found in all.iter().take(self.limit) {
            lines.add_row([
                found.time.map(units::time).unwrap_or_default(),
                shortened(&found.account),
                shortened(&found.mailbox),
                found.uid.map(|uid| uid.to_string()).unwrap_or_default(),
                found.size.map(|size| size.to_string()).unwrap_or_default(),
                fate(found.class).to_owned(),
            ]);
        }
        if !all.is_empty() {
            context.output.table(&lines);
        }
        if all.len() > self.limit {
            context.output.line(format!("… and {} more (--limit, --json)", all.len() - self.limit));
        }
        Ok(Exit::Done)
    }
}

fn fate(class: Option<Class>) -> &'static str {
    match class {
        None => "there",
        Some(Class::Absent) => "lost",
        Some(Class::ReusedId) => "lost, its id was issued again",
        Some(Class::Duplicate) => "there as another message",
        Some(Class::DeletedByUser) => "deleted or moved by its user",
        Some(Class::CannotTell) => "cannot be told",
        Some(Class::Orphan) => "its mailbox was deleted",
        Some(Class::PlaceTaken) => "lost, and another mail has its place",
    }
}
