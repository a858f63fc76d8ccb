//! Any bytes in place of a request head are either accepted or refused, deterministically.
#![no_main]

#[allow(dead_code)]
#[path = "../../tests/invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::request_head(bytes));
