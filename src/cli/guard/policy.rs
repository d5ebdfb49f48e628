//! `restante guard policy`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::{For, Opened, Place};
use crate::cli::context::Context;
use crate::cli::exit::Exit;
use crate::guard::GuardError;
use crate::guard::log::{About, Event, Log, Memory};
use crate::guard::policy::{self, Policy as Parsed};

/// Put the policy in force that all changes must keep to; without signatures, print what is to be signed
///
/// The first policy of a repository must be signed by all whom it names, each later one by as many of those whom the one in force names as that asks for.
#[derive(Args)]
pub struct Policy {
    /// The policy (TOML); left out: print the one in force
    file: Option<PathBuf>,
    /// A signature over what is to be signed, made with `ssh-keygen -Y sign -n restante`; may be repeated
    #[arg(short, long, value_name = "FILE", requires = "file")]
    signature: Vec<PathBuf>,
    /// Write what is to be signed to a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "signature", requires = "file")]
    output: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

impl Policy {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let opened =
            Opened::new(context, &self.place, if self.signature.is_empty() { For::Looking } else { For::Writing })
                .await?;
        let repository = opened.repository()?;
        let before = policy::in_force(repository).await?;
        let Some(file) = &self.file else {
            let Some(before) = before else {
                return Err(GuardError::Refused(vec!["there is no policy in this repository".into()]).into());
            };
            context.output.json(
                "guard_policy",
                &json!({ "number": before.number, "policy": before.hash, "text": before.text }),
            )?;
            context.output.lines(&before.text);
            return Ok(Exit::Done);
        };
        let text = std::fs::read_to_string(file)
            .map_err(|e| GuardError::File { path: file.clone(), message: e.to_string() })?;
        Parsed::parse(file, &text)?;
        if self.signature.is_empty() {
            let to_sign = policy::to_sign(repository, before.as_ref(), &text);
            return super::show::to_sign(context, "guard_policy_to_sign", &to_sign, self.output.as_deref());
        }
        let read =
            |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        let signatures = self.signature.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        if context.global.dry_run {
            context.output.line("would put the policy in force, if the signatures are right");
            return Ok(Exit::Done);
        }
        let put = policy::put(repository, file, &text, signatures).await?;
        let mut log = Log::load(repository).await?;
        let about = About {
            policy: Some(put.hash),
            notes: vec![format!("policy {} is in force", put.number)],
            ..About::default()
        };
        log.append(repository, &Memory::of(&opened.folder.path), Event::Policy, about).await?;
        context.output.json("guard_policy", &json!({ "number": put.number, "policy": put.hash, "text": put.text }))?;
        context.output.line(format!(
            "policy {} is in force: {} of {} must sign a change",
            put.number,
            put.policy.required(),
            put.policy.signers.len()
        ));
        Ok(Exit::Done)
    }
}
