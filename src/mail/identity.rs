//! What makes two mails the same.
//!
//! The surrogate key of a row never does, and Message-ID alone never does: keys are issued again after a loss, and some
//! programs put one Message-ID on all their mail. Instead two mails climb down a ladder ([`Rung`]); the first rung that holds
//! decides, and reports name it. In doubt two mails are *not* the same: a mail that was restored twice can be undone, one that was
//! taken for another is lost.
//!
//! What does not begin like mail (bodies that the store encrypted, broken values) is opaque and ends on the first rung. Encrypted
//! MIME (PGP, S/MIME) needs no rule of its own: its ciphertext is a part like any other, and equal ciphertext is proof.
//!
//! Digests are plain BLAKE3, because they live in memory only; never store or log one, an unkeyed hash confirms guesses.
//! Used by `compare`, through [`super::matching`] where whole sets are compared.

use std::fmt;

use mail_parser::{Address, HeaderName, Message, MessageParser};

use super::{mime, parts};

/// Of something in or about a mail. Opaque on purpose, also in debug output.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash.into())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(…)")
    }
}

/// All that is needed to tell whether two mails are the same, in about 130 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    pub(super) stored: Digest,
    /// `None` for an opaque body.
    pub(super) mail: Option<Mail>,
}

/// What only a body that begins like mail has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mail {
    /// Of the bytes without what servers stamp on top and mailboxes write into the header.
    pub without_trace: Digest,
    pub parts: Digest,
    pub origin: Origin,
}

/// What tells mails with equal parts apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    MessageId(Digest),
    /// Of From, Date and Subject, when the mail has no Message-ID. The size need not be compared: equal parts have equal sizes.
    Headers(Digest),
    /// Neither a Message-ID nor both From and Date: too little to go by.
    Unknown,
}

/// Why two mails are the same. The order is from the strongest reason to the weakest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// The stored bytes are equal.
    StoredBytes,
    /// Equal but for the trace fields that servers stamp on top and the marks that mailboxes and clients leave.
    WithoutTrace,
    /// The Message-ID is equal, and so are the decoded parts.
    SameIdSameParts,
    /// Neither has a Message-ID; From, Date, Subject and the decoded parts are equal.
    NoIdSameHeadersAndParts,
}

/// The outcome of comparing two mails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Same(Rung),
    /// Another mail under the same Message-ID: a copy with a list footer, a re-used id, a forgery. Reports say so.
    SameIdDifferentParts,
    Different,
}

impl Fingerprint {
    /// Of the raw bytes of a mail, as the store would hand them out.
    pub fn of(raw: &[u8]) -> Self {
        let mail = mime::structure(raw).map(|structure| Mail {
            without_trace: without_trace(raw, structure.header.end),
            parts: parts::digest(raw, &structure),
            origin: Origin::of(&raw[structure.header.clone()]),
        });
        Self { stored: blake3::hash(raw).into(), mail }
    }

    /// Of a mail of which the store keeps the parts alone; the first one is its header.
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        // Each with its length, so that none can pass for the end of another.
        let put = |parts: &[&[u8]]| {
            parts.iter().flat_map(|part| [&(part.len() as u64).to_le_bytes(), *part].concat()).collect::<Vec<u8>>()
        };
        let stored = blake3::hash(&put(parts)).into();
        let [header, rest @ ..] = parts else { return Self { stored, mail: None } };
        // With one part behind its header the mail is whole again; what stood between several is gone.
        let raw = [header.trim_ascii_end(), b"\r\n\r\n", &rest.concat()].concat();
        let mail = mime::structure(&raw).map(|structure| Mail {
            without_trace: without_trace(&[header, &put(rest)[..]].concat(), header.len()),
            parts: match rest {
                [_] => parts::digest(&raw, &structure),
                _ => blake3::hash(&put(rest)).into(),
            },
            origin: Origin::of(&raw[structure.header.clone()]),
        });
        Self { stored, mail }
    }

    /// Of what is no mail, or may look like one and is none: only equal bytes prove anything.
    pub fn opaque(bytes: &[u8]) -> Self {
        Self { stored: blake3::hash(bytes).into(), mail: None }
    }

    /// The body does not begin like mail: only equal bytes prove anything.
    pub fn is_opaque(&self) -> bool {
        self.mail.is_none()
    }

    pub fn has_message_id(&self) -> bool {
        matches!(self.mail, Some(Mail { origin: Origin::MessageId(_), .. }))
    }
}

/// Are these the same mail, and why?
pub fn same_mail(a: &Fingerprint, b: &Fingerprint) -> Option<Rung> {
    match verdict(a, b) {
        Verdict::Same(rung) => Some(rung),
        Verdict::SameIdDifferentParts | Verdict::Different => None,
    }
}

/// As [`same_mail`], and tells another mail under the same Message-ID from any other mail.
pub fn verdict(a: &Fingerprint, b: &Fingerprint) -> Verdict {
    if a.stored == b.stored {
        return Verdict::Same(Rung::StoredBytes);
    }
    let (Some(a), Some(b)) = (&a.mail, &b.mail) else { return Verdict::Different };
    if a.without_trace == b.without_trace {
        return Verdict::Same(Rung::WithoutTrace);
    }
    match (a.origin, b.origin) {
        (Origin::MessageId(x), Origin::MessageId(y)) if x == y => {
            if a.parts == b.parts {
                Verdict::Same(Rung::SameIdSameParts)
            } else {
                Verdict::SameIdDifferentParts
            }
        }
        (Origin::Headers(x), Origin::Headers(y)) if x == y && a.parts == b.parts => {
            Verdict::Same(Rung::NoIdSameHeadersAndParts)
        }
        _ => Verdict::Different,
    }
}

impl Origin {
    fn of(header: &[u8]) -> Self {
        let Some(header) = MessageParser::default().parse_headers(header) else { return Self::Unknown };
        // Without its brackets and blanks, since a long one may have been folded; the case stays, for the left side may tell
        // cases apart (RFC 5322 §3.6.4).
        let id = header.message_id().unwrap_or_default().split_ascii_whitespace().collect::<String>();
        if !id.is_empty() {
            return Self::MessageId(blake3::hash(id.as_bytes()).into());
        }
        // A field that is there but empty or broken must not pass for one that is missing.
        if header.header(HeaderName::MessageId).is_some() {
            return Self::Unknown;
        }
        Self::from_headers(&header).unwrap_or(Self::Unknown)
    }

    fn from_headers(header: &Message<'_>) -> Option<Self> {
        let mut hasher = blake3::Hasher::new();
        let mut field = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        field(&header.date()?.to_rfc3339());
        let mut senders = addresses(header.from()?).peekable();
        senders.peek()?;
        for address in senders {
            field(address);
        }
        field("");
        field(header.subject().unwrap_or_default().trim());
        Some(Self::Headers(hasher.finalize().into()))
    }
}

/// The bare addresses; display names are re-coded on the way.
fn addresses<'a>(from: &'a Address<'_>) -> impl Iterator<Item = &'a str> {
    from.iter().filter_map(|sender| sender.address.as_deref()).filter(|address| !address.is_empty())
}

/// Stamped above the mail by each server that it passes (RFC 5321 §4.4, RFC 7208 §9.1, RFC 8601 §4.1), or by common
/// delivery agents. They count as trace only in the unbroken block at the top: below the first other field they were there when
/// the mail was handed over, and are part of it. Signatures (DKIM, ARC) and the verdicts of spam filters are no trace: where they
/// differ, the Message-ID and the parts decide.
const STAMPS: [&str; 11] = [
    "return-path",
    "received",
    "x-received",
    "received-spf",
    "authentication-results",
    "delivered-to",
    "x-delivered-to",
    "x-original-to",
    "envelope-to",
    "x-envelope-to",
    "x-envelope-from",
];

/// Written into the header by mailbox formats, mail servers and sync tools, wherever it suits them.
const MARKS: [&str; 12] = [
    "status",
    "x-status",
    "x-uid",
    "x-uidl",
    "x-imap",
    "x-imapbase",
    "x-keywords",
    "x-tuid",
    "x-mozilla-status",
    "x-mozilla-status2",
    "x-mozilla-keys",
    "x-evolution",
];

/// Digest of the mail without stamps and marks, and without the `From ` line of an mbox.
fn without_trace(raw: &[u8], header_end: usize) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let mut on_top = true;
    let mut skipping = false;
    for line in raw[..header_end].split_inclusive(|byte| *byte == b'\n') {
        if !matches!(line.first(), Some(b' ' | b'\t')) {
            let name = line.iter().position(|byte| *byte == b':').map_or(line, |colon| &line[..colon]).trim_ascii_end();
            let is_one_of = |names: &[&str]| names.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()));
            let mbox = line.starts_with(b"From ") || line.starts_with(b">From ");
            skipping = is_one_of(&MARKS) || on_top && (mbox || is_one_of(&STAMPS));
            on_top &= skipping;
        }
        if !skipping {
            hasher.update(line);
        }
    }
    hasher.update(&raw[header_end..]);
    Digest::from(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAIL: &str = "Received: by a\r\n\tfor b\r\nReceived: by c\r\nFrom: A <a@example.org>\r\nDate: Mon, 11 Aug 2014 10:00:00 +0200\r\n\
        Subject: Hello\r\nMessage-ID: <1@example.org>\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\nbody\r\n--x--\r\n";

    fn judge(a: &str, b: &str) -> Verdict {
        let (a, b) = (Fingerprint::of(a.as_bytes()), Fingerprint::of(b.as_bytes()));
        assert_eq!(verdict(&a, &b), verdict(&b, &a), "the order does not matter");
        assert_eq!(verdict(&a, &a), Verdict::Same(Rung::StoredBytes));
        verdict(&a, &b)
    }

    #[test]
    fn a_mail_that_was_stamped_again_is_the_same() {
        for other in [
            MAIL.replacen(
                "Received: by a\r\n\tfor b\r\n",
                "Return-Path: <>\r\nDELIVERED-TO: x\r\nReceived: by z\r\n",
                1,
            ),
            MAIL.replacen("Subject: Hello\r\n", "Subject: Hello\r\nX-TUID: abc\r\nStatus: RO\r\n", 1),
            format!("From a@example.org Mon Aug 11\r\n{MAIL}"),
        ] {
            assert_eq!(judge(MAIL, &other), Verdict::Same(Rung::WithoutTrace), "{other}");
        }
    }

    #[test]
    fn a_received_field_below_the_mails_own_fields_is_part_of_it() {
        let below = |by: &str| {
            MAIL.replacen("Subject:", &format!("Received: by {by}\r\nSubject:"), 1).replacen(
                "Message-ID: <1@example.org>\r\n",
                "",
                1,
            )
        };
        let other = below("two").replacen("a@example.org", "b@example.org", 1);
        assert_eq!(judge(&below("one"), &other), Verdict::Different);
        assert_eq!(judge(&below("one"), &below("two")), Verdict::Same(Rung::NoIdSameHeadersAndParts));
    }

    #[test]
    fn a_mail_that_was_wrapped_again_is_the_same() {
        let other = MAIL.replace("boundary=x", "boundary=y").replace("--x", "--y");
        assert_eq!(judge(MAIL, &other), Verdict::Same(Rung::SameIdSameParts));
        assert_eq!(judge(MAIL, &MAIL.replace("\r\n", "\n")), Verdict::Same(Rung::SameIdSameParts));
    }

    #[test]
    fn another_mail_under_the_same_id_is_never_swallowed() {
        for other in [
            MAIL.replacen("body", "body\r\n-- \r\nlist footer", 1),
            MAIL.replacen("body", "quite another body", 1),
            MAIL.replacen("--x--", "--x\r\n\r\nlist footer\r\n--x--", 1),
        ] {
            assert_eq!(judge(MAIL, &other), Verdict::SameIdDifferentParts, "{other}");
        }
    }

    #[test]
    fn without_an_id_sender_date_subject_and_parts_must_all_agree() {
        let bare = MAIL.replacen("Message-ID: <1@example.org>\r\n", "", 1);
        let wrapped = |mail: &str| mail.replace("boundary=x", "boundary=y").replace("--x", "--y");
        assert_eq!(judge(&bare, &wrapped(&bare)), Verdict::Same(Rung::NoIdSameHeadersAndParts));
        for (what, with) in
            [("a@example.org", "b@example.org"), ("10:00:00", "10:00:01"), ("Hello", "Hullo"), ("body", "bodies")]
        {
            assert_eq!(judge(&bare, &wrapped(&bare.replacen(what, with, 1))), Verdict::Different, "{with}");
        }
        for missing in ["From: A <a@example.org>\r\n", "Date: Mon, 11 Aug 2014 10:00:00 +0200\r\n"] {
            let less = bare.replacen(missing, "", 1);
            assert_eq!(judge(&less, &wrapped(&less)), Verdict::Different, "too little to go by without {missing}");
        }
        assert_eq!(judge(MAIL, &wrapped(&bare)), Verdict::Different, "one has an id, the other has not");
    }

    #[test]
    fn parts_behind_a_header_are_compared_as_the_mail_that_they_were() {
        let header = "Received: by a\r\nFrom: a@example.org\r\nMessage-ID: <1@example.org>\r\n";
        let quoted = header.to_owned() + "Content-Transfer-Encoding: quoted-printable\r\n";
        let stamped = header.replacen("by a", "by b", 1);
        let of = |parts: &[&str]| Fingerprint::of_parts(&parts.iter().map(|part| part.as_bytes()).collect::<Vec<_>>());
        for (one, other, wanted) in [
            (vec![header, "body\r\n"], vec![&stamped[..], "body\r\n"], Verdict::Same(Rung::WithoutTrace)),
            (vec![header, "a body\r\n"], vec![&quoted[..], "a=\r\n body\r\n"], Verdict::Same(Rung::SameIdSameParts)),
            (vec![header, "body\r\n"], vec![header, "body\r\n-- \r\nfooter\r\n"], Verdict::SameIdDifferentParts),
            (vec![header, "a", "b"], vec![&stamped[..], "a", "b"], Verdict::Same(Rung::WithoutTrace)),
            (vec![header, "a", "b"], vec![&quoted[..], "a", "b"], Verdict::Same(Rung::SameIdSameParts)),
            (vec![header, "a", "b"], vec![header, "ab"], Verdict::SameIdDifferentParts),
            (vec![header, "a", "bc"], vec![header, "ab", "c"], Verdict::SameIdDifferentParts),
            (vec![header, "a"], vec![header], Verdict::SameIdDifferentParts),
            (vec!["no header", "a"], vec!["no header", "b"], Verdict::Different),
            (vec![], vec![""], Verdict::Different),
        ] {
            assert_eq!(verdict(&of(&one), &of(&other)), wanted, "{one:?} {other:?}");
        }
    }

    #[test]
    fn an_opaque_body_ends_on_its_bytes() {
        assert!(Fingerprint::of(b"\x85\x01\x0c\x03").is_opaque());
        assert_eq!(judge("\u{1}\u{2} ciphertext", "\u{1}\u{2} ciphertext\n"), Verdict::Different);
        assert_eq!(judge("", ""), Verdict::Same(Rung::StoredBytes));
    }

    #[test]
    fn no_digest_and_no_text_of_a_mail_reaches_debug_output() {
        let shown = format!("{:?}", Fingerprint::of(MAIL.as_bytes()));
        assert!(!shown.contains("example") && !shown.contains(char::is_numeric), "{shown}");
    }

    #[test]
    fn every_message_of_a_real_corpus_is_the_same_after_another_stamp_and_with_other_line_ends() {
        let Some(corpus) = super::super::corpus::Corpus::open() else { return };
        let mut without_id = 0;
        for (at, message) in corpus.messages().enumerate() {
            let print = Fingerprint::of(message);
            without_id += usize::from(!print.has_message_id());
            let stamped = Fingerprint::of(&[b"Received: by restante.example\n", message].concat());
            assert_eq!(same_mail(&print, &stamped), Some(Rung::WithoutTrace), "message {at}");
            if print.has_message_id() && !message.contains(&b'\r') {
                let lines = Fingerprint::of(&message.replace_line_feeds());
                assert_eq!(same_mail(&print, &lines), Some(Rung::SameIdSameParts), "message {at}");
            }
        }
        assert!((1..50).contains(&without_id), "{without_id} messages have no Message-ID");
    }

    trait ReplaceLineFeeds {
        fn replace_line_feeds(&self) -> Vec<u8>;
    }

    impl ReplaceLineFeeds for [u8] {
        fn replace_line_feeds(&self) -> Vec<u8> {
            self.split(|byte| *byte == b'\n').collect::<Vec<_>>().join(&b"\r\n"[..])
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_fingerprint(bytes in prop::collection::vec(any::<u8>(), 0..300), head in prop::sample::select(vec!["", "Date: ", "From: ", "Message-ID: ", "Content-Type: ", "Subject: =?", "Content-Type: multipart/mixed; boundary=a\n\n--a\nContent-Transfer-Encoding: quoted-printable\n\n"])) {
            let mut raw = head.as_bytes().to_vec();
            raw.extend(bytes);
            let fingerprint = Fingerprint::of(&raw);
            prop_assert_eq!(same_mail(&fingerprint, &fingerprint), Some(Rung::StoredBytes));
        }
    }
}
