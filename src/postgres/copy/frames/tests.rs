use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

type Row = Vec<Option<Vec<u8>>>;

fn encoded(rows: &[Row], extension: &[u8]) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    out.extend(0_u32.to_be_bytes());
    out.extend(u32::try_from(extension.len()).unwrap().to_be_bytes());
    out.extend(extension);
    for row in rows {
        out.extend(i16::try_from(row.len()).unwrap().to_be_bytes());
        for field in row {
            match field {
                None => out.extend((-1_i32).to_be_bytes()),
                Some(field) => {
                    out.extend(i32::try_from(field.len()).unwrap().to_be_bytes());
                    out.extend(field);
                }
            }
        }
    }
    out.extend((-1_i16).to_be_bytes());
    out
}

fn split(fields: u16, pieces: impl IntoIterator<Item = Bytes>) -> Result<Vec<Row>, FrameError> {
    let mut splitter = FrameSplitter::new(fields);
    let mut bounds = Vec::new();
    let mut rows = Vec::new();
    for piece in pieces {
        splitter.push(piece);
        while let Some(row) = splitter.next(&mut bounds)? {
            rows.push(bounds.iter().map(|field| field.of(&row).map(<[u8]>::to_vec)).collect());
        }
    }
    assert_eq!(splitter.finish()?, rows.len() as u64);
    Ok(rows)
}

/// Cuts where the numbers say, over and over.
fn cut(bytes: Vec<u8>, sizes: &[usize]) -> Vec<Bytes> {
    let mut rest = Bytes::from(bytes);
    let mut pieces = Vec::new();
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        pieces.push(rest.split_to((*size).min(rest.len())));
    }
    pieces
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    (1_usize..5).prop_flat_map(|fields| vec(vec(proptest::option::of(vec(any::<u8>(), 0..40)), fields), 1..20))
}

proptest! {
    #[test]
    fn rows_come_out_as_they_went_in_wherever_the_stream_is_cut(
        rows in rows(), extension in vec(any::<u8>(), 0..30), sizes in vec(1_usize..50, 1..8)
    ) {
        let fields = u16::try_from(rows[0].len()).unwrap();
        let pieces = cut(encoded(&rows, &extension), &sizes);
        prop_assert_eq!(split(fields, pieces), Ok(rows));
    }

    #[test]
    fn a_stream_that_ends_early_is_never_taken_for_a_whole_one(rows in rows(), sizes in vec(1_usize..50, 1..8), keep in 0.0..1.0_f64) {
        let fields = u16::try_from(rows[0].len()).unwrap();
        let mut bytes = encoded(&rows, &[]);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        bytes.truncate((bytes.len() as f64 * keep) as usize);
        prop_assert!(split(fields, cut(bytes, &sizes)).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..200), header in any::<bool>(), sizes in vec(1_usize..50, 1..8), fields in 0_u16..5) {
        let mut stream = if header { encoded(&[], &[])[..19].to_vec() } else { Vec::new() };
        stream.extend(bytes);
        let _ = split(fields, cut(stream, &sizes));
    }

    #[test]
    fn one_changed_byte_in_a_length_is_noticed_or_changes_no_count(rows in rows(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let fields = u16::try_from(rows[0].len()).unwrap();
        let mut bytes = encoded(&rows, &[]);
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(found) = split(fields, [Bytes::from(bytes)]) {
            prop_assert!(found.iter().all(|row| row.len() == rows[0].len()));
        }
    }
}

#[test]
fn a_whole_row_is_handed_on_without_a_copy() {
    let stream = Bytes::from(encoded(&[vec![Some(b"abc".to_vec())]], &[]));
    let mut splitter = FrameSplitter::new(1);
    splitter.push(stream.clone());
    let row = splitter.next(&mut Vec::new()).unwrap().unwrap();
    assert_eq!(row.as_ptr(), stream[19..].as_ptr());
}

#[test]
fn bytes_after_the_end_mark_are_an_error() {
    let mut stream = encoded(&[], &[]);
    stream.push(0);
    assert_eq!(split(1, [Bytes::from(stream.clone())]), Err(FrameError::Trailing { rows: 0 }));
    assert_eq!(split(1, cut(stream, &[1])), Err(FrameError::Trailing { rows: 0 }));
}
