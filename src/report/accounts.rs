//! One line for each account, which support can send to its user as it is: plain words, and nothing that is meant for operators.

use jiff::Timestamp;

use super::inert::inert;
use crate::restore::accounts::AccountReport;
use crate::restore::plan::Left;

/// `planned`: nothing was written yet.
pub fn line(account: &str, report: &AccountReport, planned: bool) -> String {
    let verb = |count: u64, not: &str| match (planned, count) {
        (true, _) => format!("will{not} be put back"),
        (false, 1) => format!("was{not} put back"),
        (false, _) => format!("were{not} put back"),
    };
    let mut line = format!("{}: ", quoted(account));
    match report.messages {
        0 => line += &format!("no message {}", verb(1, "")),
        count => {
            line += &messages(count);
            line += &match (report.from, report.to) {
                (Some(from), Some(to)) if from == to => format!(" of {}", minute(from)),
                (Some(from), Some(to)) => format!(" from {} to {}", minute(from), minute(to)),
                _ => String::new(),
            };
            let folders = report.folders.iter().map(|(name, count)| format!("{} ({count})", quoted(name)));
            line += &format!(" {} into {}", verb(count, ""), folders.collect::<Vec<_>>().join(", "));
        }
    }
    line += ".";
    for (why, count) in &report.not_restored {
        let verb = verb(*count, " not");
        let why = match why {
            Left::Outside => "not part of this restore",
            Left::CannotTell => "possibly deleted by you",
            Left::FolderDeleted => "in a folder that was deleted",
            Left::PlaceTaken => "in whose place another message is by now",
            Left::NoFolder => "in a folder that is not there any more",
        };
        line += &format!(" {} {verb}: {why}.", messages(*count));
    }
    if report.over_quota {
        line += " The account holds more than its quota now: new mail may be refused until some is deleted.";
    }
    line
}

fn messages(count: u64) -> String {
    if count == 1 { "1 message".to_owned() } else { format!("{count} messages") }
}

/// A name that cannot pass for words of ours.
fn quoted(name: &str) -> String {
    format!("\"{}\"", inert(name).replace('"', "\\\""))
}

fn minute(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_many_from_when_to_when_where_and_what_is_missing_and_why() {
        let at = |text: &str| Some(text.parse().unwrap());
        let mut report = AccountReport {
            messages: 3,
            from: at("2014-08-10T14:00:00Z"),
            to: at("2014-08-11T09:59:59Z"),
            folders: [("Archive".to_owned(), 1), ("INBOX".to_owned(), 2)].into(),
            not_restored: [(Left::CannotTell, 1), (Left::FolderDeleted, 2)].into(),
            over_quota: true,
        };
        assert_eq!(
            line("a@example.org", &report, false),
            "\"a@example.org\": 3 messages from 2014-08-10 14:00 UTC to 2014-08-11 09:59 UTC were put back into \"Archive\" (1), \"INBOX\" (2). \
             1 message was not put back: possibly deleted by you. 2 messages were not put back: in a folder that was deleted. \
             The account holds more than its quota now: new mail may be refused until some is deleted."
        );
        report.messages = 0;
        report.over_quota = false;
        report.not_restored.clear();
        assert_eq!(line("a@example.org", &report, true), "\"a@example.org\": no message will be put back.");
    }

    #[test]
    fn a_name_is_one_inert_word() {
        let report = AccountReport {
            messages: 1,
            folders: [("\"; 9 messages\n\u{1b}[31m".to_owned(), 1)].into(),
            ..Default::default()
        };
        let line = line("\u{202e}a\"", &report, false);
        assert_eq!(line, "\"\\u{202e}a\\\"\": 1 message was put back into \"\\\"; 9 messages\\n\\u{1b}[31m\" (1).");
    }
}
