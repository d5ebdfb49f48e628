//! Executing a plan: counters, parents, mail newest first, repairs, derived values.

use std::sync::atomic::AtomicBool;

use futures_util::future::try_join_all;
use serde::Serialize;

use super::accounts::Accounts;
use super::batch::{self, Batch, Draft, Outcome, Progress};
use super::error::ReplayError;
use super::fits::fits;
use super::parents::Targets;
use super::plan::{Move, Plan};
use super::raise::{self, Raised};
use super::staging::{self, Stage};
use super::throttle::{Limits, Throttle};
use super::{columns, journal, parents, repair};
use crate::compare::layout::Layout;
use crate::compare::source::Source;
use crate::failpoint;
use crate::monitor::{Monitor, Unit};
use crate::postgres::session::Session;
use crate::profile::Profile;

#[derive(Debug, Clone)]
pub struct ApplyOptions {
    /// Messages and bytes in one transaction; a larger message has one of its own.
    pub batch_messages: usize,
    pub batch_bytes: u64,
    pub limits: Limits,
}

impl Default for ApplyOptions {
    fn default() -> Self {
        // Long enough that commits do not count, short enough that a delivery waits for milliseconds.
        Self { batch_messages: 200, batch_bytes: 8 << 20, limits: Limits::default() }
    }
}

/// What a replay did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReplayReport {
    /// By this name it can be undone. Absent: there was nothing to put back.
    pub replay: Option<String>,
    /// Earlier replays of the same plan that had been cut short, and are at their end now.
    pub finished: Vec<String>,
    pub counters: Raised,
    pub owners: usize,
    pub mailboxes: usize,
    #[serde(flatten)]
    pub mail: Outcome,
    /// Rows put under living messages.
    pub repaired_rows: u64,
    pub repaired_messages: usize,
    /// Living messages that got columns back, and those that were touched since the snapshot.
    pub columns: u64,
    pub columns_touched: u64,
    /// Statements of the profile that were run.
    pub statements: Vec<String>,
    /// What a person must run.
    pub by_hand: Vec<String>,
    /// Absent messages outside the window or of other mailboxes, and doubtful ones left out.
    pub outside: u64,
    pub left_out: u64,
    /// What mail clients will do.
    pub clients: Vec<String>,
    #[serde(skip)]
    pub accounts: Accounts,
}

impl ReplayReport {
    /// Is there something that a person should look at? (Exit code 3.)
    pub fn has_findings(&self) -> bool {
        let left = self.outside + self.left_out + self.mail.no_mailbox + self.mail.place_taken;
        left > 0 || self.columns_touched > 0 || !self.mail.changed_columns.is_empty() || !self.mail.left_rows.is_empty()
    }
}

/// A plan on its way. It can be built from a [`Plan`] alone.
pub struct Apply {
    plan: Plan,
    options: ApplyOptions,
    beside: Vec<Session>,
    /// That standbys cannot be seen was said.
    told: AtomicBool,
}

impl Apply {
    pub fn new(plan: Plan, options: ApplyOptions) -> Self {
        Self { plan, options, beside: Vec::new(), told: AtomicBool::new(false) }
    }

    /// More sessions with the live store, to put mail back side by side. They are not used where mails have rows in common.
    pub fn beside(self, beside: Vec<Session>) -> Self {
        Self { beside, ..self }
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Puts the mail back. Cut short at any point, a new comparison and a new plan go on from there.
    pub async fn run(
        self,
        session: &Session,
        source: &dyn Source,
        profile: &Profile,
        monitor: &dyn Monitor,
    ) -> Result<ReplayReport, ReplayError> {
        let plan = &self.plan;
        session.carry(&plan.comparison.facts.encoding);
        let mut report = ReplayReport {
            outside: plan.outside(),
            left_out: plan.left_out(),
            columns_touched: plan.columns.touched,
            ..Default::default()
        };
        report.mail.place_taken = plan.place_taken();
        fits(plan, source).await?;
        report.finished = journal::cut_short(session, plan).await?;
        if plan.is_empty() {
            // All was put back; what follows may not have been done, or may have been lost alone.
            derive(session, profile, plan, &mut report).await?;
            if !report.finished.is_empty() {
                finish(session, profile, plan, &mut report).await?;
                journal::end(session, &report.finished).await?;
            }
            report.accounts = Accounts::of(plan, Some(&report.mail));
            report.accounts.weigh(session, plan).await?;
            return Ok(report);
        }
        let layout = &plan.comparison.layout;
        journal::prepare(session).await?;
        report.counters = raise::raise(session, plan).await?;
        let replay = journal::begin(session, plan).await?;
        let targets = parents::restore(session, plan, &replay).await?;
        report.owners = plan.owners.len();
        report.mailboxes = plan.mailboxes.len();

        monitor.stage("restoring mail", Unit::Rows, Some(plan.moves.len() as u64));
        let sessions: Vec<&Session> = std::iter::once(session).chain(&self.beside).collect();
        let lanes = plan.lanes(sessions.len());
        for session in sessions.iter().take(lanes.len()) {
            session.carry(&plan.comparison.facts.encoding);
            staging::prepare(session, layout, &Stage::mail(layout)).await?;
        }
        let lanes = lanes.iter().zip(sessions);
        let lanes = lanes.map(|(moves, session)| self.lane(session, source, &targets, &replay, moves, monitor));
        for outcome in try_join_all(lanes).await? {
            report.mail.add(outcome);
        }
        report.counters.uidvalidity += report.mail.uidvalidity;
        if plan.repair && !plan.comparison.incomplete.messages.is_empty() {
            report.repaired_messages = plan.comparison.incomplete.messages.len();
            report.repaired_rows = repair::repair(session, source, plan).await?;
        }
        report.columns = columns::repair(session, source, plan, &replay).await?;
        derive(session, profile, plan, &mut report).await?;
        finish(session, profile, plan, &mut report).await?;
        journal::end(session, &[std::slice::from_ref(&replay), &report.finished].concat()).await?;
        report.replay = Some(replay);
        report.clients = plan.clients(report.mail.restored);
        report.accounts = Accounts::of(plan, Some(&report.mail));
        report.accounts.weigh(session, plan).await?;
        Ok(report)
    }

    /// Puts these messages back, one transaction after the other.
    async fn lane(
        &self,
        session: &Session,
        source: &dyn Source,
        targets: &Targets,
        replay: &str,
        moves: &[Move],
        monitor: &dyn Monitor,
    ) -> Result<Outcome, ReplayError> {
        let plan = &self.plan;
        let (mut outcome, mut progress) = (Outcome::default(), Progress::default());
        let (mut at, mut done) = (0, 0);
        let mut next = self.draft(session, source, targets, moves, &mut at).await?;
        if let Some(draft) = next {
            next = Some(draft.fetch(source).await?);
        }
        let mut throttle = Throttle::new(session, self.options.limits, monitor, &self.told);
        while let Some(draft) = next {
            throttle.wait().await?;
            let drafted = at;
            let batch = Batch::prepare(session, plan, targets, replay, draft).await?;
            // The next one is fetched while this one is written.
            let following = self.draft(session, source, targets, moves, &mut at).await?;
            let fetch = async {
                match following {
                    Some(draft) => draft.fetch(source).await.map(Some),
                    None => Ok(None),
                }
            };
            let (written, fetched) = tokio::join!(batch.run(session, &mut progress), fetch);
            outcome.add(written?);
            monitor.advance((drafted - done) as u64);
            done = drafted;
            next = fetched?;
        }
        Ok(outcome)
    }

    /// The messages from `at` on that one transaction puts back; `at` moves behind them.
    async fn draft<'a>(
        &'a self,
        session: &Session,
        source: &dyn Source,
        targets: &'a Targets,
        moves: &[Move],
        at: &mut usize,
    ) -> Result<Option<Draft<'a>>, ReplayError> {
        let plan = &self.plan;
        let (from, mut bytes) = (*at, 0);
        let Some(first) = moves.get(from) else { return Ok(None) };
        let most = self.options.batch_messages.max(1);
        while *at - from < most && moves.get(*at).is_some_and(|one| one.aside == first.aside) {
            let together = plan.together(moves, *at);
            if *at > from && together <= most && *at - from + together > most {
                break;
            }
            bytes += batch::weight(plan, source, moves[*at]).await?;
            if *at > from && bytes > self.options.batch_bytes {
                break;
            }
            *at += 1;
        }
        Ok(Some(Batch::draft(session, source, plan, targets, &moves[from..*at]).await?))
    }
}

/// What `undo` says of a replay that is not in the journal.
pub fn no_such_replay(replay: &str) -> ReplayError {
    ReplayError::NoSuchReplay { replay: replay.to_owned() }
}

/// Derived values that no trigger keeps: the statements change only what is wrong.
async fn derive(
    session: &Session,
    profile: &Profile,
    plan: &Plan,
    report: &mut ReplayReport,
) -> Result<(), ReplayError> {
    compute(session, &plan.comparison.layout).await?;
    report.statements.extend(plan.comparison.layout.derived.iter().cloned());
    for step in profile.derived.iter().filter_map(|derived| derived.by_hand.as_ref()) {
        if !report.by_hand.contains(step) {
            report.by_hand.push(step.clone());
        }
    }
    Ok(())
}

pub(super) async fn compute(session: &Session, layout: &Layout) -> Result<(), ReplayError> {
    let path = layout.search_path();
    session.execute("preparing the profile's statements", &format!("SET {path}")).await?;
    for sql in &layout.derived {
        failpoint::committing(session.execute("computing derived values", sql)).await?;
    }
    Ok(session.execute("ending the profile's statements", "SET search_path = ''").await?)
}

/// The hooks, and what a person must look at.
async fn finish(
    session: &Session,
    profile: &Profile,
    plan: &Plan,
    report: &mut ReplayReport,
) -> Result<(), ReplayError> {
    let path = plan.comparison.layout.search_path();
    session.execute("preparing the profile's statements", &format!("SET {path}")).await?;
    for hook in &profile.after {
        if let Some(sql) = &hook.sql {
            failpoint::committing(session.execute("running a hook of the profile", sql)).await?;
            report.statements.push(sql.clone());
        }
        report.by_hand.extend(hook.shell.iter().chain(&hook.http).cloned());
    }
    let external = plan.comparison.layout.external.iter();
    report.by_hand.extend(external.map(|place| format!("look whether the bytes of restored mail are there: {place}")));
    Ok(session.execute("ending the profile's statements", "SET search_path = ''").await?)
}
