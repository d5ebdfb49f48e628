//! `restante guard status`

use clap::Args;

use super::Place;
use crate::cli::context::Context;
use crate::cli::exit::Exit;
use crate::cli::units;
use crate::guard::status;

/// Where the change that was begun last stands
///
/// Needs neither the repository nor the server. Exit code 3: a change has not ended.
#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    place: Place,
}

impl Status {
    pub fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let Some(found) = status::look(&self.place.folder(context)?)? else {
            context.output.json("guard_status", &serde_json::json!({ "id": null }))?;
            context.output.line("no change is under way");
            return Ok(Exit::Done);
        };
        context.output.json("guard_status", &found)?;
        let out = &context.output;
        out.line(format!("{}  {} ({})", found.id, found.title, found.mode));
        out.line(format!("stands at     {} (since {})", found.step, units::time(found.updated)));
        out.line(format!("commands      {} of {} done", found.commands_done, found.commands));
        if let Some(failure) = &found.failure {
            out.line(format!("failed        {}", failure.replace('\n', " ")));
        }
        if found.half_done {
            out.line("data          may be in between");
        }
        let yes = |yes: bool| if yes { "yes" } else { "no" };
        if let (Some(running), Some(fenced)) = (found.server_running, found.fenced) {
            out.line(format!("server runs   {}", yes(running)));
            out.line(format!("fenced        {}", yes(fenced)));
        }
        out.line(format!("applications  {}", if found.closed { "are kept out" } else { "may come in" }));
        if !found.paused.is_empty() {
            out.line(format!("paused        {}", found.paused.join(", ")));
        }
        for pid in &found.commands_running {
            out.line(format!("still runs    process {pid}"));
        }
        out.line(format!("now           {}", found.next));
        Ok(Exit::Findings)
    }
}
