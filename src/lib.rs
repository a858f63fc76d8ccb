//! flowledger: runs flows of LLM calls, shows them live, keeps an exact ledger of every call.
//!
//! ARCHITECTURE.md describes the modules and the invariants.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod budget;
mod calls;
pub mod cli;
pub mod config;
mod engine;
pub mod error;
pub mod event;
pub mod event_stream;
mod flow;
pub mod gateway;
mod http;
pub mod hub;
pub mod ids;
mod journal;
pub mod listener;
mod metrics;
pub mod money;
pub mod optimizer;
mod prices;
pub mod providers;
mod schedule;
mod scheduler;
pub mod secret;
pub mod server;
pub mod store;
mod threads;
pub mod time;
mod translation;
mod verify;
pub mod websocket;
