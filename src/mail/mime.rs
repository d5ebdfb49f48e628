//! Finds the leaves of a raw message: which bytes are the body of which part.
//!
//! One walk over the bytes, without decoding and nearly without allocation, because every value of a store goes through it
//! on the way into the repository: header blocks are read line by line, bodies are skipped with one search for `\n--`, which
//! base64 never contains. Delimiters are looked up in the stack of open boundaries from the innermost outwards
//! (RFC 2046 §5.1), so a part that was never closed ends where its parent goes on. `message/rfc822` parts are walked
//! into; the header block of the inner message is a leaf of its own.
//!
//! Broken mail is met with leniency: what cannot be understood is one leaf. Used by [`super::cut`] and by
//! [`super::parts`].

use std::ops::Range;

use memchr::memmem;

/// Deeper multiparts are taken as one leaf. Real mail has 3 or 4 levels.
const DEEPEST: usize = 64;

/// RFC 2046 allows 70 characters; some writers do not count.
const LONGEST_BOUNDARY: usize = 250;

/// A first line that is longer is no header field (RFC 5322 §2.1.1 allows 998 characters).
const LONGEST_FIRST_LINE: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransferEncoding {
    /// 7bit, 8bit, binary, nothing, or something unknown.
    Identity,
    Base64,
    QuotedPrintable,
}

/// A part that holds no other parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaf {
    /// The header block that describes it, without the empty line behind it.
    pub header: Range<usize>,
    /// Its body as it is stored, without the line ending that belongs to the delimiter behind it.
    pub body: Range<usize>,
    pub encoding: TransferEncoding,
    /// The body is the header block of a message within the message.
    pub inner_header: bool,
}

/// The structure of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Structure {
    /// The header block of the message itself, without the empty line behind it.
    pub header: Range<usize>,
    /// In the order in which they lie in the message.
    pub leaves: Vec<Leaf>,
}

/// The structure of a message, or `None` when the bytes do not begin like one.
pub(super) fn structure(bytes: &[u8]) -> Option<Structure> {
    if !begins_like_mail(bytes) {
        return None;
    }
    let mut walk = Walk { bytes, boundaries: Vec::new(), delimiter: memmem::Finder::new(b"\n--") };
    let mut leaves = Vec::new();
    let mut top = None;
    let mut at = 0;
    let mut describes = None;
    loop {
        let block = walk.header_block(at);
        if top.is_none() {
            top = Some(block.range.clone());
        }
        if let Some(header) = describes.take() {
            let body = block.range.clone();
            leaves.push(Leaf { header, body, encoding: TransferEncoding::Identity, inner_header: true });
        }
        let found = match (block.body, block.content(bytes)) {
            // A header block that runs into a delimiter.
            (None, _) => walk.delimiter_at(block.range.end),
            (Some(body), Content::Multipart(boundary)) if walk.boundaries.len() < DEEPEST => {
                walk.boundaries.push(boundary);
                walk.next_delimiter(body).or_else(|| {
                    // Its boundary never occurs: one leaf up to the end.
                    leaves.push(block.leaf(bytes, body..bytes.len()));
                    None
                })
            }
            (Some(body), Content::Message) => {
                describes = Some(block.range.clone());
                at = body;
                continue;
            }
            (Some(body), _) => {
                let next = walk.next_delimiter(body);
                let end = next.as_ref().map_or(bytes.len(), |delimiter| delimiter.body_end.max(body));
                leaves.push(block.leaf(bytes, body..end));
                next
            }
        };
        match found.and_then(|delimiter| walk.pass(delimiter)) {
            Some(next) => at = next,
            None => break,
        }
    }
    Some(Structure { header: top.unwrap_or(0..0), leaves })
}

/// Does the first line look like a header field, or like the line that an mbox puts before a message?
fn begins_like_mail(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(LONGEST_FIRST_LINE)];
    let line = memchr::memchr(b'\n', head).map_or(head, |end| &head[..end]);
    if line.starts_with(b"From ") || line.starts_with(b">From ") {
        return true;
    }
    let Some(colon) = memchr::memchr(b':', line) else { return false };
    let name = line[..colon].trim_ascii_end();
    !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

struct Walk<'a> {
    bytes: &'a [u8],
    /// Of the multiparts that are open, outermost first.
    boundaries: Vec<&'a [u8]>,
    delimiter: memmem::Finder<'static>,
}

struct Delimiter {
    /// Where the body before it ends.
    body_end: usize,
    /// First byte behind its line.
    behind: usize,
    /// Which of the open boundaries it is.
    level: usize,
    closes: bool,
}

impl<'a> Walk<'a> {
    /// The first delimiter of an open multipart at or behind `from`, which follows a line feed.
    fn next_delimiter(&self, from: usize) -> Option<Delimiter> {
        if self.boundaries.is_empty() {
            return None;
        }
        let from = from.checked_sub(1)?;
        self.delimiter.find_iter(&self.bytes[from..]).find_map(|at| self.delimiter_at(from + at + 1))
    }

    /// The delimiter whose line begins at `line`, if it is one.
    fn delimiter_at(&self, line: usize) -> Option<Delimiter> {
        let rest = self.bytes.get(line..)?.strip_prefix(b"--")?;
        let longest = &rest[..rest.len().min(LONGEST_BOUNDARY + 1024)];
        let text = match memchr::memchr(b'\n', longest) {
            Some(end) => &longest[..end],
            None if longest.len() == rest.len() => rest,
            None => return None,
        };
        let name = text.trim_ascii_end();
        let (level, closes) = self.boundaries.iter().enumerate().rev().find_map(|(level, boundary)| {
            match name.strip_prefix(*boundary)? {
                b"" => Some((level, false)),
                b"--" => Some((level, true)),
                _ => None,
            }
        })?;
        let before = &self.bytes[..line];
        let before = before.strip_suffix(b"\n").unwrap_or(before);
        let body_end = before.strip_suffix(b"\r").unwrap_or(before).len();
        Some(Delimiter { body_end, behind: (line + 2 + text.len() + 1).min(self.bytes.len()), level, closes })
    }

    /// Goes on behind a delimiter: the start of the next part, or `None` at the end.
    fn pass(&mut self, mut delimiter: Delimiter) -> Option<usize> {
        while delimiter.closes {
            self.boundaries.truncate(delimiter.level);
            delimiter = self.next_delimiter(delimiter.behind)?;
        }
        self.boundaries.truncate(delimiter.level + 1);
        Some(delimiter.behind)
    }

    fn header_block(&self, start: usize) -> HeaderBlock {
        let bytes = self.bytes;
        let mut block = HeaderBlock { range: start..start, body: None, content_type: None, transfer_encoding: None };
        let mut line = start;
        let mut field = None;
        while line < bytes.len() {
            let end = memchr::memchr(b'\n', &bytes[line..]).map_or(bytes.len(), |end| line + end);
            let text = bytes[line..end].strip_suffix(b"\r").unwrap_or(&bytes[line..end]);
            block.range.end = line;
            if text.is_empty() {
                block.body = Some((end + 1).min(bytes.len()));
                return block;
            }
            if text.starts_with(b"--") && self.delimiter_at(line).is_some() {
                return block;
            }
            if matches!(text[0], b' ' | b'\t') {
                if let Some(value) = block.value(field) {
                    value.end = end;
                }
            } else {
                field = Field::of(text).filter(|field| block.value(Some(*field)).is_none());
                match field {
                    Some(Field::ContentType) => block.content_type = Some(line..end),
                    Some(Field::TransferEncoding) => block.transfer_encoding = Some(line..end),
                    None => {}
                }
            }
            line = end + 1;
        }
        block.range.end = bytes.len();
        block
    }
}

#[derive(Clone, Copy)]
enum Field {
    ContentType,
    TransferEncoding,
}

impl Field {
    fn of(line: &[u8]) -> Option<Self> {
        // Nearly every line is turned away here.
        if !line[0].eq_ignore_ascii_case(&b'c') {
            return None;
        }
        let name = line[..memchr::memchr(b':', line)?].trim_ascii_end();
        if name.eq_ignore_ascii_case(b"content-type") {
            Some(Self::ContentType)
        } else if name.eq_ignore_ascii_case(b"content-transfer-encoding") {
            Some(Self::TransferEncoding)
        } else {
            None
        }
    }
}

struct HeaderBlock {
    range: Range<usize>,
    /// First byte behind the empty line; `None` when the block ends without one.
    body: Option<usize>,
    /// The whole first field of that name.
    content_type: Option<Range<usize>>,
    transfer_encoding: Option<Range<usize>>,
}

enum Content<'a> {
    Multipart(&'a [u8]),
    Message,
    Other,
}

impl HeaderBlock {
    fn value(&mut self, field: Option<Field>) -> Option<&mut Range<usize>> {
        match field? {
            Field::ContentType => self.content_type.as_mut(),
            Field::TransferEncoding => self.transfer_encoding.as_mut(),
        }
    }

    fn leaf(&self, bytes: &[u8], body: Range<usize>) -> Leaf {
        Leaf { header: self.range.clone(), body, encoding: self.encoding(bytes), inner_header: false }
    }

    fn content<'a>(&self, bytes: &'a [u8]) -> Content<'a> {
        let field = self.content_type.clone().map_or(&b""[..], |range| behind_colon(&bytes[range]));
        let kind = field.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        if kind.get(..10).is_some_and(|main| main.eq_ignore_ascii_case(b"multipart/")) {
            return boundary(field).map_or(Content::Other, Content::Multipart);
        }
        // An encoded inner message is against RFC 2046 §5.2.1 and cannot be walked into.
        if kind.eq_ignore_ascii_case(b"message/rfc822") && self.encoding(bytes) == TransferEncoding::Identity {
            return Content::Message;
        }
        Content::Other
    }

    fn encoding(&self, bytes: &[u8]) -> TransferEncoding {
        let field = self.transfer_encoding.clone().map_or(&b""[..], |range| behind_colon(&bytes[range]));
        let name = field.split(|byte| b";(".contains(byte)).next().unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"base64") {
            TransferEncoding::Base64
        } else if name.eq_ignore_ascii_case(b"quoted-printable") {
            TransferEncoding::QuotedPrintable
        } else {
            TransferEncoding::Identity
        }
    }
}

fn behind_colon(field: &[u8]) -> &[u8] {
    memchr::memchr(b':', field).map_or(&b""[..], |colon| &field[colon + 1..])
}

/// The `boundary` parameter of a Content-Type field: a token or a quoted string. An escaped boundary (`\\"`) and one cut into
/// numbered pieces (RFC 2231) are not understood: nobody writes them, and the part is then a leaf.
fn boundary(field: &[u8]) -> Option<&[u8]> {
    let mut rest = field;
    loop {
        // The next `;` that stands outside quotes.
        let mut quoted = false;
        let semicolon = rest.iter().position(|byte| {
            quoted ^= *byte == b'"';
            *byte == b';' && !quoted
        })?;
        rest = &rest[semicolon + 1..];
        let parameter = rest.trim_ascii_start();
        if !parameter.get(..8).is_some_and(|name| name.eq_ignore_ascii_case(b"boundary")) {
            continue;
        }
        let Some(value) = parameter[8..].trim_ascii_start().strip_prefix(b"=") else { continue };
        let value = value.trim_ascii_start();
        let value = match value.strip_prefix(b"\"") {
            Some(quoted) => &quoted[..memchr::memchr(b'"', quoted)?],
            None => value.split(|byte| *byte == b';' || byte.is_ascii_whitespace()).next()?,
        };
        // Trailing blanks are not part of a boundary, and gateways add them to delimiter lines.
        let value = value.trim_ascii_end();
        let sound = !value.is_empty() && value.len() <= LONGEST_BOUNDARY && !value.contains(&b'\n');
        return sound.then_some(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bodies(message: &str) -> Vec<&str> {
        let structure = structure(message.as_bytes()).expect("begins like mail");
        structure.leaves.iter().map(|leaf| &message[leaf.body.clone()]).collect()
    }

    #[test]
    fn a_message_without_parts_is_one_leaf() {
        assert_eq!(bodies("Subject: a\n\nbody\n"), ["body\n"]);
        assert_eq!(bodies("From someone Mon\nSubject: a\r\n\r\nbody"), ["body"]);
        assert!(bodies("Subject: no body\n").is_empty());
    }

    #[test]
    fn nested_parts_end_where_their_own_delimiter_stands() {
        let message = "MIME-Version: 1.0\r\nContent-Type: multipart/mixed;\r\n\tcharset=\"a;b\"; BOUNDARY=\"out er\"\r\n\r\npreamble\r\n\
            --out er\r\nContent-Type: Multipart/Alternative; boundary=out\r\n\r\n\
            --out\r\n\r\nplain\r\n--outer is text\r\n--out  \r\nContent-Type: text/html\r\n\r\n<p>\r\n--out--\r\nepilogue\r\n\
            --out er\r\nContent-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n\r\nQUJD\r\n--out er--\r\nbye\r\n";
        assert_eq!(bodies(message), ["plain\r\n--outer is text", "<p>", "QUJD"]);
        let encodings =
            structure(message.as_bytes()).unwrap().leaves.iter().map(|leaf| leaf.encoding).collect::<Vec<_>>();
        assert_eq!(encodings, [TransferEncoding::Identity, TransferEncoding::Identity, TransferEncoding::Base64]);
    }

    #[test]
    fn a_part_that_was_never_closed_ends_where_its_parent_goes_on() {
        let message = "Content-Type: multipart/mixed; boundary=a\n\n--a\nContent-Type: multipart/mixed; boundary=b\n\n\
            --b\n\none\n--a\n\ntwo\n--b\nstill two\n--a--\n";
        assert_eq!(bodies(message), ["one", "two\n--b\nstill two"]);
    }

    #[test]
    fn a_forwarded_message_is_walked_into_and_its_header_is_content() {
        let message = "Content-Type: multipart/mixed; boundary=a\n\n--a\nContent-Type: message/rfc822\n\n\
            Subject: inner\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\none\n--b--\n--a\n\ntwo\n--a--\n";
        assert_eq!(bodies(message), ["Subject: inner\nContent-Type: multipart/mixed; boundary=b\n", "one", "two"]);
    }

    #[test]
    fn empty_parts_and_parts_without_a_body_are_survived() {
        let message =
            "Content-Type: multipart/mixed; boundary=a\n\n--a\n\n--a\nContent-Type: text/plain\n--a\n\nx\n--a--";
        assert_eq!(bodies(message), ["", "x"]);
    }

    #[test]
    fn what_does_not_begin_like_mail_has_no_structure() {
        for bytes in
            [&b""[..], b"%PDF-1.4\n: a", b"{\"a\": 1}", b"two words: x", b":", b"\0\0:\n\n", b"\nSubject: a\n\n"]
        {
            assert_eq!(structure(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn leaves_lie_in_order_and_apart(message in
            "(Subject: a\n|Content-Type: multipart/mixed; boundary=a\r?\n)((Content-Type: (multipart/mixed; boundary=[ab]|message/rfc822)\r?\n)|--[ab](--)? ?\r?\n|\r?\n|x|-){0,30}") {
            let structure = structure(message.as_bytes()).unwrap();
            let mut at = 0;
            for leaf in structure.leaves {
                prop_assert!(leaf.body.start >= at && leaf.body.end >= leaf.body.start && leaf.body.end <= message.len());
                prop_assert!(leaf.header.end <= message.len() && leaf.header.start <= leaf.header.end);
                at = leaf.body.end;
            }
        }
    }
}
