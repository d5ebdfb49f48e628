//! `restante key …`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::context::Context;
use super::exit::Exit;
use crate::repository::open::key_objects;
use crate::repository::ring;

#[derive(Subcommand)]
pub enum Key {
    /// Make a reader's identity: keep the file secret and away from the database host
    Generate(Generate),
    /// List the key rings in the repository
    List,
}

#[derive(Args)]
pub struct Generate {
    /// File to write, with mode 0600
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

impl Key {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        match self {
            Self::Generate(command) => command.run(context),
            Self::List => list(context).await,
        }
    }
}

impl Generate {
    fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let recipient = ring::generate_identity(&self.output)?;
        context.output.json("identity_generated", &serde_json::json!({ "recipient": recipient, "file": self.output }))?;
        context.output.line(recipient);
        Ok(Exit::Done)
    }
}

async fn list(context: &Context) -> anyhow::Result<Exit> {
    let repository = context.open_to_look().await?;
    context.output.line(format!("repository   {}", repository.secrets.repository));
    context.output.line(format!("fingerprint  {}", repository.fingerprint));
    for name in key_objects(&*repository.storage).await? {
        let place = ring::ring_place(&name);
        let known = repository.writer.as_ref().map(|key| key.key_objects.contains(&name));
        context.output.json("key_ring", &serde_json::json!({ "name": name, "known_to_writer": known }))?;
        let state = match (place, known) {
            (None, _) => "not the name of a key ring",
            (Some(_), Some(false)) => "NOT known to this writer key",
            (Some(_), _) => "",
        };
        context.output.line(format!("{name}  {state}"));
    }
    Ok(Exit::Done)
}
