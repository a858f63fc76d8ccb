//! Any client message is either accepted or refused.
#![no_main]

#[allow(dead_code)]
#[path = "../../tests/invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::client_message(bytes));
