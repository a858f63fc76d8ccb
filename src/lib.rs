//! flowledger: runs flows of LLM calls, shows them live, keeps an exact ledger of every call.
//!
//! ARCHITECTURE.md describes the modules and the invariants.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod budget;
pub mod calls;
pub mod cli;
pub mod config;
pub mod engine;
pub mod error;
pub mod event;
pub mod flow;
pub mod gateway;

pub mod http;
pub mod hub;
pub mod ids;
pub mod journal;
pub mod listener;
pub mod metrics;
pub mod money;
pub mod optimizer;
pub mod prices;
pub mod providers;
pub mod schedule;
pub mod scheduler;
pub mod secret;
pub mod server;
pub mod store;
pub mod threads;
pub mod time;
mod verify;
pub mod websocket;
