//! Deterministic CBOR (RFC 8949 section 4.2.1): definite lengths, shortest integers, map keys sorted by their encoded bytes.
//! The same value always gives the same bytes, so the same metadata gives the same chunk.

use ciborium::Value;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Metadata that does not have the form that format 1 gives it.
#[derive(Debug, thiserror::Error)]
#[error("{what} does not decode: {message}")]
pub struct CborError {
    what: &'static str,
    message: String,
}

/// Encodes with sorted keys. `what` names the thing in errors.
pub fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, CborError> {
    let fail = |message: String| CborError { what, message };
    let mut tree = Value::serialized(value).map_err(|e| fail(e.to_string()))?;
    sort(&mut tree).map_err(fail)?;
    let mut bytes = Vec::new();
    ciborium::into_writer(&tree, &mut bytes).map_err(|e| fail(e.to_string()))?;
    Ok(bytes)
}

/// Decodes; keys that the type does not know are ignored, bytes after the value are not.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, CborError> {
    let mut rest = bytes;
    let value = ciborium::from_reader(&mut rest).map_err(|e| CborError { what, message: e.to_string() })?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(CborError { what, message: format!("{} bytes follow it", rest.len()) })
    }
}

fn sort(value: &mut Value) -> Result<(), String> {
    match value {
        Value::Array(items) => items.iter_mut().try_for_each(sort),
        Value::Map(entries) => {
            let mut keyed = Vec::with_capacity(entries.len());
            for (key, mut value) in entries.drain(..) {
                sort(&mut value)?;
                let mut encoded = Vec::new();
                ciborium::into_writer(&key, &mut encoded).map_err(|e| e.to_string())?;
                keyed.push((encoded, key, value));
            }
            keyed.sort_by(|a, b| a.0.cmp(&b.0));
            entries.extend(keyed.into_iter().map(|(_, key, value)| (key, value)));
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn the_order_of_fields_never_changes_the_bytes() {
        #[derive(Serialize)]
        struct One {
            zebra: u8,
            a: u8,
        }
        #[derive(Serialize)]
        struct Other {
            a: u8,
            zebra: u8,
        }
        let one = encode("one", &One { zebra: 1, a: 2 }).unwrap();
        assert_eq!(one, encode("other", &Other { a: 2, zebra: 1 }).unwrap());
        assert_eq!(one, [0xa2, 0x61, b'a', 2, 0x65, b'z', b'e', b'b', b'r', b'a', 1]);
    }

    #[test]
    fn trailing_bytes_are_an_error() {
        let mut bytes = encode("map", &HashMap::from([("a", 1)])).unwrap();
        bytes.push(0);
        assert!(decode::<HashMap<String, u8>>("map", &bytes).is_err());
    }
}
