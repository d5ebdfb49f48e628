//! A draft as TOML: open questions first, and above each line what speaks for it.

use std::fmt::Write;

use super::{Confidence, Draft, Guess};

/// The text of the profile. Names of tables may hold anything; in comments they are made to stay in their line.
pub fn toml(draft: &Draft, looked_at: &str) -> String {
    let mut text = String::new();
    comment(
        &mut text,
        "# ",
        &format!("Drafted by `restante inspect` from {looked_at}. docs/profiles.md says what each line means."),
    );
    let questions = draft.questions();
    if !questions.is_empty() {
        comment(&mut text, "# ", &format!("{} open questions, marked with ? below:", questions.len()));
        for question in &questions {
            comment(&mut text, "#   ", &format!("{}: {}", question.about, question.question));
        }
    }
    for section in &draft.sections {
        text.push('\n');
        if !section.header.is_empty() {
            text += &section.header;
            text.push('\n');
        }
        section.guesses.iter().for_each(|guess| line(&mut text, guess));
    }
    text
}

fn line(text: &mut String, guess: &Guess) {
    let sure = match guess.confidence {
        Confidence::Sure => "sure",
        Confidence::Likely => "likely",
        Confidence::Guess => "a guess",
    };
    if !guess.evidence.is_empty() {
        comment(text, "# ", &format!("{sure}: {}", guess.evidence.join("; ")));
    }
    if let Some(question) = &guess.question {
        comment(text, "# ? ", question);
    }
    match &guess.value {
        // Writing to a String cannot fail.
        Some(value) => _ = writeln!(text, "{} = {value}", guess.key),
        None => comment(text, "# ", &format!("{} =", guess.key)),
    }
}

fn comment(text: &mut String, mark: &str, words: &str) {
    text.push_str(mark);
    text.extend(words.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }));
    text.push('\n');
}
