//! `restante inspect`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::context::Context;
use super::exit::{Exit, UsageError};
use super::units;
use crate::compare::source::{self, RepositorySource};
use crate::compare::{CompareError, fit};
use crate::inspect::description::{Description, SAMPLE_ROWS};
use crate::inspect::{self, live, snapshot};
use crate::postgres::catalog::Catalog;
use crate::postgres::session::{Session, SessionOptions};
use crate::profile::{self, Finding, Profile, ProfileError, Severity};
use crate::repository::snapshots::SnapshotReader;

/// Draft a profile of an unknown store, from the live database or from a snapshot; nothing is written but the draft
#[derive(Args)]
pub struct Inspect {
    /// Look at this snapshot instead of the live store: id prefix, latest, latest:tag=…, or @TIME
    snapshot: Option<String>,
    /// Draft a profile even where a built-in one is recognised
    #[arg(long)]
    draft: bool,
    /// Write the draft into this file, which must not be there yet
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What was looked at.
struct Seen {
    catalog: Catalog,
    description: Description,
    recognised: Option<String>,
    what: String,
}

impl Inspect {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let output = &context.output;
        let seen = match &self.snapshot {
            None => from_live(context).await?,
            Some(wanted) => from_snapshot(context, wanted).await?,
        };
        context.progress.finish();
        if let Some(tables) = profile::opaque_tables(&fit::view(&seen.catalog)) {
            output.json("inspected", &serde_json::json!({ "opaque": tables }))?;
            output.line(CompareError::Opaque { tables }.to_string());
            return Ok(Exit::Findings);
        }
        if let Some(name) = seen.recognised.as_ref().filter(|_| !self.draft) {
            output.json("inspected", &serde_json::json!({ "recognised": name }))?;
            output.line(format!("the built-in profile {name} describes this store: `gap` and `restore` find it themselves, or take `--profile {name}`"));
            output.line("to draft one all the same: --draft");
            return Ok(Exit::Done);
        }
        for missed in &seen.description.not_seen {
            context.monitor().warn(&format!("{} was not looked at: {}", missed.table, missed.reason));
        }
        let Some(draft) = inspect::draft(&seen.description) else {
            return Err(CompareError::NoMail { tables: seen.description.tables.len() }.into());
        };
        let toml = inspect::toml(&draft, &seen.what);
        let file = self.output.as_ref().map_or_else(|| "the draft".to_owned(), |path| path.display().to_string());
        // What a person must fill in first may be missing; then the draft is no profile yet.
        let findings = match Profile::parse(&file, &toml) {
            Ok(profile) => fit::findings(&profile, &seen.catalog),
            Err(ProfileError::Unreadable { at, message } | ProfileError::Inconsistent { at, message }) => {
                vec![Finding { severity: Severity::Error, at, message }]
            }
        };
        let questions = draft.questions();
        let said: Vec<String> = findings.iter().map(ToString::to_string).collect();
        let sampled: u64 = seen.description.tables.iter().map(|table| table.sample.len() as u64).sum();
        output.json(
            "inspected",
            &serde_json::json!({
                "recognised": seen.recognised, "sections": draft.sections, "questions": questions, "findings": said,
                "not_seen": seen.description.not_seen, "rows": sampled, "toml": toml,
            }),
        )?;
        match &self.output {
            Some(path) => write_new(path, &toml)?,
            None => output.lines(&toml),
        }
        output.note(format!(
            "{} rows of {} tables were looked at, at most {SAMPLE_ROWS} of each",
            units::count(sampled),
            seen.description.tables.len()
        ));
        for finding in &said {
            output.note(format!("does not fit yet: {finding}"));
        }
        if !questions.is_empty() {
            output.note(format!("{} questions are open: they stand at the head of the draft", questions.len()));
        }
        let open = !questions.is_empty() || !findings.is_empty() || !seen.description.not_seen.is_empty();
        Ok(if open { Exit::Findings } else { Exit::Done })
    }
}

async fn from_live(context: &Context) -> anyhow::Result<Seen> {
    let dsn = context.dsn()?;
    let session = Session::connect(&dsn, SessionOptions::default()).await?;
    let (catalog, description) = live::describe(&session).await?;
    let recognised = match fit::recognise(&session, &catalog).await {
        Ok(profile) => profile.map(|profile| profile.profile.clone()),
        Err(CompareError::Opaque { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    Ok(Seen { catalog, description, recognised, what: format!("the database {}", dsn.database) })
}

async fn from_snapshot(context: &Context, wanted: &str) -> anyhow::Result<Seen> {
    let repository = context.open_as_reader().await?;
    let chosen = context.snapshot(&repository, wanted).await?;
    let reader = SnapshotReader::open(&repository, &chosen).await?;
    let catalog = source::catalog(&reader).await?;
    let description = snapshot::describe(&RepositorySource::open(reader).await?, &catalog).await?;
    // A mark that only a server can look at counts as seen.
    let recognised = fit::marked(&catalog)?.first().map(|profile| profile.profile.clone());
    let what = format!("snapshot {} of the database {}", chosen.short(), chosen.manifest.store.database);
    Ok(Seen { catalog, description, recognised, what })
}

/// Never over a profile that somebody has worked on.
fn write_new(path: &std::path::Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    let mut file = file.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            anyhow::Error::from(UsageError(format!("{} is there already: name another file", path.display())))
        }
        _ => anyhow::Error::new(error).context(format!("cannot write {}", path.display())),
    })?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
