//! `restante init`

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::context::Context;
use super::exit::{Exit, UsageError};
use crate::repository::{InitOptions, NewRepository, RepositoryError, ring};
use crate::storage::Capabilities;

/// Make a new repository and its writer key
#[derive(Args)]
pub struct Init {
    /// Who may open mail: an age recipient (age1…) or an SSH public key; give at least two
    #[arg(long = "reader", value_name = "RECIPIENT", required = true)]
    readers: Vec<String>,
    /// One reader is enough: if his identity is lost, all mail in the repository is lost
    #[arg(long)]
    single_reader: bool,
}

#[derive(Serialize)]
struct Made {
    repository: String,
    fingerprint: String,
    writer_key: PathBuf,
    storage: Capabilities,
}

impl Init {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        for reader in &self.readers {
            if reader.starts_with("AGE-SECRET-KEY") {
                let message = "--reader takes a recipient (age1…), not an identity: keep that one secret".to_owned();
                return Err(UsageError(message).into());
            }
            ring::parse_recipient(reader).map_err(|e| UsageError(e.to_string()))?;
        }
        if self.readers.len() < 2 && !self.single_reader {
            let message = "one reader only: if his identity is lost, so is all mail. Give a second `--reader`, or say \
                           `--single-reader`";
            return Err(UsageError(message.into()).into());
        }
        let key = context.key_path().unwrap_or_else(|| "writer.key".into());
        if key.exists() {
            let message = format!("{} exists already; name another file with `--key`", key.display());
            return Err(RepositoryError::WriterKey { path: key, message }.into());
        }
        if context.global.dry_run {
            context.output.line(format!("would make a repository in {}", context.storage().await?.address()));
            return Ok(Exit::Done);
        }
        let storage = context.storage().await?;
        let capabilities = context.probe(&*storage).await?;
        let made = NewRepository::prepare(InitOptions { readers: self.readers, created: Timestamp::now() })?;
        // The key first: a repository whose writer key is lost is of no use.
        made.writer_key.save(&key, false)?;
        if let Err(e) = made.commit(&*storage).await {
            let _ = std::fs::remove_file(&key);
            return Err(e.into());
        }

        let output = &context.output;
        output.json(
            "initialised",
            &Made {
                repository: made.writer_key.repository.to_string(),
                fingerprint: made.writer_key.fingerprint.to_string(),
                writer_key: key.clone(),
                storage: capabilities.clone(),
            },
        )?;
        output.line(format!("made a repository in {}", storage.address()));
        output.line(format!(
            "writer key   {} (keep it on the database host, and a copy with the readers)",
            key.display()
        ));
        output.line(format!(
            "fingerprint  {} (readers compare it with --expect-repository)",
            made.writer_key.fingerprint
        ));
        if !capabilities.conditional_create {
            output.note("note: this storage ignores the condition \"create only\"; nothing depends on it");
        }
        Ok(Exit::Done)
    }
}
