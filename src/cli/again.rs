//! The command that a person should run next, to be pasted into a shell: with what this call was given, and quoted.

use super::comparing::Comparing;
use super::context::Context;
use crate::postgres::dsn::{Dsn, Environment};

/// `restante WORDS…` with the store, the repository and the keys of this call. What the environment or a file said is said
/// again by them.
pub fn command(context: &Context, words: &[&str], comparing: Option<&Comparing>) -> String {
    let global = &context.global;
    let mut words: Vec<String> = std::iter::once("restante").chain(words.iter().copied()).map(str::to_owned).collect();
    let mut flag = |flag: &str, value: Option<String>, variable: &str| {
        let from_environment = || !variable.is_empty() && std::env::var(variable).ok() == value;
        if let Some(value) = value.as_ref().filter(|_| !from_environment()) {
            // One word, so that a value which begins with a dash is no flag.
            words.push(format!("{flag}={value}"));
        }
    };
    let shown = |path: &std::path::PathBuf| path.display().to_string();
    if let Some(comparing) = comparing {
        flag("--from", comparing.from.map(|time| time.to_string()), "");
        flag("--to", comparing.to.map(|time| time.to_string()), "");
        flag("--damaged-at", comparing.damaged_at.map(|time| time.to_string()), "");
        flag("--profile", comparing.profile.clone(), "");
        for renamed in &comparing.renamed {
            flag("--renamed", Some(renamed.clone()), "");
        }
        for identity in &global.identity {
            flag("--identity", Some(shown(identity)), "RESTANTE_IDENTITY");
        }
        flag("--repo", global.repo.clone(), "RESTANTE_REPO");
        flag("--expect-repository", global.expect_repository.clone(), "");
    }
    flag("--config", global.config.as_ref().map(shown), "RESTANTE_CONFIG");
    flag("--store", global.store.clone().filter(|store| !holds_password(store)), "RESTANTE_STORE");
    // Only NUL cannot be quoted, and no argument of a process holds one.
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "))
}

/// It would end up in logs and on screens.
fn holds_password(store: &str) -> bool {
    let environment = Environment { account: Some(String::new()), ..Environment::default() };
    Dsn::parse(store, &environment).map_or(true, |dsn| dsn.endpoints.iter().any(|one| one.password().is_some()))
}

#[cfg(test)]
mod tests {
    use super::holds_password;

    #[test]
    fn a_password_is_not_said_again() {
        assert!(holds_password("postgres://a:b@localhost/c") && holds_password("host=a password=b"));
        assert!(!holds_password("postgres://a@localhost/c") && !holds_password("host=/run/postgresql dbname=a"));
    }
}
