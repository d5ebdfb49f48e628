//! A store whose names tell nothing: each table, column and sequence is called by a token, and the draft is translated back.

use restante::inspect::Description;

/// Tokens and what they stand for. Every name has its own, so that a translation is a replacement of text.
pub struct Hidden(Vec<(String, String)>);

impl Hidden {
    pub fn hide(told: &mut Description) -> Self {
        let mut names = Vec::new();
        let mut hide = |name: &mut String| {
            let token = format!("zq{:04}x", names.len());
            names.push((token.clone(), std::mem::replace(name, token)));
        };
        for table in &mut told.tables {
            hide(&mut table.name.name);
            table.columns.iter_mut().for_each(|column| hide(&mut column.name));
            table.triggers.iter_mut().for_each(&mut hide);
        }
        let mut sequences = Vec::new();
        for sequence in &mut told.sequences {
            let before = sequence.name.name.clone();
            hide(&mut sequence.name.name);
            sequences.push((before, sequence.name.name.clone()));
        }
        for column in told.tables.iter_mut().flat_map(|table| &mut table.columns) {
            for (before, token) in &sequences {
                let draws = |default: &String| default.replace(&format!("{before}'"), &format!("{token}'"));
                column.default = column.default.as_ref().map(draws);
            }
        }
        Self(names)
    }

    /// What a token stands for.
    pub fn name<'a>(&'a self, token: &'a str) -> &'a str {
        self.0.iter().find(|(one, _)| one == token).map_or(token, |(_, name)| name)
    }

    pub fn translate(&self, toml: &str) -> String {
        self.0.iter().fold(toml.to_owned(), |text, (token, name)| text.replace(token, name))
    }
}
