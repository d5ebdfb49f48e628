//! `restante guard plan` and `restante guard check`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{For, Opened, Place, Saying, show};
use crate::cli::context::Context;
use crate::cli::exit::Exit;
use crate::guard::change::Change;
use crate::guard::check;

/// Show what a change would do, and the text that its approvers sign
#[derive(Args)]
pub struct Plan {
    /// The change (TOML)
    change: PathBuf,
    /// Write the text to sign to a file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    saying: Saying,
    #[command(flatten)]
    place: Place,
}

impl Plan {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let opened = Opened::new(context, &self.place, For::Looking).await?;
        let (guard, change) = (opened.guard(context), Change::read(&self.change)?);
        let checked = check::check(&guard, &change, &self.saying.given(context), false).await?;
        context.progress.finish();
        let canonical = &checked.judged.canonical;
        let (text, hash) = (canonical.text()?, canonical.hash()?);
        let steps = show::steps(&canonical.change, checked.preflight.as_ref());
        context.output.json(
            "guard_plan",
            &json!({
                "id": canonical.change.id, "change": hash, "policy": canonical.policy, "steps": steps, "to_sign": text,
                "reasons": checked.reasons, "notes": checked.notes,
            }),
        )?;
        let out = &context.output;
        out.line(format!("{}  {}", canonical.change.id, canonical.change.title));
        for (number, step) in steps.iter().enumerate() {
            out.line(format!("  {}. {step}", number + 1));
        }
        for note in &checked.notes {
            out.line(format!("note     {note}"));
        }
        for reason in checked.reasons.all() {
            out.line(format!("not yet  {reason}"));
        }
        if out.is_json() && self.output.is_none() {
            return Ok(Exit::Done);
        }
        show::to_sign(context, "guard_to_sign", &text, self.output.as_deref())
    }
}

/// May the change run now? Exit code 0, or 4 and every reason why not
///
/// For people, pipelines and migration tools: nothing is touched, and the reasons are in the JSON.
#[derive(Args)]
pub struct Check {
    /// The change (TOML)
    change: PathBuf,
    /// Hash packs now whose last hash is older than the policy allows
    #[arg(long)]
    hash: bool,
    #[command(flatten)]
    saying: Saying,
    #[command(flatten)]
    place: Place,
}

impl Check {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let opened = Opened::new(context, &self.place, For::Writing).await?;
        let (guard, change) = (opened.guard(context), Change::read(&self.change)?);
        let checked = check::check(&guard, &change, &self.saying.given(context), self.hash).await?;
        context.progress.finish();
        let reasons = checked.reasons.all();
        context.output.json(
            "guard_check",
            &json!({
                "id": checked.judged.canonical.change.id, "change": checked.judged.canonical.hash()?,
                "allowed": reasons.is_empty(), "reasons": checked.reasons, "notes": checked.notes,
                "approved_by": checked.judged.approved_by, "waived": checked.judged.waived,
                "snapshot": checked.snapshot.as_ref().map(|snapshot| snapshot.id),
            }),
        )?;
        for note in &checked.notes {
            context.output.line(format!("note     {note}"));
        }
        for reason in &reasons {
            context.output.line(format!("REFUSED  {reason}"));
        }
        if reasons.is_empty() {
            context.output.line(format!("{} may run", checked.judged.canonical.change.id));
        }
        Ok(if reasons.is_empty() { Exit::Done } else { Exit::Refused })
    }
}
