//! `restante guard approve`

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::{For, Opened, Place};
use crate::cli::context::Context;
use crate::cli::exit::Exit;
use crate::guard::approval;
use crate::guard::change::Change;
use crate::guard::check;
use crate::guard::log::{About, Event, Log, Memory};

/// Approve a change: check a signature over it and keep it in the repository
#[derive(Args)]
pub struct Approve {
    /// The change (TOML)
    change: PathBuf,
    /// A signature that `ssh-keygen -Y sign -n restante` made of the text of `guard plan -o`; may be repeated
    #[arg(short, long, value_name = "FILE", required_unless_present = "ssh_key")]
    signature: Vec<PathBuf>,
    /// Sign now with this SSH key (or the public half of one that an agent has), by calling ssh-keygen
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

impl Approve {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let opened = Opened::new(context, &self.place, For::Writing).await?;
        let (guard, change) = (opened.guard(context), Change::read(&self.change)?);
        let (policy, canonical) = check::canonical(&guard, &change).await?;
        let mut signatures = Vec::new();
        for path in &self.signature {
            signatures.push(std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?);
        }
        if let Some(key) = &self.ssh_key {
            let text = canonical.text()?;
            context.output.lines(&text);
            context.confirm("Sign this?")?;
            signatures.push(sign(key, &text)?);
        }
        let mut log = Log::load(opened.repository()?).await?;
        for signature in &signatures {
            let name = approval::put(opened.repository()?, &policy, &canonical, signature).await?;
            let hash = canonical.hash()?;
            let about = About {
                id: Some(canonical.change.id.clone()),
                change: Some(hash),
                policy: Some(policy.hash),
                notes: vec![format!("by {name}")],
                ..About::default()
            };
            log.append(opened.repository()?, &Memory::of(&opened.folder.path), Event::Approved, about).await?;
            context.output.json("guard_approved", &json!({ "id": canonical.change.id, "change": hash, "by": name }))?;
            context.output.line(format!("{} approved {}", name, canonical.change.id));
        }
        let (by, _) = approval::of(opened.repository()?, &policy, &canonical).await?;
        context.output.line(format!("{} of {} signatures", by.len(), policy.policy.required()));
        Ok(Exit::Done)
    }
}

/// Lets ssh-keygen sign; it asks for a passphrase itself, or lets an agent do it.
fn sign(key: &Path, text: &str) -> anyhow::Result<String> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("change");
    std::fs::write(&file, text)?;
    let mut call = std::process::Command::new("ssh-keygen");
    call.args(["-q", "-Y", "sign", "-n", approval::NAMESPACE, "-f"]).arg(key).arg(&file).stdout(Stdio::null());
    let status = call.status().context("ssh-keygen cannot be run: sign elsewhere and give --signature")?;
    anyhow::ensure!(status.success(), "ssh-keygen did not sign");
    Ok(std::fs::read_to_string(folder.path().join("change.sig"))?)
}
