//! What a restore did for each account, or would do: what support can tell its user. Counts, names of folders and times; no subjects.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use serde::Serialize;

use super::batch::{Became, Outcome};
use super::error::ReplayError;
use super::plan::{Left, Plan};
use crate::postgres::PostgresError;
use crate::postgres::session::Session;

/// What a restore means to one account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AccountReport {
    /// Messages put back, by earlier replays too; in a plan, those that would be.
    pub messages: u64,
    /// The earliest and the latest of them; some have no time.
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    /// Where they are, by name. Hostile text.
    pub folders: BTreeMap<String, u64>,
    /// Lost messages that are not put back, and why.
    pub not_restored: BTreeMap<Left, u64>,
    /// It holds more than it may now, and may get no mail before its user makes room.
    pub over_quota: bool,
}

/// By address. Hostile text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts(pub BTreeMap<String, AccountReport>);

impl Accounts {
    /// What a plan means, or what came of it.
    pub fn of(plan: &Plan, outcome: Option<&Outcome>) -> Self {
        let mut accounts = Self::default();
        let leftovers = &plan.comparison.leftovers;
        for one in &plan.moves {
            match outcome.map(|outcome| outcome.became.get(&one.leftover)) {
                // An equal mail is there: nothing is missing to the user.
                Some(None | Some(Became::ArrivedMeanwhile)) => {}
                Some(Some(Became::NoMailbox)) => accounts.left(plan, Some(one.mailbox), Left::NoFolder),
                Some(Some(Became::PlaceTaken)) => accounts.left(plan, Some(one.mailbox), Left::PlaceTaken),
                None | Some(Some(Became::Restored | Became::ByAnother)) => {
                    let folder = plan.folder_of(one.mailbox, one.aside);
                    accounts.put_back(plan, one.mailbox, folder, leftovers[one.leftover].instant);
                }
            }
        }
        for leftover in plan.earlier.iter().map(|at| &leftovers[*at]).filter(|_| outcome.is_some()) {
            if let Some(mailbox) = leftover.mailbox {
                accounts.put_back(plan, mailbox, plan.folder_of(mailbox, false), leftover.instant);
            }
        }
        for (leftover, why) in &plan.left {
            accounts.left(plan, leftovers[*leftover].mailbox, *why);
        }
        accounts
    }

    /// Takes in what another snapshot brought.
    pub fn add(&mut self, other: Self) {
        for (account, report) in other.0 {
            let whole = self.0.entry(account).or_default();
            whole.messages += report.messages;
            whole.over_quota |= report.over_quota;
            whole.from = [whole.from, report.from].into_iter().flatten().min();
            whole.to = [whole.to, report.to].into_iter().flatten().max();
            report.folders.into_iter().for_each(|(folder, count)| *whole.folders.entry(folder).or_default() += count);
            report
                .not_restored
                .into_iter()
                .for_each(|(why, count)| *whole.not_restored.entry(why).or_default() += count);
        }
    }

    /// How many got mail and hold more than they may now.
    pub fn over_quota(&self) -> u64 {
        self.0.values().filter(|report| report.over_quota).count() as u64
    }

    /// Looks which of those that got mail hold more than they may now.
    pub(super) async fn weigh(&mut self, session: &Session, plan: &Plan) -> Result<(), ReplayError> {
        let Some(owner) = &plan.comparison.layout.owner else { return Ok(()) };
        let Some(over) = &owner.over_quota else { return Ok(()) };
        let key = owner.table.ident(owner.table.single_key()?);
        let sql = format!("SELECT {key}::text FROM {} WHERE ({over})", owner.table.quoted());
        let failed = PostgresError::server("looking for accounts over their quota");
        let rows = session.client().query(&sql, &[]).await.map_err(failed)?;
        let over: HashSet<&str> = rows.iter().map(|row| row.get(0)).collect();
        let parents = &plan.comparison.parents;
        for (at, owner) in parents.owners.iter().enumerate() {
            if parents.live_of(at).is_some_and(|live| over.contains(&*live.key_text))
                && let Some(report) = self.0.get_mut(&owner.label).filter(|report| report.messages > 0)
            {
                report.over_quota = true;
            }
        }
        Ok(())
    }

    fn account(&mut self, plan: &Plan, mailbox: Option<usize>) -> &mut AccountReport {
        let label = mailbox.map(|mailbox| plan.comparison.parents.label(mailbox).0).unwrap_or_default();
        self.0.entry(label).or_default()
    }

    fn put_back(&mut self, plan: &Plan, mailbox: usize, folder: String, at: Option<Timestamp>) {
        let report = self.account(plan, Some(mailbox));
        report.messages += 1;
        report.from = [report.from, at].into_iter().flatten().min();
        report.to = [report.to, at].into_iter().flatten().max();
        *report.folders.entry(folder).or_default() += 1;
    }

    fn left(&mut self, plan: &Plan, mailbox: Option<usize>, why: Left) {
        *self.account(plan, mailbox).not_restored.entry(why).or_default() += 1;
    }
}
