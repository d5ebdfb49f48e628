//! What `guard` commands print alike.

use std::path::Path;

use anyhow::Context as _;
use serde_json::json;

use crate::cli::context::Context;
use crate::cli::exit::Exit;
use crate::guard::change::{May, Mode, Unbound};
use crate::guard::preflight::Preflight;

/// The text to sign: to a file byte for byte, or to standard output.
pub fn to_sign(context: &Context, kind: &str, text: &str, output: Option<&Path>) -> anyhow::Result<Exit> {
    let Some(path) = output else {
        context.output.json(kind, &json!({ "to_sign": text }))?;
        context.output.lines(text);
        return Ok(Exit::Done);
    };
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    context.output.json(kind, &json!({ "file": path }))?;
    let shown = path.display();
    context
        .output
        .line(format!("written: {shown}; read it, then sign it: ssh-keygen -Y sign -n restante -f KEY {shown}"));
    Ok(Exit::Done)
}

/// What would be done, in sentences.
pub fn steps(change: &Unbound, found: Option<&Preflight>) -> Vec<String> {
    let mut steps = Vec::new();
    let mut step = |text: String| steps.push(text);
    if change.mode != Mode::Online {
        step("applications out: connections refused, sessions ended".into());
    }
    step("snapshot, certified, its packs hashed".into());
    if change.mode == Mode::Offline {
        for commands in found.map(|found| &found.pause[..]).unwrap_or_default() {
            step(format!("pause {}: {}", commands.name, commands.pause.join(" ")));
        }
        step("stop the server, prove it down".into());
        if change.hand_over {
            step("no fence: the commands start the server themselves".into());
        } else {
            step("fence the data directory, watch it".into());
        }
    }
    for command in &change.commands {
        step(format!(
            "run: {}",
            shlex::try_join(command.iter().map(String::as_str)).unwrap_or_else(|_| command.join(" "))
        ));
    }
    match &change.after {
        _ if change.mode != Mode::Offline => {}
        None => step("fence away, start the server, resume supervisors".into()),
        Some(after) => {
            step(format!("fence the server of before, start the one in {}, resume supervisors", after.data.display()))
        }
    }
    let declared = |may: May| -> Vec<&str> {
        change.tables.iter().filter(|table| table.may == may).map(|table| table.name.as_str()).collect()
    };
    let mut compare = "compare every table with the snapshot".to_owned();
    for (may, words) in [(May::Schema, "columns may change"), (May::Rows, "rows may change")] {
        let tables = declared(may);
        if !tables.is_empty() {
            compare += &format!("; {words} of {}", tables.join(", "));
        }
    }
    step(compare);
    if change.mode != Mode::Online {
        step("applications in".into());
    }
    steps
}
