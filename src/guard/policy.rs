//! What must be so before a change runs. The policy lies in the repository, signed, so that whoever runs a change does not choose it: the
//! first one is signed by all whom it names, each later one by as many of its predecessor's signers as that asks for.

use std::path::Path;

use jiff::civil::{Time, Weekday};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};

use super::approval::{self, Signer};
use super::document;
use super::error::GuardError;
use crate::repository::Repository;
use crate::repository::changes;
use crate::repository::id::ObjectId;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Lines of OpenSSH's `allowed_signers`: a name and a public key.
    #[serde(rename = "allowed_signers")]
    lines: Vec<String>,
    /// How many of them must sign a change; all if left out.
    signatures: Option<usize>,
    /// How old the last good snapshot may be.
    #[serde(deserialize_with = "document::duration")]
    pub snapshot_age: SignedDuration,
    /// How long ago the packs that it needs may have been hashed.
    #[serde(deserialize_with = "document::duration")]
    pub hash_age: SignedDuration,
    /// How far ahead a change may expire.
    #[serde(default = "two_weeks", deserialize_with = "document::duration")]
    pub longest_approval: SignedDuration,
    /// When changes may begin; any time if there is none.
    #[serde(default, rename = "window")]
    pub windows: Vec<Window>,
    /// Supervisors that must be paused for an offline change, found or not.
    #[serde(default)]
    pub must_pause: Vec<String>,
    /// How supervisors are paused that Restante does not know how to.
    #[serde(default, rename = "supervisor")]
    pub supervisors: Vec<SupervisorCommands>,
    /// May signatures or a window be waived with a reason?
    #[serde(default)]
    pub break_glass: bool,
    #[serde(skip)]
    pub signers: Vec<Signer>,
}

fn two_weeks() -> SignedDuration {
    SignedDuration::from_hours(14 * 24)
}

/// The commands of a supervisor; each is a program with its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SupervisorCommands {
    pub name: String,
    pub pause: Vec<String>,
    /// Ends with 0 while it is paused, with anything else otherwise; or says `status_says` while it is.
    pub status: Vec<String>,
    #[serde(default)]
    pub status_says: Option<String>,
    pub resume: Vec<String>,
    /// `resume` starts the server; then the guard does not.
    #[serde(default)]
    pub starts_server: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// `mon` to `sun`; every day if left out. A window that goes past midnight belongs to the day on which it begins.
    #[serde(default)]
    days: Vec<Day>,
    from: String,
    to: String,
    zone: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Day {
    fn weekday(self) -> Weekday {
        match self {
            Self::Mon => Weekday::Monday,
            Self::Tue => Weekday::Tuesday,
            Self::Wed => Weekday::Wednesday,
            Self::Thu => Weekday::Thursday,
            Self::Fri => Weekday::Friday,
            Self::Sat => Weekday::Saturday,
            Self::Sun => Weekday::Sunday,
        }
    }
}

impl Window {
    fn times(&self) -> Result<(Time, Time, TimeZone), String> {
        let time = |text: &str| text.parse::<Time>().map_err(|_| format!("{text:?} is no time of day: write 22:00"));
        let zone = TimeZone::get(&self.zone)
            .map_err(|_| format!("{:?} is no time zone: write UTC or Europe/Zurich", self.zone))?;
        Ok((time(&self.from)?, time(&self.to)?, zone))
    }

    fn contains(&self, now: Timestamp) -> bool {
        let Ok((from, to, zone)) = self.times() else { return false };
        let local = now.to_zoned(zone).datetime();
        let on = |day: Weekday| self.days.is_empty() || self.days.iter().any(|wanted| wanted.weekday() == day);
        let (time, today) = (local.time(), local.date().weekday());
        if from < to {
            on(today) && from <= time && time < to
        } else {
            (on(today) && from <= time) || (on(today.previous()) && time < to)
        }
    }
}

impl Policy {
    /// `path` is for errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, GuardError> {
        let mut policy: Self = document::parse(path, text)?;
        let wrong = |words: &str, message: String| {
            let line = text.lines().position(|line| line.contains(words)).unwrap_or(0) + 1;
            GuardError::Document { path: path.to_owned(), line, message }
        };
        for line in &policy.lines {
            let signer = Signer::parse(line).map_err(|message| wrong(line, format!("allowed_signers: {message}")))?;
            if policy.signers.iter().any(|known| known.name == signer.name || known.key == signer.key) {
                return Err(wrong(line, format!("allowed_signers: {} or his key is there twice", signer.name)));
            }
            policy.signers.push(signer);
        }
        if policy.signers.is_empty() {
            return Err(wrong("allowed_signers", "allowed_signers: name at least one who may approve".into()));
        }
        if policy.signatures.is_some_and(|wanted| wanted == 0 || wanted > policy.signers.len()) {
            let message = format!("signatures: from 1 to {}, as many as allowed_signers names", policy.signers.len());
            return Err(wrong("signatures", message));
        }
        for window in &policy.windows {
            window.times().map_err(|message| wrong("[[window]]", format!("window: {message}")))?;
        }
        for supervisor in &policy.supervisors {
            let commands = [&supervisor.pause, &supervisor.status, &supervisor.resume];
            if supervisor.name.is_empty() || commands.iter().any(|command| command.is_empty()) {
                return Err(wrong(
                    "[[supervisor]]",
                    "supervisor: name, pause, status and resume must not be empty".into(),
                ));
            }
        }
        Ok(policy)
    }

    /// How many must sign.
    pub fn required(&self) -> usize {
        self.signatures.unwrap_or(self.signers.len())
    }

    pub fn is_open(&self, now: Timestamp) -> bool {
        self.windows.is_empty() || self.windows.iter().any(|window| window.contains(now))
    }
}

/// A policy as it lies in the repository.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    number: u32,
    /// Hash of the policy before it.
    previous: Option<String>,
    text: String,
    /// OpenSSH signatures over [`to_sign`].
    signatures: Vec<String>,
    put: Timestamp,
}

/// The policy that is in force.
#[derive(Debug, Clone)]
pub struct InForce {
    pub number: u32,
    /// BLAKE3 of its text: what an approval names.
    pub hash: ObjectId,
    pub text: String,
    pub policy: Policy,
}

/// What is signed to put a policy in force: which repository, which place in its history, and the text.
pub fn to_sign(repository: &Repository, before: Option<&InForce>, text: &str) -> String {
    let id = repository.secrets.repository.to_hex();
    let number = before.map_or(1, |before| before.number + 1);
    let previous = before.map_or_else(|| "none".to_owned(), |before| before.hash.to_hex());
    format!("restante policy 1\nrepository {id}\nnumber {number}\nprevious {previous}\n\n{text}")
}

/// The newest policy, if every one before it is there and was put in force by those who may.
pub async fn in_force(repository: &Repository) -> Result<Option<InForce>, GuardError> {
    let mut newest: Option<InForce> = None;
    for name in changes::names(repository, "policies/").await? {
        let found = changes::read::<Record>(repository, name.clone()).await?;
        let damaged = |message: String| crate::repository::RepositoryError::Damaged { name: name.clone(), message };
        let record = found.record;
        let number = newest.as_ref().map_or(1, |before| before.number + 1);
        let previous = newest.as_ref().map(|before| before.hash.to_hex());
        if record.number != number || record.previous != previous || name.file_name() != place(number) {
            return Err(damaged(
                "it does not follow the policy before it: one is missing, or was put in between".into(),
            )
            .into());
        }
        let policy = accept(repository, newest.as_ref(), Path::new(name.as_str()), &record.text, &record.signatures)
            .map_err(|e| damaged(e.to_string()))?;
        newest = Some(InForce { number, hash: ObjectId::of(record.text.as_bytes()), text: record.text, policy });
    }
    Ok(newest)
}

fn place(number: u32) -> String {
    format!("{number:08}")
}

/// Reads a policy if enough signed it of those who may.
fn accept(
    repository: &Repository,
    before: Option<&InForce>,
    path: &Path,
    text: &str,
    signatures: &[String],
) -> Result<Policy, GuardError> {
    let policy = Policy::parse(path, text)?;
    let signed = to_sign(repository, before, text);
    let (signers, required, whose) = match before {
        None => (&policy.signers, policy.signers.len(), "it names"),
        Some(before) => (&before.policy.signers, before.policy.required(), "the policy in force names"),
    };
    let given: Vec<&str> = signatures.iter().map(String::as_str).collect();
    let by = approval::signed_by(signers, signed.as_bytes(), &given)?;
    if by.len() < required {
        let missing: Vec<&str> =
            signers.iter().map(|signer| signer.name.as_str()).filter(|name| !by.contains(*name)).collect();
        return Err(GuardError::Signature(format!(
            "the policy is signed by {} of those whom {whose}, and {required} must: missing are {}",
            by.len(),
            missing.join(", ")
        )));
    }
    Ok(policy)
}

/// Puts a policy in force.
pub async fn put(
    repository: &Repository,
    path: &Path,
    text: &str,
    signatures: Vec<String>,
) -> Result<InForce, GuardError> {
    let before = in_force(repository).await?;
    let policy = accept(repository, before.as_ref(), path, text, &signatures)?;
    let number = before.as_ref().map_or(1, |before| before.number + 1);
    let previous = before.map(|before| before.hash.to_hex());
    let record = Record { number, previous, text: text.to_owned(), signatures, put: Timestamp::now() };
    changes::put(repository, &format!("policies/{}", place(number)), &record).await?;
    Ok(InForce { number, hash: ObjectId::of(text.as_bytes()), text: text.to_owned(), policy })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(days: Vec<Day>, from: &str, to: &str) -> Window {
        Window { days, from: from.into(), to: to.into(), zone: "Europe/Zurich".into() }
    }

    #[test]
    fn a_window_past_midnight_belongs_to_the_day_on_which_it_begins() {
        let night = window(vec![Day::Fri], "22:00", "06:00");
        for (time, open) in [
            ("2026-11-27T21:30:00Z", true),  // Friday, 22:30 there
            ("2026-11-28T04:30:00Z", true),  // Saturday morning
            ("2026-11-28T05:30:00Z", false), // after six
            ("2026-11-27T20:30:00Z", false),
            ("2026-11-28T21:30:00Z", false), // Saturday night
            ("2026-11-27T03:00:00Z", false), // Thursday's
        ] {
            assert_eq!(night.contains(time.parse().unwrap()), open, "{time}");
        }
        assert!(window(vec![], "00:00", "23:59").contains("2026-07-01T10:00:00Z".parse().unwrap()));
    }
}
