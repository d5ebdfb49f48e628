//! What the commands share that hold a snapshot against a live store: the profile, the window, the choice of mail.

use std::path::Path;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::context::Context;
use super::exit::UsageError;
use crate::compare::source::RepositorySource;
use crate::compare::{Comparison, Options, compare};
use crate::postgres::session::{Session, SessionOptions};
use crate::profile::Profile;
use crate::repository::Repository;
use crate::repository::snapshots::{Snapshot, SnapshotReader};
use crate::restore::{Doubtful, PlanOptions, Window};

/// Which mail is meant.
#[derive(Args, Debug, Clone)]
pub struct Choice {
    /// What the tables mean: the name of a built-in profile, or a file
    #[arg(short, long, env = "RESTANTE_PROFILE", value_name = "PROFILE")]
    pub profile: Option<String>,
    /// Only mail saved at or after this time (RFC 3339, or local as 2014-08-10T14:00)
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub from: Option<Timestamp>,
    /// Only mail saved before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub to: Option<Timestamp>,
    /// Only this account; may be repeated
    #[arg(long, value_name = "NAME")]
    pub account: Vec<String>,
    /// Only this mailbox; may be repeated
    #[arg(long, value_name = "NAME")]
    pub mailbox: Vec<String>,
    /// When the damage happened, if that is known
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub damaged_at: Option<Timestamp>,
}

/// What to do with mail of which nobody can tell whether its user removed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DoubtfulChoice {
    /// Into its mailbox: one mail too many can be undone
    Restore,
    /// Into Recovered/<mailbox>
    SideFolder,
    /// Leave it out
    Skip,
}

impl From<DoubtfulChoice> for Doubtful {
    fn from(choice: DoubtfulChoice) -> Self {
        match choice {
            DoubtfulChoice::Restore => Self::Restore,
            DoubtfulChoice::SideFolder => Self::SideFolder,
            DoubtfulChoice::Skip => Self::Skip,
        }
    }
}

/// RFC 3339, or local time without a zone.
pub fn parse_time(text: &str) -> Result<Timestamp, String> {
    if let Ok(instant) = text.parse() {
        return Ok(instant);
    }
    let local: DateTime = text.parse().map_err(|_| {
        format!("{text:?} is not a time: write 2014-08-10T14:00Z, 2014-08-10T14:00+02:00 or, local, 2014-08-10T14:00")
    })?;
    TimeZone::system().to_timestamp(local).map_err(|e| e.to_string())
}

impl Choice {
    pub fn window(&self) -> Window {
        Window { from: self.from, to: self.to }
    }

    pub fn profile(&self, context: &Context) -> anyhow::Result<Profile> {
        let Some(name) = self.profile.as_ref().or(context.config.profile.as_ref()) else {
            let known = Profile::builtin_names().into_iter().collect::<Vec<_>>().join(", ");
            let message = format!("which profile tells what the tables mean? Give `--profile`: {known}, or a file");
            return Err(UsageError(message).into());
        };
        if let Some(profile) = Profile::builtin(name) {
            return Ok(profile?);
        }
        let text = std::fs::read_to_string(Path::new(name)).map_err(|e| {
            let known = Profile::builtin_names().into_iter().collect::<Vec<_>>().join(", ");
            UsageError(format!("--profile {name}: not built in ({known}), and no file: {e}"))
        })?;
        Ok(Profile::parse(name, &text)?)
    }

    pub fn plan(&self, doubtful: DoubtfulChoice, orphans: bool) -> PlanOptions {
        PlanOptions {
            window: self.window(),
            accounts: self.account.clone(),
            mailboxes: self.mailbox.clone(),
            doubtful: doubtful.into(),
            orphans,
            leave_incomplete: false,
        }
    }

    pub fn options(&self) -> Options {
        Options { damaged_at: self.damaged_at }
    }
}

/// A snapshot and a live store, both open.
pub struct Sides {
    pub session: Session,
    pub source: RepositorySource,
    pub profile: Profile,
}

impl Sides {
    pub async fn open(
        context: &Context,
        choice: &Choice,
        repository: &Repository,
        snapshot: &Snapshot,
    ) -> anyhow::Result<Self> {
        let profile = choice.profile(context)?;
        let session = Session::connect(&context.dsn()?, SessionOptions::default()).await?;
        let source = RepositorySource::open(SnapshotReader::open(repository, snapshot).await?).await?;
        Ok(Self { session, source, profile })
    }

    pub async fn compare(&self, choice: &Choice) -> anyhow::Result<Comparison> {
        Ok(compare(&self.session, &self.source, &self.profile, &choice.options()).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::parse_time;

    #[test]
    fn times_are_read_with_a_zone_or_as_local() {
        assert_eq!(parse_time("2014-08-10T14:00Z").unwrap().to_string(), "2014-08-10T14:00:00Z");
        assert_eq!(parse_time("2014-08-10T16:00:30+02:00").unwrap().to_string(), "2014-08-10T14:00:30Z");
        assert!(parse_time("2014-08-10T14:00").is_ok());
        for bad in ["", "yesterday", "14:00", "2014-13-01T00:00Z"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
