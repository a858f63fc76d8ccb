//! All tests of the running server. Each file is about one subject:
//!
//! - `access`: token, names and origins; no secret is ever written down.
//! - `aimock`: an implementation of the providers' APIs that is not ours, as a child process.
//! - `bad_input`: whatever comes over the wire gets a clear answer and leaves nothing behind.
//! - `binary`: the program itself as a child process.
//! - `browser`: a real headless Chromium with deadlines, which leaves nothing behind.
//! - `budgets`: what they refuse, let through and tell; none is overrun.
//! - `calls`: the same behaviour of a call for flows, clients and trials.
//! - `client_answers`: what other programs bought before is taken again, byte for byte.
//! - `client_bounds`: what bounds the calls of other programs, and how they are told.
//! - `client_kinds`: providers of every kind, as clients reach them.
//! - `client_streams`: what clients are given of answers, and what is booked of those that nobody counted
//!   or that broke off.
//! - `clients`: other programs at `/v1`: what is passed on, what is booked, who may come in.
//! - `command_line`: the program's flags, files, signals and exit codes; crash and restart.
//! - `conformance`: the WebSocket protocol, frame by frame, against the echo of examples/echo.rs.
//! - `counts`: answers whose counts are missing, late, odd or not of the usual price.
//! - `disk`: what a full disk refuses, and what goes on.
//! - `docs`: links in the documents resolve, and the program accepts their examples.
//! - `harness`: starts the same wiring as `main` on port 0 in a temporary directory; clients with
//!   deadlines.
//! - `history`: what is kept of runs, going on after a failure, deleting, retention.
//! - `hub`: clients come and go, broadcasts reach all, a stuck client disturbs nobody.
//! - `interop`: the official SDKs of OpenAI and Anthropic as clients.
//! - `invariants`: what holds for every head and every message of a client, tried on the corpora of
//!   the fuzz targets.
//! - `layers`: which module may use which, and which crate is at home where.
//! - `limits`: what is too deep, too much or cut short harms nobody.
//! - `maps`: a call for each item of a list: in order, at once, failing, again after a restart.
//! - `nodes`: inputs, conditions, templates and outputs, and how runs go around them.
//! - `optimizer`: what is proposed of real runs, and what becomes of it.
//! - `optimizer_fixture`: the server, flows and suggestions that these tests share.
//! - `optimizer_models`: which models are put forward, and how providers are asked for theirs.
//! - `optimizer_rules`: what is proposed about failures and limits, and what was saved since a
//!   suggestion was applied.
//! - `optimizer_trial`: a cheaper model is tried on stored inputs before a flow asks it.
//! - `overload`: more clients than there are places, threads or descriptors for.
//! - `page`: what a person sees and does in the page, and pages of other origins.
//! - `page_savings`: suggestions in the page: how they come, are looked into, applied and taken back.
//! - `page_spending`: sums in the page: what was spent, by day and by whatever one wants to know.
//! - `prices`: which price a row was given, what a call would cost, prices of the user's own.
//! - `prompt_cache`: what is marked for a provider's prompt cache, and what that costs at most.
//! - `providers`: what providers answer, refuse and break off, and what the ledger says of it.
//! - `replay`: what a client missed comes after `since`, once and in order.
//! - `response_cache`: a stored response is reused if a node allows it.
//! - `responses`: how a response ends, and what becomes of a body that no route reads.
//! - `retries`: what a node may do about its failure: try again, ask another, go on without.
//! - `runs`: the exact messages of a run, well and failing; cancel; restart.
//! - `triggers`: webhooks, their secrets and keys; schedules, their times missed and run.
//! - `upgrade`: a database of the previous version opens and goes on.
//! - `upstream`: a scripted provider over real sockets, for what no real one does on demand.
//! - `usage`: what each provider's answers come to in tokens and money.
//! - `verify`: it finds what was changed behind flowledger's back, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod access;
mod aimock;
mod bad_input;
mod binary;
mod browser;
mod budgets;
mod calls;
mod client_answers;
mod client_bounds;
mod client_kinds;
mod client_streams;
mod clients;
mod command_line;
mod conformance;
mod counts;
mod disk;
mod docs;
mod harness;
mod history;
mod hub;
mod interop;
mod invariants;
mod layers;
mod limits;
mod maps;
mod nodes;
mod optimizer;
mod optimizer_fixture;
mod optimizer_models;
mod optimizer_rules;
mod optimizer_trial;
mod overload;
mod page;
mod page_savings;
mod page_spending;
mod prices;
mod prompt_cache;
mod providers;
mod replay;
mod response_cache;
mod responses;
mod retries;
mod runs;
mod triggers;
mod upgrade;
mod upstream;
mod usage;
mod verify;
