//! All tests of the running server. Each file is about one subject:
//!
//! - `browser`: a real headless Chromium with deadlines, which leaves nothing behind.
//! - `harness`: starts the same wiring as `main` on port 0 in a temporary directory; clients with
//!   deadlines.
//! - `hub`: clients come and go, broadcasts reach all, a stuck client disturbs nobody.
//! - `limits`: what is too deep, too much or cut short harms nobody.
//! - `page`: what a person sees and does in the page, and pages of other origins.
//! - `replay`: what a client missed comes after `since`, once and in order.
//! - `runs`: the exact messages of a run, well and failing; cancel; restart.
//! - `upstream`: a scripted provider over real sockets, for what no real one does on demand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod browser;
mod harness;
mod hub;
mod limits;
mod page;
mod replay;
mod runs;
mod upstream;
