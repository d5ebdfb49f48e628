//! What the values of a column look like: mail, addresses, Message-IDs, mailbox names, times in seconds. Standards of mail decide, never what a
//! store calls its columns.

use std::collections::HashSet;

use super::description::{Table, Value};

/// Of the values of a column that were seen.
#[derive(Debug, Default, Clone)]
pub struct Features {
    /// Values that are not NULL.
    pub values: usize,
    pub nulls: usize,
    pub distinct: usize,
    pub least: i64,
    pub most: i64,
    pub longest: u64,
    /// All values have this length, in bytes.
    pub length: Option<u64>,
    /// Shares of the values whose beginning is known, 0 to 1.
    pub mail: f64,
    /// Mail of which nothing follows the header.
    pub header_only: f64,
    pub address: f64,
    pub message_id: f64,
    pub mailbox_name: f64,
    pub keyword: f64,
    pub hash: f64,
}

impl Features {
    pub fn of(table: &Table, column: usize) -> Self {
        let mut found = Self { least: i64::MAX, most: i64::MIN, ..Self::default() };
        let mut prints = HashSet::new();
        let mut lengths = HashSet::new();
        let (mut seen, mut counts) = (0usize, [0usize; 7]);
        for value in table.sample.iter().filter_map(|row| row.get(column)) {
            let Some(print) = value.print() else {
                found.nulls += 1;
                continue;
            };
            found.values += 1;
            prints.insert(print);
            match value {
                Value::Number(number) => {
                    (found.least, found.most) = (found.least.min(*number), found.most.max(*number));
                }
                Value::Bytes { length, start, .. } => {
                    lengths.insert(*length);
                    found.longest = found.longest.max(*length);
                    if start.is_empty() {
                        continue;
                    }
                    seen += 1;
                    let header = header_end(start);
                    let only = header.is_some_and(|end| end.is_none_or(|end| end as u64 >= *length));
                    let is = [
                        header.is_some(),
                        only && (*length as usize <= start.len()),
                        is_address(start),
                        is_message_id(start),
                        is_mailbox_name(start),
                        is_keyword(start),
                        is_hash(start, *length),
                    ];
                    counts.iter_mut().zip(is).for_each(|(count, is)| *count += usize::from(is));
                }
                Value::Null => {}
            }
        }
        found.distinct = prints.len();
        found.length = (lengths.len() == 1).then(|| lengths.into_iter().next().unwrap_or_default());
        let share = |count: usize| if seen == 0 { 0.0 } else { count as f64 / seen as f64 };
        [
            found.mail,
            found.header_only,
            found.address,
            found.message_id,
            found.mailbox_name,
            found.keyword,
            found.hash,
        ] = counts.map(share);
        found
    }

    pub fn is_mostly_null(&self) -> bool {
        self.nulls > self.values
    }

    /// Seconds since 1970 between 1990 and 2100.
    pub fn is_epoch(&self) -> bool {
        self.distinct > 1 && self.least >= 631_152_000 && self.most < 4_102_444_800
    }

    /// No two of the values are the same.
    pub fn is_distinct(&self) -> bool {
        self.values > 1 && self.distinct == self.values
    }
}

/// Fields that nearly every mail has one of (RFC 5322, section 3.6), and those that servers put in front.
const FIELDS: [&str; 14] = [
    "received",
    "return-path",
    "from",
    "to",
    "date",
    "subject",
    "message-id",
    "mime-version",
    "content-type",
    "sender",
    "reply-to",
    "cc",
    "delivered-to",
    "references",
];

/// Where the header of a mail ends, blank line included; the inner `None` when that is not in sight. The outer `None`: it is no mail.
fn header_end(start: &[u8]) -> Option<Option<usize>> {
    let (mut at, mut known, mut fields) = (0, 0, 0);
    while at < start.len() {
        let end = memchr::memchr(b'\n', &start[at..]).map(|end| at + end);
        let line = &start[at..end.unwrap_or(start.len())];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(end) = end else {
            // The last line was cut off, or is the last.
            break;
        };
        if line.is_empty() {
            return (known >= 2).then_some(Some(end + 1));
        }
        if !matches!(line[0], b' ' | b'\t') {
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            if name.len() == line.len() || name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
                return None;
            }
            fields += 1;
            known += usize::from(FIELDS.iter().any(|field| field.as_bytes().eq_ignore_ascii_case(name)));
        } else if fields == 0 {
            return None;
        }
        at = end + 1;
    }
    (known >= 2).then_some(None)
}

/// The value of a header field, without folding.
pub fn field<'a>(start: &'a [u8], name: &str) -> Option<&'a str> {
    let line = start.split(|byte| *byte == b'\n').take_while(|line| !matches!(line, [] | [b'\r'])).find(|line| {
        line.len() > name.len() && line[name.len()] == b':' && line[..name.len()].eq_ignore_ascii_case(name.as_bytes())
    })?;
    Some(std::str::from_utf8(&line[name.len() + 1..]).ok()?.trim())
}

fn is_address(text: &[u8]) -> bool {
    let Some(at) = memchr::memchr(b'@', text) else { return false };
    let plain = |part: &[u8]| {
        !part.is_empty() && part.iter().all(|byte| byte.is_ascii_graphic() && !b"<>@,;:\"()".contains(byte))
    };
    plain(&text[..at]) && plain(&text[at + 1..]) && text.len() <= 320
}

fn is_message_id(text: &[u8]) -> bool {
    let text = text.trim_ascii();
    text.len() > 4 && text.starts_with(b"<") && text.ends_with(b">") && is_address(&text[1..text.len() - 1])
}

/// Names that IMAP gives (RFC 9051, section 5.1) or that every client makes (RFC 6154).
fn is_mailbox_name(text: &[u8]) -> bool {
    ["inbox", "sent", "drafts", "trash", "junk", "archive", "spam"]
        .iter()
        .any(|name| name.as_bytes().eq_ignore_ascii_case(text))
}

/// Keywords of IMAP and JMAP.
fn is_keyword(text: &[u8]) -> bool {
    text.len() > 1 && text.len() < 64 && matches!(text[0], b'$' | b'\\') && text[1..].iter().all(u8::is_ascii_graphic)
}

fn is_hash(start: &[u8], length: u64) -> bool {
    let text = start.trim_ascii_end();
    let hex = matches!(text.len(), 32 | 40 | 56 | 64 | 96 | 128) && text.iter().all(u8::is_ascii_hexdigit);
    hex || (matches!(length, 16 | 20 | 28 | 32 | 48 | 64)
        && !start.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' '))
}

/// The words of a name: `uidNext`, `uid_next` and `UID-NEXT` have the same.
pub fn words(name: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let mut before = ' ';
    for c in name.chars() {
        let turns = c.is_uppercase() && before.is_lowercase();
        if !c.is_alphanumeric() || turns {
            words.push(std::mem::take(&mut word));
        }
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        }
        before = c;
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

/// Is one of the words, or its plural, in the name? A word that ends with `*` is a beginning, one that begins with it an end.
pub fn says(name: &str, any: &[&str]) -> bool {
    let words = words(name);
    let joined = words.concat();
    any.iter().any(|wanted| {
        if let Some(beginning) = wanted.strip_suffix('*') {
            return words.iter().any(|word| word.starts_with(beginning));
        }
        if let Some(end) = wanted.strip_prefix('*') {
            return words.iter().any(|word| word.ends_with(end));
        }
        let is = |word: &String| {
            word == wanted || word.strip_suffix('s') == Some(wanted) || word.strip_suffix("es") == Some(wanted)
        };
        words.iter().any(is) || is(&joined)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_is_known_by_its_header() {
        let mail = b"Received: from a\r\n\tby b\r\nFrom: a@example.org\r\nSubject: x\r\n\r\ntext";
        assert_eq!(header_end(mail), Some(Some(mail.len() - 4)));
        assert_eq!(header_end(b"From: a\nDate: b\n"), Some(None));
        for other in [
            &b"{\"from\": 1}"[..],
            b"From here to there\nDate: x\n",
            b"From: a\n\n",
            b"",
            b"\0\x01",
            b" x\nFrom: a\nTo: b\n\n",
        ] {
            assert_eq!(header_end(other), None, "{other:?}");
        }
        assert_eq!(field(mail, "subject"), Some("x"));
        assert_eq!(field(b"A: b\r\n\r\nSubject: not in the header", "subject"), None);
    }

    #[test]
    fn values_of_mail_are_told_from_others() {
        assert!(is_message_id(b" <1@example.org> ") && !is_message_id(b"1@example.org") && !is_message_id(b"<a b@c>"));
        assert!(is_address(b"a.b+c@example.org") && !is_address(b"a b@example.org") && !is_address(b"@x"));
        assert!(is_mailbox_name(b"Inbox") && !is_mailbox_name(b"Invoices"));
        assert!(is_keyword(b"$Junk") && is_keyword(b"\\Seen") && !is_keyword(b"$") && !is_keyword(b"$ 5"));
        assert!(is_hash(&[b'a'; 64], 64) && is_hash(&[200; 32], 32) && !is_hash(b"0123456789abcdef", 16));
    }

    #[test]
    fn words_of_names() {
        assert_eq!(words("uidNext_ofBox-7"), ["uid", "next", "of", "box", "7"]);
        assert!(says("MessageID", &["messageid"]) && says("message_id", &["messageid"]) && says("boxes", &["box"]));
        assert!(says("ARRIVAL_TIME", &["arriv*"]) && says("mailinglist", &["*list"]) && !says("listing", &["*list"]));
    }
}
