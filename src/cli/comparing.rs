//! What `gap`, `find`, `restore` and `undo` have in common: the store's profile, the right snapshot, the comparison.

use std::collections::{BTreeSet, HashSet};

use anyhow::Context as _;
use clap::Args;
use jiff::Timestamp;

use super::context::Context;
use super::exit::UsageError;
use crate::compare::parents::Parents;
use crate::compare::source::{RepositorySource, Source};
use crate::compare::{self, CompareError, Comparison, Window, choose, fit};
use crate::postgres::catalog::{self, Catalog};
use crate::postgres::session::{Session, SessionOptions};
use crate::profile::{Profile, Severity};
use crate::repository::Repository;
use crate::repository::id::ObjectId;
use crate::repository::snapshots::{self, Snapshot, SnapshotReader};

/// The newest snapshots that are held against each other.
const CANDIDATES: usize = 8;

#[derive(Args, Debug, Clone)]
pub struct Comparing {
    /// Built-in profile or a TOML file; found out if left out
    #[arg(long, value_name = "NAME|FILE")]
    pub profile: Option<String>,
    /// What has another name since the snapshot, TABLE=NEW or TABLE.COLUMN=NEW; may be repeated
    #[arg(long, value_name = "OLD=NEW")]
    pub renamed: Vec<String>,
    /// Only mail saved (or, where the store does not say, arrived) from this time on
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub from: Option<Timestamp>,
    /// … and before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub to: Option<Timestamp>,
    /// When the damage happened: mail that was there before then does not stand for a lost one
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub damaged_at: Option<Timestamp>,
}

/// RFC 3339, or a local time with its zone in brackets.
pub fn time(text: &str) -> Result<Timestamp, String> {
    text.parse::<Timestamp>()
        .or_else(|_| text.parse::<jiff::Zoned>().map(|zoned| zoned.timestamp()))
        .map_err(|_| format!("{text:?} is no time: write 2014-08-10T14:00:00Z or 2014-08-10T14:00[Europe/Zurich]"))
}

/// A live store with its profile.
pub struct Live {
    pub session: Session,
    pub catalog: Catalog,
    pub profile: Profile,
}

impl Live {
    pub async fn open(context: &Context, wanted: Option<&str>, renamed: &[String]) -> anyhow::Result<Self> {
        let session = Session::connect(&context.dsn()?, SessionOptions::default()).await?;
        let catalog = catalog::read(&session).await?;
        let mut profile = match wanted.or(context.config.profile.as_deref()) {
            Some(name) => match Profile::builtin(name) {
                Some(profile) => profile?,
                None => {
                    let text = std::fs::read_to_string(name)
                        .with_context(|| format!("{name} is neither a built-in profile nor a file that can be read"))?;
                    Profile::parse(name, &text)?
                }
            },
            None => fit::recognise(&session, &catalog).await?.ok_or_else(|| {
                UsageError(
                    "no built-in profile fits this store: give `--profile FILE`, or `profile` in restante.toml".into(),
                )
            })?,
        };
        for text in renamed {
            profile.rename(text).map_err(UsageError)?;
        }
        let findings = fit::findings(&profile, &catalog);
        for finding in &findings {
            match finding.severity {
                Severity::Warning => context.monitor().warn(&finding.to_string()),
                Severity::Error => return Err(anyhow::anyhow!("the profile does not fit the store: {finding}")),
            }
        }
        Ok(Self { session, catalog, profile })
    }
}

/// A snapshot that was chosen.
pub struct Chosen {
    pub snapshot: Snapshot,
    pub source: RepositorySource,
}

impl Chosen {
    pub async fn open(repository: &Repository, snapshot: &Snapshot) -> anyhow::Result<Self> {
        let source = RepositorySource::open(SnapshotReader::open(repository, snapshot).await?).await?;
        Ok(Self { snapshot: snapshot.clone(), source })
    }
}

/// A name that was typed wrong must not look like mail that is not lost.
pub fn known(parents: &Parents, accounts: &[String], mailboxes: &[String]) -> anyhow::Result<()> {
    match parents.unknown(accounts, mailboxes) {
        said if said.is_empty() => Ok(()),
        said => Err(UsageError(said.join("\n")).into()),
    }
}

/// Of several stores in one repository, the snapshots of the one that is connected to: another one's mail belongs to other people. A store that moved to another
/// server is known by the name of its database.
async fn of_live(live: &Live, all: Vec<Snapshot>, wanted: &[&str]) -> anyhow::Result<Vec<Snapshot>> {
    let stores: BTreeSet<String> = all.iter().map(|one| one.manifest.store.to_string()).collect();
    if stores.len() < 2 {
        return Ok(all);
    }
    let facts = live.session.facts().await?;
    let system = facts.system_identifier.as_deref().and_then(|text| text.parse::<u64>().ok());
    let by_name = |one: &Snapshot| one.manifest.store.database == facts.database;
    let by_system = |one: &Snapshot| by_name(one) && system.is_some() && one.manifest.store.system_identifier == system;
    let is_known = all.iter().any(by_system);
    let is_its = |one: &Snapshot| if is_known { by_system(one) } else { by_name(one) };
    for wanted in wanted.iter().filter(|wanted| !snapshots::is_by_time(wanted)) {
        let one = snapshots::select(&all, wanted)?;
        if !is_its(one) {
            let (short, of, live) = (one.short(), &one.manifest.store, &facts.database);
            let message = format!(
                "snapshot {short} is of {of}, and the live store is {live}: its mail belongs to others. `restore --full` or `--table` put it aside"
            );
            return Err(UsageError(message).into());
        }
    }
    let (its, others): (Vec<Snapshot>, Vec<Snapshot>) = all.into_iter().partition(is_its);
    if its.is_empty() && !others.is_empty() {
        let known = stores.into_iter().collect::<Vec<_>>().join(", ");
        let message = format!("the repository has no snapshot of the database {}; it has: {known}", facts.database);
        return Err(UsageError(message).into());
    }
    Ok(its)
}

impl Comparing {
    pub fn window(&self) -> Window {
        Window { from: self.from, to: self.to }
    }

    /// The snapshot asked for, or the fullest. A newest one that was taken after the damage is refused.
    pub async fn choose(&self, context: &Context, live: &Live, wanted: Option<&str>) -> anyhow::Result<Chosen> {
        let repository = context.open_as_reader().await?;
        let all = of_live(live, context.snapshots(&repository).await?, wanted.as_slice()).await?;
        let newest = wanted.is_none_or(|wanted| wanted == "latest");
        if !newest {
            let snapshot = snapshots::select(&all, wanted.unwrap_or_default())?;
            return Chosen::open(&repository, snapshot).await;
        }
        let mut candidates = Vec::new();
        for snapshot in all.iter().rev().filter(|one| one.certificate.is_some()).take(CANDIDATES) {
            let source = RepositorySource::open(SnapshotReader::open(&repository, snapshot).await?).await?;
            candidates.push((snapshot.clone(), source));
        }
        let Some((first, _)) = candidates.first() else {
            return Err(snapshots::select(&all, "latest")
                .err()
                .map_or_else(|| anyhow::anyhow!("no snapshot"), Into::into));
        };
        let store = first.manifest.store.clone();
        candidates.retain(|(snapshot, _)| snapshot.manifest.store == store);
        let sources: Vec<&dyn Source> = candidates.iter().map(|(_, source)| source as &dyn Source).collect();
        let holdings = choose::holdings(&sources, &live.profile, &live.catalog, &self.window()).await?;
        let best = choose::fullest(&holdings).unwrap_or(0);
        if best != 0 && wanted.is_some() {
            return Err(CompareError::TakenAfterDamage {
                chosen: candidates[0].0.short(),
                better: candidates[best].0.short(),
                lost: holdings[best],
            }
            .into());
        }
        if best != 0 {
            context.output.note(format!(
                "the newest snapshot {} was taken after the damage: {} messages of {} are neither in it nor deleted by their users; {} is used",
                candidates[0].0.short(),
                holdings[best],
                candidates[best].0.short(),
                candidates[best].0.short()
            ));
        }
        let (snapshot, source) = candidates.swap_remove(best);
        Ok(Chosen { snapshot, source })
    }

    /// The snapshots of the store to merge, newest first: those that are named, or all that are certified. When the damage was later than a
    /// good one, older ones have nothing to add: what was gone by then the damage did not take.
    pub async fn merged(
        &self,
        context: &Context,
        live: &Live,
        wanted: &[String],
    ) -> anyhow::Result<(Repository, Vec<Snapshot>)> {
        let repository = context.open_as_reader().await?;
        let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let all = of_live(live, context.snapshots(&repository).await?, &names).await?;
        let named = wanted.iter().map(|wanted| snapshots::select(&all, wanted).map(|one| one.id));
        let named: HashSet<ObjectId> = named.collect::<Result<_, _>>()?;
        let certified = all.into_iter().rev().filter(|one| one.certificate.is_some());
        let mut found: Vec<Snapshot> = certified.filter(|one| named.is_empty() || named.contains(&one.id)).collect();
        let store = found.first().map(|newest| newest.manifest.store.clone());
        let others = |one: &Snapshot| store.as_ref().is_some_and(|store| one.manifest.store != *store);
        if !named.is_empty() && found.iter().any(others) {
            return Err(UsageError("the snapshots that are named are not of one store".into()).into());
        }
        found.retain(|one| !others(one));
        let good = |one: &Snapshot| {
            let manifest = &one.manifest;
            manifest.complete && manifest.suspect.is_empty() && self.damaged_at.is_some_and(|at| manifest.taken <= at)
        };
        if let Some(at) = found.iter().position(good) {
            found.truncate(at + 1);
        }
        if found.is_empty() {
            snapshots::select(&[], "latest")?;
        }
        Ok((repository, found))
    }

    /// `window`: what need not be looked at closely. A gap looks at everything.
    pub async fn compare(&self, live: &Live, chosen: &Chosen, window: Window) -> anyhow::Result<Comparison> {
        let options = compare::Options { damaged_at: self.damaged_at, window };
        Ok(compare::compare(&live.session, &chosen.source, &live.profile, &options).await?)
    }
}
