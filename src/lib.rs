//! flowledger: runs flows of LLM calls, shows them live, keeps an exact ledger of every call.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod error;
pub mod event;
pub mod flow;
pub mod gate;
pub mod hub;
pub mod journal;
pub mod secret;
pub mod socket;
pub mod store;
pub mod threads;
