//! Whatever comes instead of a request's head is read or refused, always in the same way.
#![no_main]

#[allow(dead_code)]
#[path = "../../tests/invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::request_head(bytes));
