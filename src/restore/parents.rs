//! Accounts and mailboxes that were lost with their mail, and side folders.
//!
//! A parent that was lost comes back under a new key with its creation evidence, so that the next comparison knows it again; a mailbox
//! gets a fresh UIDVALIDITY, because its UIDs may have been seen under the old one. Where the name has been taken meanwhile, the mail
//! goes to whoever has it then: the next comparison sees to that, this one leaves it out.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::dictionaries::lead_to_parents;
use super::error::ReplayError;
use super::plan::Plan;
use super::staging::{self, NUMBER, Stage, StagedRow};
use crate::compare::live;
use crate::compare::parents::Fate;
use crate::compare::past::PARENTS;
use crate::postgres::PostgresError;
use crate::postgres::session::Session;

/// A live mailbox that mail goes into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub key: Bytes,
    pub key_text: String,
    /// The account that it belongs to.
    pub owner: Option<Bytes>,
    /// The first UID that was free when the comparison looked; mail from there on is new to it.
    pub new_from: i64,
    pub evidence: Vec<Option<Bytes>>,
}

/// By position among the snapshot's mailboxes, and aside or not.
pub(super) type Targets = HashMap<(usize, bool), Target>;

pub(super) async fn restore(session: &Session, plan: &Plan, replay: &str) -> Result<Targets, ReplayError> {
    let replay = Replay { session, plan, id: replay };
    let (layout, parents) = (&plan.comparison.layout, &plan.comparison.parents);
    let none = plan.owners.is_empty() && plan.mailboxes.is_empty() && plan.aside.is_empty();
    let stages = if none { Vec::new() } else { Stage::parents(layout) };
    staging::prepare(session, layout, &stages).await?;
    let mut owners: HashMap<usize, Bytes> = HashMap::new();
    for (at, owner) in parents.owners.iter().enumerate() {
        if let Fate::Alive(live) | Fate::Successor(live) = owner.fate {
            owners.insert(at, parents.live_owners[live].key.clone());
        }
    }
    for at in &plan.owners {
        let lost = Lost { at: *at, is_mailbox: false, aside: false };
        if let Some(target) = put(replay, lost, None).await? {
            owners.insert(*at, target.key);
        }
    }
    let mut targets = Targets::new();
    for at in 0..parents.mailboxes.len() {
        if let Some(live) = parents.target(at) {
            let target = Target {
                key: live.key.clone(),
                key_text: live.key_text.clone(),
                owner: parents.target_owner(at).map(|owner| owner.key.clone()),
                new_from: match layout.mailbox.uid_by_rows {
                    true => plan.comparison.counters.highest(&live.key).uid_now + 1,
                    false => live.uid.unwrap_or(0) + i64::from(!layout.mailbox.uid_is_next),
                },
                evidence: live.evidence.clone(),
            };
            targets.insert((at, false), target);
        }
    }
    let lost = plan.mailboxes.iter().map(|at| (*at, false)).chain(plan.aside.iter().map(|at| (*at, true)));
    for (at, aside) in lost {
        let owner = match parents.mailboxes[at].owner {
            None => None,
            Some(owner) => match owners.get(&owner) {
                Some(key) => Some(key),
                None => continue,
            },
        };
        let lost = Lost { at, is_mailbox: true, aside };
        if let Some(target) = put(replay, lost, owner).await? {
            targets.insert((at, aside), target);
        }
    }
    staging::discard(session, &stages).await?;
    Ok(targets)
}

#[derive(Clone, Copy)]
struct Replay<'a> {
    session: &'a Session,
    plan: &'a Plan,
    id: &'a str,
}

/// An account or mailbox that is to be made.
#[derive(Clone, Copy)]
struct Lost {
    /// Its position among the snapshot's.
    at: usize,
    is_mailbox: bool,
    /// A side folder is.
    aside: bool,
}

/// Inserts the row of a parent unless one of its name is there; `None` when that is not to be used.
async fn put(replay: Replay<'_>, lost: Lost, owner: Option<&Bytes>) -> Result<Option<Target>, ReplayError> {
    let Replay { session, plan, id } = replay;
    let Lost { at: lost, is_mailbox, aside } = lost;
    let (layout, parents) = (&plan.comparison.layout, &plan.comparison.parents);
    let Some(parent) = layout.parent(is_mailbox) else { return Ok(None) };
    let known = if is_mailbox { &parents.mailboxes[lost] } else { &parents.owners[lost] };
    let stage = Stage::Parent { mailbox: is_mailbox };
    let table = &parent.table;
    let key = table.single_key()?;
    // What it is named by is gone.
    if parent.named.iter().any(|(at, _)| known.row[*at].bytes().is_none()) {
        return Ok(None);
    }
    staging::transaction(session, "restoring accounts and mailboxes", async || {
        staging::settings(session, layout).await?;
        // Two responders must not both find the name free.
        session.execute("restoring", "SELECT pg_advisory_xact_lock(hashtextextended('restante parents', 0))").await?;
        let mut row: StagedRow = known.row.iter().map(|value| value.bytes().map(Bytes::copy_from_slice)).collect();
        // A name is its key, or a number drawn at random that is never issued again. What the store fills is.
        let proves = parent.natural.contains(&key) || !aside && parent.evidence.contains(&key);
        let is_own = proves && !table.filled(key);
        if !is_own {
            let Some((new_key, _)) = staging::new_keys(session, table, 1).await?.pop() else { return Ok(None) };
            row[key] = Some(new_key);
        }
        if let (Some(column), Some(owner)) = (parent.owner, owner) {
            row[column] = Some(owner.clone());
        }
        let named = parent.natural.iter().copied().find(|at| Some(*at) != parent.owner);
        if let Some(at) = named.filter(|_| aside) {
            let Some(name) = plan.beside(lost, row[at].as_deref().unwrap_or_default()) else { return Ok(None) };
            row[at] = Some(name.into());
        }
        staging::fill(session, layout, stage, std::slice::from_ref(&row)).await?;

        let mut set: BTreeMap<usize, String> = parent.made.clone();
        if let Some(column) = parent.uidvalidity {
            let ident = table.ident(column);
            // Under its own key it may have been made anew before, with whatever followed the old one.
            let drawn = "1 + floor(random() * 4294967295)::int8".to_owned();
            let next = format!("greatest(s.{ident} + 1, extract(epoch FROM now())::int8)");
            set.insert(column, if is_own { drawn } else { next });
        }
        if aside {
            // A folder of its own, not a copy of the old one: its creation is now.
            for at in &parent.evidence {
                if table.columns[*at].live.as_ref().is_some_and(|live| live.default.is_some()) {
                    set.insert(*at, "DEFAULT".to_owned());
                }
            }
        }
        let omit: Vec<usize> = set.iter().filter(|(_, sql)| *sql == "DEFAULT").map(|(at, _)| *at).chain(parent.derived.clone()).collect();
        let insert = staging::insert(table, &set, &omit);
        let same: Vec<String> = parent
            .natural
            .iter()
            .map(|at| format!("p.{0}::text IS NOT DISTINCT FROM s.{0}::text", table.ident(*at)))
            .collect();
        let same = same.join(" AND ");
        let shown = qualified(parent.live.as_deref().unwrap_or("true"));
        let (stage, live_table) = (stage.name().quoted(), table.quoted());
        // The row of a deleted one may keep its name, or leave it free.
        let sql = format!(
            "INSERT INTO {live_table} ({}){} SELECT {} FROM {stage} s WHERE NOT EXISTS (SELECT FROM {live_table} p WHERE {same} AND ({shown})) \
             ON CONFLICT DO NOTHING",
            insert.columns, insert.overriding, insert.values
        );
        let failed = PostgresError::server("restoring accounts and mailboxes");
        let made = session.client().execute(&sql, &[]).await.map_err(failed)? > 0;
        let mut columns = vec![key];
        columns.extend(&parent.evidence);
        columns.extend(parent.uid);
        let select = format!(
            "SELECT p.{}::text, ({shown}) IS TRUE, {} FROM {live_table} p, {stage} s WHERE {same} AND s.{NUMBER} = 0 ORDER BY 2",
            table.ident(key),
            table.select(&columns, "p"),
        );
        let mut found = None;
        let evidence = parent.evidence.len();
        live::copy(session, "looking for the mailbox", &select, 2 + columns.len(), &mut |row| {
            let keep = |field: &Option<&[u8]>| field.map(Bytes::copy_from_slice);
            let uid = row.get(3 + evidence).copied().flatten();
            let uid = uid.and_then(|bytes| crate::repository::zone::integer(bytes, false)).unwrap_or(0);
            found = Some((
                row[1] == Some(&[1]),
                Target {
                    key_text: String::from_utf8_lossy(row[0].unwrap_or_default()).into_owned(),
                    owner: owner.cloned(),
                    key: keep(&row[2]).unwrap_or_default(),
                    new_from: uid,
                    evidence: row[3..3 + evidence].iter().map(keep).collect(),
                },
            ));
            Ok(())
        })
        .await?;
        let Some((shown, target)) = found else { return Ok(None) };
        // The name may have been taken between the comparison and now: then the next comparison decides.
        if made {
            hang(session, plan, lost, is_mailbox, &target).await?;
        }
        let ours = parent.evidence.iter().zip(&target.evidence).all(|(at, live)| row[*at] == *live);
        if ours && !aside {
            let sql = format!("INSERT INTO {PARENTS} (source, key, replay) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING");
            let made = session.client().execute(&sql, &[&&known.source.0[..], &target.key_text, &id]).await;
            made.map_err(PostgresError::server("writing the journal of replays"))?;
        }
        Ok((shown && (ours || aside)).then_some(target))
    })
    .await
}

/// Puts back what hangs on an account or mailbox that was just made.
async fn hang(session: &Session, plan: &Plan, at: usize, is_mailbox: bool, target: &Target) -> Result<(), ReplayError> {
    let (layout, parents) = (&plan.comparison.layout, &plan.comparison.parents);
    let Some(parent) = layout.parent(is_mailbox) else { return Ok(()) };
    let known = if is_mailbox { &parents.mailboxes[at] } else { &parents.owners[at] };
    for (kind, child) in parent.children.iter().enumerate() {
        let mut rows: Vec<StagedRow> = Vec::with_capacity(known.children[kind].len());
        for row in &known.children[kind] {
            let mut row: StagedRow = row.iter().map(|value| value.bytes().map(Bytes::copy_from_slice)).collect();
            lead_to_parents(parents, &child.refers, is_mailbox.then_some((at, target)), &mut row);
            row[child.of[0]] = Some(target.key.clone());
            rows.push(row);
        }
        let stage = Stage::Hanging { mailbox: is_mailbox, kind };
        staging::fill(session, layout, stage, &rows).await?;
        let insert = staging::insert(&child.table, &child.set, &child.issued);
        // What another one has by now stays his.
        let insert = staging::Insert { conflict: " ON CONFLICT DO NOTHING", ..insert };
        let doing = "restoring what belongs to accounts and mailboxes";
        insert.all(session, doing, &child.table, stage, "true").await?;
    }
    Ok(())
}

/// A predicate over the row's columns, where two tables have them.
fn qualified(predicate: &str) -> String {
    format!("SELECT {predicate} FROM (SELECT p.*) q")
}
