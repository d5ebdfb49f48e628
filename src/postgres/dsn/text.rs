//! The two forms of a connection string, taken apart into parameters exactly as `conninfo_parse` and
//! `conninfo_uri_parse` of libpq do. Errors never repeat the text, which may hold a password.
//!
//! Where releases of libpq differ the newest counts: since 18 a blank in a URI that is not written `%20` is cut off at
//! the ends of a value and refused within; before, it belonged to the value.

use super::{DsnError, Parameters};

pub(super) fn parameters(text: &str) -> Result<Parameters, DsnError> {
    for scheme in ["postgresql://", "postgres://"] {
        if let Some(rest) = text.strip_prefix(scheme) {
            return uri(rest);
        }
    }
    if text.contains('=') {
        return pairs(text);
    }
    // As `psql mail` does.
    let mut parameters = Parameters::new();
    if !text.trim().is_empty() {
        parameters.insert("dbname".to_owned(), text.to_owned());
    }
    Ok(parameters)
}

fn syntax(message: impl Into<String>) -> DsnError {
    DsnError::Syntax(message.into())
}

/// What C's isspace takes for blank.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

fn pairs(text: &str) -> Result<Parameters, DsnError> {
    let mut parameters = Parameters::new();
    let mut rest = text.chars().peekable();
    let blank = |c: &char| is_blank(*c);
    loop {
        while rest.next_if(blank).is_some() {}
        if rest.peek().is_none() {
            return Ok(parameters);
        }
        let mut name = String::new();
        while let Some(c) = rest.next_if(|c| *c != '=' && !blank(c)) {
            name.push(c);
        }
        while rest.next_if(blank).is_some() {}
        if rest.next_if_eq(&'=').is_none() {
            // The name may be a piece of a password that should have been quoted: not shown.
            return Err(syntax("a word without \"=\" after it; put values with blanks in single quotes"));
        }
        while rest.next_if(blank).is_some() {}
        let mut value = String::new();
        let quoted = rest.next_if_eq(&'\'').is_some();
        loop {
            match rest.next() {
                None if quoted => return Err(syntax("a quoted value is not closed")),
                None => break,
                Some('\'') if quoted => break,
                Some(c) if !quoted && blank(&c) => break,
                Some('\\') => value.extend(rest.next()),
                Some(c) => value.push(c),
            }
        }
        insert(&mut parameters, name, value);
    }
}

fn uri(text: &str) -> Result<Parameters, DsnError> {
    let mut parameters = Parameters::new();
    let mut rest = text;
    let credentials = rest.find(['@', '/']).filter(|at| rest[*at..].starts_with('@'));
    if let Some(at) = credentials {
        let (user, password) = match rest[..at].split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (&rest[..at], None),
        };
        if !user.is_empty() {
            insert(&mut parameters, "user".to_owned(), decoded(user)?);
        }
        if let Some(password) = password.filter(|password| !password.is_empty()) {
            insert(&mut parameters, "password".to_owned(), decoded(password)?);
        }
        rest = &rest[at + 1..];
    }
    let (mut hosts, mut ports) = (String::new(), String::new());
    loop {
        if let Some(bracketed) = rest.strip_prefix('[') {
            let end = bracketed.find(']').ok_or_else(|| syntax("an IPv6 address lacks its closing \"]\""))?;
            if end == 0 {
                return Err(syntax("the IPv6 address is empty"));
            }
            hosts += &bracketed[..end];
            rest = &bracketed[end + 1..];
            if !rest.is_empty() && !rest.starts_with([':', '/', '?', ',']) {
                return Err(syntax("only \":\", \"/\", \"?\" or \",\" may follow an IPv6 address"));
            }
        } else {
            let end = rest.find([':', '/', '?', ',']).unwrap_or(rest.len());
            hosts += &rest[..end];
            rest = &rest[end..];
        }
        if let Some(after) = rest.strip_prefix(':') {
            let end = after.find(['/', '?', ',']).unwrap_or(after.len());
            ports += &after[..end];
            rest = &after[end..];
        }
        match rest.strip_prefix(',') {
            Some(after) => {
                hosts.push(',');
                ports.push(',');
                rest = after;
            }
            None => break,
        }
    }
    if !hosts.is_empty() {
        insert(&mut parameters, "host".to_owned(), decoded(&hosts)?);
    }
    if !ports.is_empty() {
        insert(&mut parameters, "port".to_owned(), decoded(&ports)?);
    }
    if let Some(after) = rest.strip_prefix('/') {
        let end = after.find('?').unwrap_or(after.len());
        if end > 0 {
            insert(&mut parameters, "dbname".to_owned(), decoded(&after[..end])?);
        }
        rest = &after[end..];
    }
    let query = rest.strip_prefix('?').unwrap_or("");
    for pair in query.split('&').filter(|_| !query.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| syntax("a parameter after \"?\" lacks its \"=\""))?;
        if value.contains('=') {
            return Err(syntax("a parameter after \"?\" has two \"=\"; write %3D for one in the value"));
        }
        match (decoded(name)?.as_str(), decoded(value)?) {
            ("ssl", value) if value == "true" => insert(&mut parameters, "sslmode".to_owned(), "require".to_owned()),
            (name, value) => insert(&mut parameters, name.to_owned(), value),
        }
    }
    Ok(parameters)
}

/// A later value wins.
fn insert(parameters: &mut Parameters, name: String, value: String) {
    parameters.insert(name, value);
}

fn decoded(text: &str) -> Result<String, DsnError> {
    let text = text.trim_matches(is_blank);
    if text.contains(is_blank) {
        return Err(syntax("a blank within a value of a URI; write %20 for it"));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = after;
            continue;
        }
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        let code = match after {
            [high, low, ..] => digit(high).zip(digit(low)).map(|(high, low)| high * 16 + low),
            _ => None,
        };
        match code.and_then(|code| u8::try_from(code).ok()) {
            Some(0) => return Err(syntax("%00 is not allowed")),
            Some(code) => bytes.push(code),
            None => {
                return Err(syntax("\"%\" must be followed by two hexadecimal digits; write %25 for a percent sign"));
            }
        }
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| syntax("a percent-encoded value is not UTF-8"))
}
