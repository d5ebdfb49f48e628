//! `restante key …`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::context::Context;
use super::exit::{Exit, UsageError};
use crate::repository::open::{key_objects, newest_ring};
use crate::repository::readers::{self, KeyHolder};
use crate::repository::ring;
use crate::repository::rotate::{RotateOptions, rotate};
use crate::repository::secrets::WriterKey;
use crate::repository::verifier;

#[derive(Subcommand)]
pub enum Key {
    /// Make a reader's identity: keep the file secret and away from the database host
    Generate(Generate),
    /// List the key rings in the repository, and with an identity the readers
    List,
    /// Add a reader; needs the writer key and a reader's identity
    Add(Add),
    /// Begin a new epoch, without a reader or after a theft; needs the writer key and a reader's identity
    Rotate(Rotate),
    /// Make a key for jobs that check and hold drills; needs the writer key
    Verifier(Verifier),
    /// Take over key objects that were changed on purpose
    Accept,
}

#[derive(Args)]
pub struct Generate {
    /// File to write, with mode 0600
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Args)]
pub struct Add {
    /// age recipient (age1…) or SSH public key
    reader: String,
}

#[derive(Args)]
pub struct Rotate {
    /// A reader who shall not open what is stored from now on; may be repeated
    #[arg(long, value_name = "RECIPIENT")]
    remove: Vec<String>,
    /// New ids too, after the theft of a writer key: everything is stored once more
    #[arg(long)]
    new_ids: bool,
}

#[derive(Args)]
pub struct Verifier {
    /// File to write, with mode 0600
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

impl Verifier {
    async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let (_, key) = writer_key(context)?;
        context.open_as_writer().await?.check_key_objects().await?;
        let storage = context.storage().await?;
        if context.global.dry_run {
            context.output.line("would write a new version of the configuration");
            return Ok(Exit::Done);
        }
        let path = &self.output;
        let signer = verifier::add(&*storage, &key, |verifier| verifier.save(path)).await?;
        context.output.json("verifier_added", &serde_json::json!({ "signer": signer, "file": path }))?;
        context
            .output
            .line(format!("{}: signs what checks find, as {signer}, until the next rotation", path.display()));
        Ok(Exit::Done)
    }
}

impl Key {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        match self {
            Self::Generate(command) => command.run(context),
            Self::List => list(context).await,
            Self::Add(command) => command.run(context).await,
            Self::Rotate(command) => command.run(context).await,
            Self::Verifier(command) => command.run(context).await,
            Self::Accept => accept(context).await,
        }
    }
}

impl Generate {
    fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let recipient = ring::generate_identity(&self.output)?;
        context
            .output
            .json("identity_generated", &serde_json::json!({ "recipient": recipient, "file": self.output }))?;
        context.output.line(recipient);
        Ok(Exit::Done)
    }
}

/// The writer key file, with its path.
fn writer_key(context: &Context) -> anyhow::Result<(PathBuf, WriterKey)> {
    let path = context.key_path().ok_or_else(|| UsageError("this needs the writer key: give `--key`".into()))?;
    let key = WriterKey::load(&path)?;
    Ok((path, key))
}

async fn holder(context: &Context) -> anyhow::Result<(PathBuf, KeyHolder)> {
    let (path, key) = writer_key(context)?;
    let identities = context.identities();
    if identities.is_empty() {
        return Err(UsageError("this opens the key ring and needs a reader's identity: give `-i FILE`".into()).into());
    }
    Ok((path, KeyHolder::open(context.storage().await?, key, &identities).await?))
}

impl Add {
    async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let (path, holder) = holder(context).await?;
        if context.global.dry_run {
            ring::parse_recipient(&self.reader)?;
            context.output.line(format!("would add {} to {} readers", self.reader, holder.readers().len()));
            return Ok(Exit::Done);
        }
        holder.add_reader(&self.reader).await?.save(&path, true)?;
        context.output.json("reader_added", &serde_json::json!({ "reader": self.reader }))?;
        context.output.line(format!("added {}: it opens everything, old and new", self.reader));
        context.output.note("other copies of the writer key stop until `restante key accept`");
        Ok(Exit::Done)
    }
}

impl Rotate {
    async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let (path, holder) = holder(context).await?;
        let readers: Vec<String> = holder.readers().iter().filter(|r| !self.remove.contains(r)).cloned().collect();
        if let Some(stranger) = self.remove.iter().find(|r| !holder.readers().contains(r)) {
            let known = holder.readers().join(", ");
            return Err(UsageError(format!("--remove {stranger}: not a reader; the readers are {known}")).into());
        }
        if readers.is_empty() {
            return Err(UsageError("nobody would be left to read: keep one reader at least".into()).into());
        }
        if context.global.dry_run {
            context.output.line(format!("would begin a new epoch for {} readers", readers.len()));
            return Ok(Exit::Done);
        }
        let rotation = rotate(holder, RotateOptions { readers, new_id_secret: self.new_ids }).await?;
        // Kept before the epoch begins: its signing seed is nowhere else.
        let epoch = rotation.writer_key.epoch;
        let kept = path.with_extension(format!("epoch-{epoch}"));
        rotation.writer_key.save(&kept, false)?;
        rotation.commit().await?;
        std::fs::rename(&kept, &path)?;
        context.output.json("rotated", &serde_json::json!({ "epoch": epoch, "writer_key": path }))?;
        context.output.line(format!("epoch {epoch} has begun; the writer key in {} is new", path.display()));
        context.output.note("what was stored before stays readable to whoever could read it");
        for name in &rotation.left_out {
            context
                .output
                .note(format!("{name} does not count any more: it is damaged, or came after its epoch was over"));
        }
        Ok(Exit::Done)
    }
}

async fn accept(context: &Context) -> anyhow::Result<Exit> {
    let (path, key) = writer_key(context)?;
    let accepted = readers::accept(&*context.storage().await?, key, &context.identities()).await?;
    context.output.json(
        "keys_accepted",
        &serde_json::json!({ "added": accepted.added, "gone": accepted.gone, "dry_run": context.global.dry_run }),
    )?;
    for name in &accepted.added {
        context.output.line(format!("new   {name}"));
    }
    for name in &accepted.gone {
        context.output.line(format!("gone  {name}"));
    }
    if !context.global.dry_run {
        accepted.key.save(&path, true)?;
        context.output.line(format!("{} knows the key objects that are there now", path.display()));
    }
    Ok(Exit::Done)
}

async fn list(context: &Context) -> anyhow::Result<Exit> {
    let repository = context.open_to_look().await?;
    let output = &context.output;
    output.line(format!("repository   {}", repository.secrets.repository));
    output.line(format!("fingerprint  {}", repository.fingerprint));
    for name in key_objects(&*repository.storage).await? {
        let known = repository.writer.as_ref().map(|key| key.key_objects.contains(&name));
        output.json("key_ring", &serde_json::json!({ "name": name, "known_to_writer": known }))?;
        let state = match (ring::ring_place(&name), known) {
            (None, _) => "  is not the name of a key ring",
            (Some(_), Some(false)) => "  is NOT known to this writer key",
            (Some(_), _) => "",
        };
        output.line(format!("{name}{state}"));
    }
    let identities = context.identities();
    if !identities.is_empty() {
        let ring = newest_ring(&*repository.storage, &identities, &repository.config, repository.fingerprint).await?;
        for reader in &ring.readers {
            output.json("reader", &serde_json::json!({ "reader": reader }))?;
            output.line(format!("reader       {reader}"));
        }
    }
    for verifier in repository.config.verifiers.iter().filter(|one| one.epoch == repository.config.epoch) {
        output.json("verifier", &serde_json::json!({ "signer": verifier.key }))?;
        output.line(format!("verifier     {}", verifier.key));
    }
    Ok(Exit::Done)
}
