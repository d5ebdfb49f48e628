//! TOML files that people write, with errors that name the file and the line.

use std::path::Path;

use jiff::{SignedDuration, SpanRelativeTo};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::GuardError;
use crate::report::inert::inert;

/// Reads a TOML document of at most 1 MiB.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<(T, String), GuardError> {
    let text = std::fs::read_to_string(path).map_err(|e| GuardError::file(path, e))?;
    Ok((parse(path, &text)?, text))
}

/// `path` is for errors.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, GuardError> {
    let line = |at: usize| text[..at].matches('\n').count() + 1;
    let invalid = |line, message: String| GuardError::Document { path: path.to_owned(), line, message };
    // People sign what they see: nothing in it may hide from them.
    let hidden = |line: &str| {
        inert(line) != line.replace('\t', " ") && inert(&line.replace('\t', " ")) != line.replace('\t', " ")
    };
    if let Some(number) = text.lines().position(hidden) {
        return Err(invalid(
            number + 1,
            "it holds control characters or ones that turn the direction of writing".into(),
        ));
    }
    toml::from_str(text).map_err(|e| invalid(e.span().map_or(1, |span| line(span.start)), e.message().to_owned()))
}

/// `30m`, `24h`, `7d`; a day has 24 hours.
pub fn duration<'de, D: serde::Deserializer<'de>>(from: D) -> Result<SignedDuration, D::Error> {
    use serde::de::Error;
    let text = String::deserialize(from)?;
    let span: jiff::Span =
        text.parse().map_err(|_| D::Error::custom(format!("{text:?} is no duration: write 30m, 24h or 7d")))?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(D::Error::custom)?;
    if duration.is_positive() { Ok(duration) } else { Err(D::Error::custom("a duration is longer than nothing")) }
}

/// A duration as people write it.
pub fn shown(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    match (seconds % 86_400, seconds % 3600, seconds % 60) {
        (0, ..) => format!("{} days", seconds / 86_400),
        (_, 0, _) => format!("{} hours", seconds / 3600),
        (.., 0) => format!("{} minutes", seconds / 60),
        _ => format!("{seconds} seconds"),
    }
}
