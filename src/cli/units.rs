//! Sizes and times as people write and read them.

use indicatif::{HumanBytes, HumanCount};
use jiff::Timestamp;

/// `64MiB`, `2GiB`, `500MB`, `1048576`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(format!("{text:?} is not a size: write a number with B, KiB, MiB, GiB, KB, MB or GB")),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(factor))
        .ok_or_else(|| format!("{text:?} is not a size: write for example 256MiB"))
}

pub fn bytes(n: u64) -> String {
    HumanBytes(n).to_string()
}

pub fn count(n: u64) -> String {
    HumanCount(n).to_string()
}

/// RFC 3339 in UTC, to the second.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("2 GB"), Ok(2_000_000_000));
        assert_eq!(parse_size("17"), Ok(17));
        for bad in ["", "MiB", "1.5GiB", "-1", "99999999999999999999", "20000000TiB", "3 apples"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
