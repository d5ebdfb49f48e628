//! `scripts/fuzz` builds and runs it.
#![no_main]

mod parsers;

libfuzzer_sys::fuzz_target!(|data: &[u8]| parsers::any(data));
