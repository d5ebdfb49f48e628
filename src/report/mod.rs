//! A comparison, and what a replay made of it, as one HTML file: no script, no other file, to be attached to a ticket.
//!
//! Names of accounts and mailboxes are hostile text; `maud` escapes them, and control characters are shown as their numbers. Used by
//! `cli` alone.

pub mod inert;

use maud::{DOCTYPE, Markup, PreEscaped, html as markup};

use crate::compare::report::{GapReport, Hour};
use crate::restore::ReplayReport;
use inert::inert;

/// The whole page.
pub fn html(gap: &GapReport, replay: Option<&ReplayReport>) -> String {
    let style = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}\
        table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}\
        td:first-child,th:first-child,td.t,th.t{text-align:left;overflow-wrap:anywhere;max-width:24em}";
    let page = markup! {
        (DOCTYPE)
        html lang="en" {
            head { meta charset="utf-8"; meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"; title { "Restante: the gap" } style { (PreEscaped(style)) } }
            body {
                h1 { "What was lost" @if replay.is_some() { ", and put back" } }
                p { "Snapshot " code { (gap.snapshot) } " of " (inert(&gap.database)) ", taken " (gap.taken) "." }
                (numbers(gap))
                @if !gap.hours.is_empty() { h2 { "By hour" } (timeline(&gap.hours)) }
                h2 { "By mailbox" }
                table {
                    tr { th { "account" } th.t { "mailbox" } th { "lost" } th { "cannot tell" } th { "deleted by the user" } th { "arrived again" } th { "orphans" } th { "beyond the snapshot" } }
                    @for one in &gap.mailboxes {
                        tr { td { (inert(&one.account)) } td.t { (inert(&one.mailbox)) } td { (one.lost) } td { (one.cannot_tell) } td { (one.deleted_by_user) } td { (one.duplicate) } td { (one.orphan) } td { (one.beyond) } }
                    }
                }
                h2 { "What decided" }
                table { @for (reason, count) in &gap.reasons { tr { td { (reason) } td { (count) } } } }
                @if let Some(replay) = replay { (replayed(replay)) }
            }
        }
    };
    page.into_string()
}

fn numbers(gap: &GapReport) -> Markup {
    markup! {
        table {
            tr { td { "lost" } td { (gap.lost) } }
            tr { td { "alive, but parts are gone" } td { (gap.incomplete) } }
            tr { td { "beyond the snapshot" } td { (gap.beyond) } }
            @for (class, count) in &gap.classes { tr { td { (format!("{class:?}")) } td { (count) } } }
            tr { td { "the same" } td { (gap.same) } }
            tr { td { "changed since" } td { (gap.changed) } }
            @if gap.not_compared > 0 {
                tr { td { "outside the window, alive as far as counting tells" } td { (gap.not_compared) } }
            }
            tr { td { "mailboxes with low counters" } td { (gap.low_mailboxes) } }
            tr { td { "mailboxes in which a UID was issued twice" } td { (gap.collisions) } }
        }
    }
}

fn replayed(replay: &ReplayReport) -> Markup {
    markup! {
        h2 { "Put back" }
        table {
            tr { td { "replay" } td { (replay.replay.as_deref().unwrap_or("nothing to do")) } }
            tr { td { "messages" } td { (replay.mail.restored) } }
            tr { td { "completed" } td { (replay.repaired_messages) } }
            tr { td { "arrived again meanwhile" } td { (replay.mail.arrived_meanwhile) } }
            tr { td { "by another replay" } td { (replay.mail.by_another) } }
            tr { td { "without a mailbox" } td { (replay.mail.no_mailbox) } }
            tr { td { "place taken by another mail" } td { (replay.mail.place_taken) } }
            tr { td { "outside the window" } td { (replay.outside) } }
            tr { td { "left out" } td { (replay.left_out) } }
        }
    }
}

/// Bars of the hours that lost something, as wide as there is room.
fn timeline(hours: &[Hour]) -> Markup {
    let (width, height) = (900_u64, 160_u64);
    let first = hours.first().map_or(0, |hour| hour.hour.as_second());
    let span = hours.last().map_or(0, |hour| hour.hour.as_second() - first) / 3600 + 1;
    let most = hours.iter().map(|hour| hour.lost + hour.cannot_tell).max().unwrap_or(1).max(1);
    let bar = (width as f64 / span as f64).max(1.0);
    let place = |hour: &Hour| ((hour.hour.as_second() - first) / 3600) as f64 * width as f64 / span as f64;
    let tall = |count: u64| count as f64 * height as f64 / most as f64;
    markup! {
        svg viewBox=(format!("0 0 {width} {}", height + 20)) width="100%" role="img" aria-label="lost mail by hour" {
            @for hour in hours {
                rect x=(place(hour)) y=(height as f64 - tall(hour.lost)) width=(bar) height=(tall(hour.lost)) fill="#b3261e" {
                    title { (hour.hour) ": " (hour.lost) " lost" }
                }
                rect x=(place(hour)) y=(height as f64 - tall(hour.lost + hour.cannot_tell)) width=(bar) height=(tall(hour.cannot_tell)) fill="#c9a227" {
                    title { (hour.hour) ": " (hour.cannot_tell) " cannot be told" }
                }
            }
            @if let (Some(first), Some(last)) = (hours.first(), hours.last()) {
                text x="0" y=(height + 15) font-size="12" { (first.hour) }
                text x=(width) y=(height + 15) font-size="12" text-anchor="end" { (last.hour) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::MailboxGap;

    #[test]
    fn a_hostile_name_is_inert_in_the_page() {
        let hour = Hour { hour: jiff::Timestamp::UNIX_EPOCH, lost: 2, cannot_tell: 1 };
        let name = "<script>alert(1)</script>\"'\u{1b}[31m\u{202e}".to_owned();
        let gap = GapReport {
            snapshot: "00".into(),
            taken: jiff::Timestamp::UNIX_EPOCH,
            database: name.clone(),
            same: 0,
            changed: 0,
            not_compared: 0,
            lost: 2,
            lost_from: None,
            lost_to: None,
            lost_without_time: 0,
            incomplete: 0,
            beyond: 0,
            classes: Default::default(),
            reasons: Default::default(),
            same_id_other_mail: 0,
            hours: vec![hour],
            mailboxes: vec![MailboxGap { account: name.clone(), mailbox: name, lost: 2, ..Default::default() }],
            lost_accounts: Vec::new(),
            lost_mailboxes: 0,
            sequences: Vec::new(),
            low_mailboxes: 0,
            collisions: 0,
            triggers: Vec::new(),
        };
        let page = html(&gap, Some(&ReplayReport::default()));
        assert!(!page.contains("<script") && !page.contains('\u{1b}') && !page.contains('\u{202e}'), "{page}");
        assert!(page.contains("&lt;script&gt;") && page.contains("<svg"));
    }
}
