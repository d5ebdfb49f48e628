//! Cuts a value at its large MIME parts, so that an attachment is stored once, whoever else received it.
//!
//! Cutting at parts is what decides how small a repository gets: 24–32 % less than content-defined chunking, which then
//! gains nothing on top (`docs/performance.md`). The snapshot stores each cut as a part of its own, in pieces of
//! [`PIECE_BYTES`](super::base64::PIECE_BYTES), and what lies between the cuts with the small values. The cuts are a proposal: a recipe
//! is right wherever it cuts, so a mistake here costs space and never a byte of mail. For the same reason the value need not be
//! mail; what is not, has no cuts, except a value that is wrapped base64 as a whole: stores that keep
//! attachments apart from their messages often keep them as they were sent.

use std::ops::Range;

use super::base64::Base64Form;
use super::mime::{self, TransferEncoding};

/// A shorter body stays with the rest of the message: grouped small text compresses better than it would alone.
pub const SMALLEST_PART: usize = 16 << 10;

/// The body of one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    pub range: Range<usize>,
    pub kind: CutKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutKind {
    /// Stored as it is.
    Identity,
    /// Stored decoded: with this form it decodes and encodes again to the very same bytes.
    Base64(Base64Form),
}

/// The bodies of at least [`SMALLEST_PART`] bytes in a raw message, ascending and without overlap.
///
/// A base64 body is cut without the empty lines around it, which its form could not reproduce.
pub fn cuts(value: &[u8]) -> Vec<Cut> {
    if value.len() < SMALLEST_PART {
        return Vec::new();
    }
    let Some(structure) = mime::structure(value) else {
        // One line alone is not enough to go by: digits and names are base64 too.
        return base64_text(value, 0..value.len())
            .filter(|cut| matches!(cut.kind, CutKind::Base64(form) if form.line_length > 0))
            .into_iter()
            .collect();
    };
    let large = structure.leaves.into_iter().filter(|leaf| leaf.body.len() >= SMALLEST_PART);
    large
        .map(|leaf| {
            let decoded = match leaf.encoding {
                TransferEncoding::Base64 => base64_text(value, leaf.body.clone()),
                _ => None,
            };
            decoded.unwrap_or(Cut { range: leaf.body, kind: CutKind::Identity })
        })
        .collect()
}

/// The base64 text in a body, if there is enough of it and it has a form.
fn base64_text(value: &[u8], body: Range<usize>) -> Option<Cut> {
    let is_text = |byte: &u8| !matches!(byte, b'\r' | b'\n');
    let start = body.start + value[body.clone()].iter().position(is_text)?;
    let mut end = body.start + value[body.clone()].iter().rposition(is_text)? + 1;
    if end - start < SMALLEST_PART {
        return None;
    }
    let mut form = Base64Form::detect(&value[start..end])?;
    let ending = form.line_ending.bytes();
    if form.line_length > 0 && value[end..body.end].starts_with(ending) {
        form.final_line_ending = true;
        end += ending.len();
    }
    Some(Cut { range: start..end, kind: CutKind::Base64(form) })
}

#[cfg(test)]
mod tests {
    use super::super::base64::LineEnding;
    use super::super::corpus::Corpus;
    use super::*;
    use proptest::prelude::*;

    const FORM: Base64Form = Base64Form { line_length: 76, line_ending: LineEnding::CrLf, final_line_ending: false };

    /// Takes the value apart at its cuts and puts it together again as a recipe does.
    fn reassembled(value: &[u8]) -> Vec<u8> {
        let mut written = Vec::new();
        for cut in cuts(value) {
            assert!(cut.range.start >= written.len(), "cuts ascend and do not overlap");
            written.extend_from_slice(&value[written.len()..cut.range.start]);
            match cut.kind {
                CutKind::Identity => written.extend_from_slice(&value[cut.range]),
                CutKind::Base64(form) => {
                    for piece in form.pieces(cut.range) {
                        let mut decoded = Vec::new();
                        piece.form.decode_into(&value[piece.text], &mut decoded).expect("what was cut decodes");
                        piece.form.encode_into(&decoded, &mut written);
                    }
                }
            }
        }
        written.extend_from_slice(&value[written.len()..]);
        written
    }

    fn message(parts: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = b"Subject: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n".to_vec();
        for (encoding, body) in parts {
            out.extend_from_slice(format!("--b\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n").as_bytes());
            out.extend_from_slice(body);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"--b--\r\n");
        out
    }

    fn encoded(decoded: &[u8], form: Base64Form) -> Vec<u8> {
        let mut text = Vec::new();
        form.encode_into(decoded, &mut text);
        text
    }

    #[test]
    fn only_large_parts_are_cut_and_base64_is_decoded() {
        let attachment = vec![7u8; 20_000];
        let text = encoded(&attachment, FORM);
        let value = message(&[("7bit", b"small"), ("base64", &text), ("8bit", &[b'x'; 17_000]), ("BASE64", b"QUJD")]);
        let found = cuts(&value);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].kind, CutKind::Base64(FORM));
        assert_eq!(&value[found[0].range.clone()], text);
        assert_eq!(found[1].kind, CutKind::Identity);
        assert_eq!(found[1].range.len(), 17_000);
        assert_eq!(reassembled(&value), value);
    }

    #[test]
    fn empty_lines_around_a_base64_body_do_not_spoil_it() {
        let mut body = b"\r\n".to_vec();
        body.extend(encoded(&[1; 20_000], FORM));
        body.extend(b"\r\n\r\n\r\n");
        let value = message(&[("base64", &body)]);
        assert_eq!(cuts(&value)[0].kind, CutKind::Base64(Base64Form { final_line_ending: true, ..FORM }));
        assert_eq!(reassembled(&value), value);
    }

    #[test]
    fn damaged_base64_is_kept_as_it_is() {
        let whole = encoded(&[200; 30_000], FORM);
        let damages: [fn(&mut Vec<u8>); 4] = [
            |text| text.insert(100, b' '),
            |text| text[1_000] = b'*',
            |text| drop(text.drain(780..784)),
            |text| text.extend(b"\r\n-- \r\nyour list"),
        ];
        for damage in damages {
            let mut text = whole.clone();
            damage(&mut text);
            let value = message(&[("base64", &text)]);
            assert_eq!(cuts(&value), [Cut { range: cuts(&value)[0].range.clone(), kind: CutKind::Identity }]);
            assert_eq!(&value[cuts(&value)[0].range.clone()], text);
        }
    }

    #[test]
    fn an_attachment_that_is_a_value_of_its_own_is_decoded() {
        let text = encoded(&[3; 30_000], Base64Form { final_line_ending: true, ..FORM });
        assert_eq!(
            cuts(&text),
            [Cut { range: 0..text.len(), kind: CutKind::Base64(Base64Form { final_line_ending: true, ..FORM }) }]
        );
        assert!(cuts(&[b'7'; 40_000]).is_empty(), "a long number is not an attachment");
    }

    proptest! {
        #[test]
        fn cuts_and_gaps_are_the_value(
            head in prop_oneof![Just("Subject: x\nContent-Type: multipart/mixed; boundary=b\n\n"), Just("\0\u{1}"), Just("")],
            parts in prop::collection::vec((
                prop_oneof![Just("base64"), Just("quoted-printable"), Just("")],
                0usize..40_000, 0u16..100, any::<bool>(), any::<bool>(), prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
            ), 0..4),
        ) {
            let mut value = head.as_bytes().to_vec();
            for (encoding, length, line_length, crlf, final_line_ending, damage) in parts {
                value.extend(format!("\n--b\ncontent-transfer-encoding:\t{encoding}\n\n").bytes());
                let line_ending = if crlf { LineEnding::CrLf } else { LineEnding::Lf };
                let mut text = encoded(&vec![9; length], Base64Form { line_length, line_ending, final_line_ending });
                if let (Some((at, byte)), false) = (damage, text.is_empty()) {
                    let at = at.index(text.len());
                    text[at] = byte;
                }
                value.extend(text);
            }
            prop_assert!(reassembled(&value) == value);
        }
    }

    #[test]
    fn every_message_of_a_real_corpus_survives() {
        let Some(corpus) = Corpus::open() else { return };
        let (mut messages, mut parts, mut decoded) = (0, 0, 0);
        for message in corpus.messages() {
            assert!(reassembled(message) == message, "message {messages}");
            assert!(
                mime::structure(message).is_some_and(|structure| !structure.leaves.is_empty()),
                "message {messages}"
            );
            messages += 1;
            for cut in cuts(message) {
                parts += 1;
                decoded += usize::from(matches!(cut.kind, CutKind::Base64(_)));
            }
        }
        println!("{messages} messages, {parts} large parts, {decoded} of them base64");
        assert!(messages > 6_000 && parts > 100 && decoded > 10);
    }
}
