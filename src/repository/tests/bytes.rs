//! The encodings that carry no key: what is written is read, and no bytes whatever make a reader panic.

use proptest::prelude::*;

use crate::mail::base64::{Base64Form, LineEnding};
use crate::repository::id::Digest;
use crate::repository::manifest::Manifest;
use crate::repository::pack;
use crate::repository::recipe::{MAX_VALUE, Operation, Recipe};
use crate::repository::rows::{self, Field, INLINE_LIMIT, MultisetDigest, RowReader};
use crate::repository::segment::{self, Descriptor, MapRow, MapValue, Page, TupleId};
use crate::repository::wire::{Cursor, put_varint};
use crate::repository::{cbor, index::Fragment, zone::Zone};

fn forms() -> impl Strategy<Value = Base64Form> {
    (any::<u16>(), any::<bool>(), any::<bool>()).prop_map(|(line_length, crlf, final_line_ending)| Base64Form {
        line_length,
        line_ending: if crlf { LineEnding::CrLf } else { LineEnding::Lf },
        final_line_ending,
    })
}

fn operations() -> impl Strategy<Value = Operation> {
    (0..u32::MAX, any::<u32>(), 1u32..1_000_000, prop::option::of(forms()))
        .prop_map(|(chunk, offset, length, base64)| Operation { chunk, offset, length, base64 })
}

fn recipes() -> impl Strategy<Value = Recipe> {
    prop::collection::vec(operations(), 0..6)
        .prop_map(|operations| Recipe { length: operations.iter().map(Operation::produces).sum(), operations })
}

#[derive(Debug, Clone)]
enum Value {
    Null,
    Inline(Vec<u8>),
    Large,
}

fn fields() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        prop::collection::vec(any::<u8>(), 0..=INLINE_LIMIT).prop_map(Value::Inline),
        Just(Value::Large),
    ]
}

proptest! {
    #[test]
    fn numbers_come_back(value in any::<u64>(), bits in 0u32..64) {
        let value = value >> bits;
        let mut bytes = Vec::new();
        put_varint(&mut bytes, value);
        let mut cursor = Cursor::new("number", &bytes);
        prop_assert_eq!(cursor.varint().unwrap(), value);
        prop_assert!(cursor.is_empty());
        prop_assert!(Cursor::new("number", &bytes[..bytes.len() - 1]).varint().is_err());
    }

    #[test]
    fn recipes_come_back(recipe in recipes()) {
        let mut bytes = Vec::new();
        recipe.encode(&mut bytes);
        let mut cursor = Cursor::new("recipe", &bytes);
        prop_assert_eq!(Recipe::decode(&mut cursor).unwrap(), recipe);
        prop_assert!(cursor.is_empty());
        for cut in 0..bytes.len() {
            prop_assert!(Recipe::decode(&mut Cursor::new("recipe", &bytes[..cut])).is_err());
        }
    }

    #[test]
    fn an_operation_makes_as_many_bytes_as_it_says(plain in prop::collection::vec(any::<u8>(), 1..400), form in prop::option::of(forms())) {
        let operation = Operation { chunk: 3, offset: 0, length: plain.len() as u32, base64: form };
        let recipe = Recipe { length: operation.produces(), operations: vec![operation] };
        let value = recipe.assemble(|chunk| (chunk == 3).then_some(&plain[..])).unwrap();
        prop_assert_eq!(value.len() as u64, operation.produces());
        prop_assert!(recipe.assemble(|_| Some(&plain[1..])).is_err(), "reaching outside a chunk");
        prop_assert!(recipe.assemble(|_| None).is_err(), "a chunk that is not there");
    }

    #[test]
    fn rows_come_back(written in prop::collection::vec(prop::collection::vec(fields(), 3), 0..20), first in 0u32..1000) {
        let mut chunk = Vec::new();
        for field in written.iter().flatten() {
            match field {
                Value::Null => rows::put_null(&mut chunk),
                Value::Inline(value) => rows::put_inline(&mut chunk, value),
                Value::Large => rows::put_large(&mut chunk),
            }
        }
        let (mut reader, mut fields, mut large) = (RowReader::new(&chunk, 3, first), Vec::new(), first);
        for row in &written {
            prop_assert!(reader.next(&mut fields).unwrap());
            for (value, field) in row.iter().zip(&fields) {
                match value {
                    Value::Null => prop_assert_eq!(*field, Field::Null),
                    Value::Inline(value) => prop_assert_eq!(*field, Field::Inline(value)),
                    Value::Large => {
                        prop_assert_eq!(*field, Field::Large(large));
                        large += 1;
                    }
                }
            }
        }
        prop_assert!(!reader.next(&mut fields).unwrap());
        prop_assert_eq!(reader.next_value(), large);
    }

    #[test]
    fn row_maps_come_back(rows in prop::collection::vec((any::<u32>(), any::<u16>(), any::<u32>(), any::<[u8; 16]>()), 0..50)) {
        let rows: Vec<MapRow> = rows
            .into_iter()
            .map(|(block, offset, xmin, digest)| MapRow { place: TupleId { block, offset }, xmin, digest: Digest(digest) })
            .collect();
        let bytes = segment::encode_row_map(&rows);
        prop_assert_eq!(segment::decode_row_map(&bytes).unwrap(), rows);
        prop_assert!(segment::decode_row_map(&bytes[..bytes.len() - 1]).is_err());
        prop_assert!(segment::decode_row_map(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn value_maps_come_back(values in prop::collection::vec((any::<[u8; 16]>(), recipes()), 0..20)) {
        let values: Vec<MapValue> =
            values.into_iter().map(|(hash, recipe)| MapValue { hash: Digest(hash), recipe }).collect();
        let bytes = segment::encode_value_map(&values);
        prop_assert_eq!(segment::decode_value_map(&bytes).unwrap(), values);
        prop_assert!(segment::decode_value_map(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0u8..4, Just(0x80), Just(0xff)], 0..200)) {
        let _ = segment::decode_row_map(&bytes);
        let _ = segment::decode_value_map(&bytes);
        let _ = pack::decode_entries(&bytes);
        let _ = cbor::decode::<Manifest>("manifest", &bytes);
        let _ = cbor::decode::<Page>("page", &bytes);
        let _ = cbor::decode::<Descriptor>("descriptor", &bytes);
        let _ = cbor::decode::<Fragment>("fragment", &bytes);
        let _ = cbor::decode::<Zone>("zone", &bytes);
        if let Ok(recipe) = Recipe::decode(&mut Cursor::new("recipe", &bytes)) {
            prop_assert!(recipe.length <= MAX_VALUE);
        }
        for columns in 0..3 {
            let (mut reader, mut fields) = (RowReader::new(&bytes, columns, u32::MAX - 1), Vec::new());
            while let Ok(true) = reader.next(&mut fields) {}
        }
    }

    #[test]
    fn a_multiset_has_one_digest_in_any_order(rows in prop::collection::vec(any::<[u8; 16]>(), 0..20), cut in 0usize..20) {
        let sum = |rows: &[[u8; 16]]| {
            let mut digest = MultisetDigest::default();
            rows.iter().for_each(|row| digest.add(&Digest(*row)));
            digest
        };
        let whole = sum(&rows).finish();
        let (left, right) = rows.split_at(cut.min(rows.len()));
        let mut parts = sum(right);
        parts.combine(sum(left).finish());
        prop_assert_eq!(parts.finish(), whole);
        if let Some((_, rest)) = rows.split_first() {
            prop_assert!(rows[0] == [0; 16] || sum(rest).finish() != whole);
        }
    }
}

#[test]
fn counts_that_the_bytes_cannot_hold_allocate_nothing() {
    let huge = [0xff; 8];
    assert!(segment::decode_row_map(&huge).is_err());
    assert!(segment::decode_value_map(&huge).is_err());
    assert!(pack::decode_entries(&huge).is_err());
    // An array, a byte string and a map of 2⁶³ items.
    for head in [0x9b, 0x5b, 0xbb] {
        let bytes = [&[head, 0x7f][..], &[0xff; 7]].concat();
        assert!(cbor::decode::<Page>("page", &bytes).is_err());
        let page = [&[0xa1, 0x68][..], b"segments", &bytes].concat();
        assert!(cbor::decode::<Page>("page", &page).is_err());
    }
}

#[test]
fn deep_nesting_is_an_error_and_no_stack_overflow() {
    let bytes = vec![0x81; 1 << 20];
    assert!(cbor::decode::<Page>("page", &bytes).is_err());
    let ignored = [&[0xa1, 0x61, b'x'][..], &bytes].concat();
    assert!(cbor::decode::<Zone>("zone", &ignored).is_err());
}

#[test]
fn a_recipe_over_a_gigabyte_is_refused_before_it_is_followed() {
    let mut bytes = Vec::new();
    put_varint(&mut bytes, MAX_VALUE + 1);
    assert!(Recipe::decode(&mut Cursor::new("recipe", &bytes)).is_err());
    let operation = Operation { chunk: 0, offset: 0, length: 1, base64: None };
    let lies = Recipe { length: MAX_VALUE, operations: vec![operation] };
    assert!(lies.assemble(|_| Some(b"x")).is_err());
}
