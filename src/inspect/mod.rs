//! Drafts a profile of an unknown store.
//!
//! Two small readers fill the same [`Description`] of tables, with keys, row counts and a bounded sample: [`live`] from a database, [`snapshot`]
//! from a repository with no server at all. All that follows is arithmetic over it and does no input or output: columns get
//! `features` (what looks like mail, addresses, Message-IDs), three tables that tell each other are found together (`skeleton`: mailbox,
//! what lies in it, mail), and the rest is told by how it hangs on them. Names count as well, as words of mail and of English, never as those of
//! one store; where they say nothing, structure and samples alone have to.
//!
//! Every guess has a confidence and sentences of evidence. No value of any row is in them: only what kind of thing was seen.
//!
//! The layer uses `compare` to read and `profile` to check; the command `inspect` is its user.

mod content;
mod counters;
pub mod description;
mod draft;
mod features;
mod hanging;
pub mod live;
mod people;
mod skeleton;
pub mod snapshot;
mod store;
mod surroundings;
mod tombstones;
mod write;

use serde::Serialize;

pub use description::Description;
pub use draft::{Confidence, Guess, Section};
pub use write::toml;

use draft::Drafting;
use store::Store;

/// What a person must decide.
#[derive(Debug, Clone, Serialize)]
pub struct Question {
    /// `[message] clocks`
    pub about: String,
    pub question: String,
}

/// A profile as far as it can be guessed, in the order in which it is written.
#[derive(Debug, Clone, Serialize)]
pub struct Draft {
    pub sections: Vec<Section>,
}

impl Draft {
    pub fn questions(&self) -> Vec<Question> {
        let mut questions = Vec::new();
        for section in &self.sections {
            let table = section.guesses.iter().find(|guess| guess.key == "table" || guess.key == "predicate");
            let table =
                table.and_then(|guess| guess.value.as_ref()?.as_str()).filter(|_| section.header.starts_with("[["));
            for guess in &section.guesses {
                let Some(question) = &guess.question else { continue };
                let words = [section.header.as_str(), table.unwrap_or_default(), &guess.key];
                let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
                questions.push(Question { about: words.join(" "), question: question.clone() });
            }
        }
        questions
    }
}

/// Guesses what the tables mean; `None` if nothing of it looks like mailboxes with mail.
pub fn draft(told: &Description) -> Option<Draft> {
    let store = Store::new(told);
    let skeleton = skeleton::find(&store)?;
    let mut drafting = Drafting::new(&store, &skeleton);
    drafting.find_raw();
    drafting.owner();
    drafting.mailbox();
    let parts = drafting.parts();
    drafting.message(&parts);
    drafting.link();
    drafting.flags();
    drafting.say_parts(&parts);
    drafting.children();
    drafting.dictionaries();
    drafting.children();
    drafting.tombstones();
    drafting.derived();
    drafting.top();
    Some(Draft { sections: drafting.sections })
}
