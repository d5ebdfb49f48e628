//! The password file and the service file.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use zeroize::Zeroizing;

use super::{DsnError, Environment, Parameters};

/// The text of the password file, if it may be used: a regular file that only its owner can read.
pub(super) fn password_file(path: &Path, warnings: &mut Vec<String>) -> Option<Zeroizing<String>> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() {
        warnings.push(format!("the password file {} is not a plain file and is not used", path.display()));
        return None;
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        warnings.push(format!(
            "the password file {path} may be read by others and is not used: chmod 0600 {path}",
            path = path.display()
        ));
        return None;
    }
    match std::fs::read_to_string(path) {
        Ok(text) => Some(Zeroizing::new(text)),
        Err(error) => {
            warnings.push(format!("the password file {} cannot be read: {error}", path.display()));
            None
        }
    }
}

/// The password of the first line that fits host, port, database and user.
pub(super) fn password(text: &str, wanted: [&str; 4]) -> Option<SecretString> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for field in wanted {
            rest = matched(rest, field)?;
        }
        // In the password, too, a backslash quotes what follows it.
        let mut characters = rest.chars();
        let mut password = String::with_capacity(rest.len());
        while let Some(c) = characters.next() {
            password.push(if c == '\\' { characters.next().unwrap_or('\\') } else { c });
        }
        Some(password).filter(|password| !password.is_empty()).map(SecretString::from)
    })
}

/// What follows the field and its colon, when the field is `*` or, unescaped, `wanted`.
fn matched<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let mut wanted = wanted.chars();
    let mut characters = line.char_indices();
    while let Some((at, c)) = characters.next() {
        let c = match c {
            ':' => return wanted.next().is_none().then(|| &line[at + 1..]),
            '\\' => characters.next().map_or('\\', |(_, quoted)| quoted),
            c => c,
        };
        if wanted.next() != Some(c) {
            return None;
        }
    }
    None
}

/// The parameters of a service: from the user's file, else from the system's.
pub(super) fn service(name: &str, environment: &Environment) -> Result<Parameters, DsnError> {
    let user =
        environment.get("PGSERVICEFILE").map(PathBuf::from).or_else(|| environment.home_file(".pg_service.conf"));
    let directory = environment.get("PGSYSCONFDIR").unwrap_or("/etc/postgresql-common");
    let looked: Vec<PathBuf> = user.into_iter().chain([Path::new(directory).join("pg_service.conf")]).collect();
    for path in looked.iter().filter(|path| path.exists()) {
        let text = std::fs::read_to_string(path)
            .map_err(|error| DsnError::ServiceFile { path: path.clone(), reason: error.to_string() })?;
        if let Some(parameters) =
            section(&text, name).map_err(|reason| DsnError::ServiceFile { path: path.clone(), reason })?
        {
            return Ok(parameters);
        }
    }
    Err(DsnError::NoService { service: name.to_owned(), looked })
}

fn section(text: &str, name: &str) -> Result<Option<Parameters>, String> {
    let mut found: Option<Parameters> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            if header.split(']').next() == Some(name) {
                found = Some(Parameters::new());
            }
        } else if let Some(parameters) = &mut found {
            let (key, value) = line.split_once('=').ok_or_else(|| format!("line {number} lacks its \"=\""))?;
            if key == "service" {
                return Err(format!("line {number} names a service inside a service"));
            }
            parameters.entry(key.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    Ok(found)
}
