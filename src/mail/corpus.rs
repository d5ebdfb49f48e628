//! 6,046 real messages for tests, if they are there: the SpamAssassin corpus beside the project.

/// The unpacked tar archive.
pub(super) struct Corpus(Vec<u8>);

impl Corpus {
    /// `None`, said in the output of the test, when the corpus is not there.
    pub fn open() -> Option<Self> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/corpus/spam-assassin.tar.zst");
        let Ok(packed) = std::fs::read(path) else {
            println!("skipped: there is no corpus of real mail at {path}");
            return None;
        };
        Some(Self(zstd::decode_all(&packed[..]).expect("the corpus unpacks")))
    }

    /// Each message: behind a header of 512 bytes that holds its size in octal, padded to 512 bytes.
    pub fn messages(&self) -> impl Iterator<Item = &[u8]> {
        let tar = &self.0;
        let mut at = 0;
        std::iter::from_fn(move || {
            let size = std::str::from_utf8(tar.get(at + 124..at + 135)?).ok()?;
            let size = usize::from_str_radix(size.trim(), 8).ok()?;
            let content = tar.get(at + 512..at + 512 + size)?;
            at += 512 + size.next_multiple_of(512);
            Some(content)
        })
        .filter(|content| !content.is_empty())
    }
}
