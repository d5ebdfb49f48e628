//! Other people's text, made harmless: names of mailboxes, accounts and tables may hold what a terminal obeys.

/// Control characters, line ends among them, and what turns the direction of writing or breaks a line.
fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// One line in which nothing is obeyed: hostile characters are shown as their numbers.
pub fn inert(text: &str) -> String {
    if !text.contains(is_hostile) {
        return text.to_owned();
    }
    let shown = |c: char| match c {
        '\n' => "\\n".to_owned(),
        c if is_hostile(c) => format!("\\u{{{:x}}}", u32::from(c)),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}

/// JSON in one line; what JSON itself lets through stands as an escape, so that a reader gets the exact text back.
pub fn inert_json(value: &serde_json::Value) -> String {
    let json = value.to_string();
    if !json.contains(is_hostile) {
        return json;
    }
    // Such characters occur within strings alone, and none is above U+FFFF.
    json.chars().map(|c| if is_hostile(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\u{1b}[31mred\u{7}\u{9b}2J\u{202e}txt\r\n\u{7f}\u{2028}";

    #[test]
    fn no_escape_sequence_reaches_the_terminal() {
        let shown = inert(HOSTILE);
        assert!(!shown.contains(is_hostile), "{shown:?}");
        assert!(shown.contains("red") && shown.contains("\\u{1b}") && shown.contains("\\n"));
    }

    #[test]
    fn json_gives_the_exact_text_back_without_anything_that_a_terminal_obeys() {
        let json = inert_json(&serde_json::json!({ "name": HOSTILE }));
        assert!(!json.contains(is_hostile), "{json:?}");
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read["name"], HOSTILE);
    }
}
