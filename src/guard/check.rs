//! May this change run now? Every reason against it, not the first alone.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Serialize;

use super::canonical::Canonical;
use super::change::Change;
use super::error::GuardError;
use super::log::{Log, Memory};
use super::policy::{self, InForce};
use super::preflight::{self, Preflight};
use super::{Guard, approval, certified};
use crate::postgres::session::{Session, SessionOptions};
use crate::repository::snapshots::Snapshot;

/// What the person who runs it says.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// Supervisors that he paused himself.
    pub paused: Vec<String>,
    /// Waive signatures and windows for this reason.
    pub break_glass: Option<String>,
}

/// A change, held against the policy.
pub struct Judged {
    pub policy: InForce,
    pub canonical: Canonical,
    pub approved_by: BTreeSet<String>,
    /// Why approvals, expiry, the window or the log refuse it.
    pub reasons: Vec<String>,
    /// What was waived.
    pub waived: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Reasons {
    pub approval: Vec<String>,
    pub snapshot: Vec<String>,
    pub preflight: Vec<String>,
}

impl Reasons {
    pub fn all(&self) -> Vec<String> {
        [&self.approval[..], &self.snapshot, &self.preflight].concat()
    }
}

/// Everything that was found.
pub struct Checked {
    pub judged: Judged,
    pub reasons: Reasons,
    pub notes: Vec<String>,
    pub snapshot: Option<Snapshot>,
    pub preflight: Option<Preflight>,
}

/// The policy that is in force, or what to do.
pub async fn policy_in_force(guard: &Guard<'_>) -> Result<InForce, GuardError> {
    policy::in_force(guard.repository()?).await?.ok_or_else(|| {
        GuardError::Refused(vec!["there is no policy in this repository: write one, have it signed by all whom it names, and put it in force with `restante guard policy FILE --signature …`".into()])
    })
}

/// The change under the policy in force: what is to be signed.
pub async fn canonical(guard: &Guard<'_>, change: &Change) -> Result<(InForce, Canonical), GuardError> {
    let policy = policy_in_force(guard).await?;
    let repository = guard.repository()?.secrets.repository.to_hex();
    let canonical = Canonical::new(repository, &policy, change.canonical.clone());
    Ok((policy, canonical))
}

pub async fn judge(guard: &Guard<'_>, change: &Change, given: &Given, now: Timestamp) -> Result<Judged, GuardError> {
    let (policy, canonical) = canonical(guard, change).await?;
    let hash = canonical.hash()?;
    let (approved_by, problems) = approval::of(guard.repository()?, &policy, &canonical).await?;
    let (mut reasons, mut waived) = (Vec::new(), Vec::new());
    let glass = given.break_glass.as_ref().filter(|_| policy.policy.break_glass);
    if given.break_glass.is_some() && glass.is_none() {
        reasons
            .push("the policy lets nobody break the glass: signatures and windows are waived for no reason".to_owned());
    }
    let mut waive = |reason: String| match glass {
        Some(why) => waived.push(format!("{reason} (waived: {why})")),
        None => reasons.push(reason),
    };
    if approved_by.len() < policy.policy.required() {
        let missing: Vec<&str> = policy
            .policy
            .signers
            .iter()
            .map(|signer| signer.name.as_str())
            .filter(|name| !approved_by.contains(*name))
            .collect();
        let mut reason = format!(
            "{} of {} signatures are there; missing: {}",
            approved_by.len(),
            policy.policy.required(),
            missing.join(", ")
        );
        let others = approval::of_other_forms(guard.repository()?, &canonical).await?;
        if others > 0 {
            reason += &format!(
                "; {others} signatures are over another form of {}: since then the change, a script, its target or the policy was changed",
                canonical.change.id
            );
        }
        waive(reason);
    }
    if !policy.policy.is_open(now) {
        waive("no change window of the policy is open now".to_owned());
    }
    reasons.extend(problems);
    reasons.extend(canonical.expiry(&policy, now));
    let log = Log::load(guard.repository()?).await?;
    Memory::of(&guard.folder.path).check(&log)?;
    reasons.extend(log.problems.iter().map(|problem| format!("the log is damaged: {problem}")));
    if let Some(entry) = log.was_run(&hash) {
        reasons.push(format!("this change was run already, at {}: its approvals are used up. To run it again give it another id and have it approved", entry.at));
    } else if let Some(entry) = log.knows_id(&canonical.change.id) {
        reasons.push(format!(
            "another change with the id {} was run at {}: give this one its own",
            canonical.change.id, entry.at
        ));
    }
    Ok(Judged { policy, canonical, approved_by, reasons, waived })
}

/// Looks at everything and touches nothing. With `hash`, packs whose hashes are too old are hashed now.
pub async fn check(guard: &Guard<'_>, change: &Change, given: &Given, hash: bool) -> Result<Checked, GuardError> {
    let now = Timestamp::now();
    let judged = judge(guard, change, given, now).await?;
    let (policy, unbound) = (&judged.policy.policy, &judged.canonical.change);
    let newest = certified::newest(guard.repository()?, &unbound.target, policy, now).await?;
    let (mut of_snapshot, snapshot) = (newest.reasons, newest.snapshot);
    if let Some(snapshot) = &snapshot {
        let (stale, problems) =
            certified::stale_packs(guard.repository()?, snapshot, policy, now, &guard.monitor).await?;
        of_snapshot.extend(problems);
        if hash {
            of_snapshot.extend(certified::hash_now(guard.repository()?, &stale, &guard.monitor).await?);
        } else if !stale.is_empty() {
            let (short, age) = (snapshot.short(), super::document::shown(policy.hash_age));
            of_snapshot.push(format!("{} packs that snapshot {short} needs were not hashed within {age}: `restante guard check --hash` hashes them now", stale.len()));
        }
    }
    let (mut notes, mut of_preflight, mut preflight) = (judged.waived.clone(), Vec::new(), None);
    match Session::connect(guard.dsn, SessionOptions::default()).await {
        Ok(session) => {
            let found = preflight::look(&session, unbound, policy, &given.paused).await?;
            of_preflight.extend(found.reasons.iter().cloned());
            notes.extend(found.notes.iter().cloned());
            preflight = Some(found);
        }
        Err(e) => of_preflight.push(format!("the server cannot be looked at: {e}")),
    }
    if let Some(state) = guard.folder.load()? {
        of_preflight
            .push(format!("the change {} has not ended: see `restante guard status`", state.canonical.change.id));
    }
    let reasons = Reasons { approval: judged.reasons.clone(), snapshot: of_snapshot, preflight: of_preflight };
    Ok(Checked { judged, reasons, notes, snapshot, preflight })
}
