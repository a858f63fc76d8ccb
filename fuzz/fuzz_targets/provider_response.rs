//! Any answer of a provider is read without a panic, with possible counts, however it is split.
#![no_main]

#[allow(dead_code)]
#[path = "../../tests/invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::provider_response(bytes));
