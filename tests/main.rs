//! Integration tests of the running server. Each file covers one subject:
//!
//! - `access`: tokens, host names and origins; no secret is stored or logged.
//! - `aimock`: an independent implementation of the providers' APIs, as a child process.
//! - `bad_input`: bad input gets a clear answer, and no data is stored.
//! - `binary`: runs the program as a child process.
//! - `bodies`: stored bodies of clients' calls: texts, secrets, limits and removal.
//! - `browser`: a headless Chromium with deadlines and cleanup.
//! - `budget_bounds`: bounds of clients' calls that budgets reserve by, and lowered limits.
//! - `budgets`: refused and allowed calls, warnings, and no overrun.
//! - `calls`: the same behaviour of a call for flows, clients and trials.
//! - `calls_page`: `/calls` as plain HTML, without JavaScript.
//! - `client_answers`: cached answers for clients, reused byte for byte.
//! - `client_batches`: files and batches of clients.
//! - `client_bounds`: limits on client calls, and their errors.
//! - `client_endpoints`: embeddings, completions, moderations, reranking, images and sound.
//! - `client_gemini`: Gemini's own protocol for clients.
//! - `client_kinds`: providers of every kind behind `/v1`.
//! - `client_ollama`: Ollama's own protocol for clients, beside the API.
//! - `client_routes`: paths, keys, encodings and queries of clients.
//! - `client_streams`: streams for clients, and the accounting of broken ones.
//! - `clients`: forwarding, accounting and authentication at `/v1`.
//! - `command_line`: flags, files, signals and exit codes; crash and restart.
//! - `conformance`: the WebSocket protocol, frame by frame, against `examples/echo.rs`.
//! - `counts`: answers whose counts are missing, late, invalid or billed at another rate.
//! - `disk`: behaviour on a full disk, and recovery.
//! - `docs`: links in the documents resolve, and the program accepts their examples.
//! - `events`: server-sent events: reconnects, filters, limits, slow clients, shutdown.
//! - `flow_events`: every change of a flow and each deleted run is announced.
//! - `harness`: a server on port 0 in a temporary directory, and clients with deadlines.
//! - `history`: run history, resuming after a failure, deletion and retention.
//! - `hub`: clients connect and leave, broadcasts reach all, and no client disturbs another.
//! - `interop`: SDKs, coding agents and frameworks as clients.
//! - `invariants`: invariants of the parsers, tried on the corpora of the fuzz targets.
//! - `keys`: virtual keys: edits, rotation, permitted models and rates.
//! - `layers`: dependencies between modules, and crates that belong to one module.
//! - `ledger_rows`: many ledger rows, written at once; the benchmarks use them too.
//! - `limits`: input that is too deep, too large or cut short is refused.
//! - `lists`: lists of flows and runs: summaries, filters, orders and cursors.
//! - `maps`: one call per item of a list: in order, in parallel, failing, after a restart.
//! - `networks`: providers behind a proxy, or with their own certificate authority.
//! - `nodes`: inputs, conditions, templates and outputs, and the paths of runs.
//! - `optimizer`: suggestions from real runs, and their life cycle.
//! - `optimizer_fixture`: the server, flows and suggestions that these tests share.
//! - `optimizer_models`: recommended models, and the providers' model lists.
//! - `optimizer_rules`: suggestions about failures and limits, and measured savings.
//! - `optimizer_trial`: trials of a cheaper model on stored inputs.
//! - `origins`: the origin of calls at `/v1`; sessions, loops and subscriptions.
//! - `overload`: more clients than connections, threads or descriptors.
//! - `overview`: sums of a period in a time zone, failures, and what runs now.
//! - `page`: the page as a user sees it: frame, addresses, keyboard, token, connection.
//! - `page_access`: every view is accessible by axe's rules, and fits a phone.
//! - `page_budgets`: budgets in the page: spent and held amounts, faults of the form.
//! - `page_calls`: the view of calls: filters, panel, keyboard, live rows.
//! - `page_connect`: keys, providers, models with prices, and set-ups of clients.
//! - `page_files`: the page's files over HTTP: encodings and caching.
//! - `page_flows`: the views of flows: list, new flows, editor, inputs, triggers.
//! - `page_load`: the requests, bytes and elements of views with many flows and calls.
//! - `page_graph`: the drawn graph has exactly the edges of the document.
//! - `page_live`: the live connection in pages of other sites.
//! - `page_runs`: runs in the page: live output, attempts, items, retry and lists.
//! - `page_tasks`: everyday tasks in three clicks: by mouse, touch and keyboard.
//! - `pools`: several keys and models, and providers that are down.
//! - `prices`: the price of a row, current estimates, and user prices.
//! - `prompt_cache`: prefixes marked for a provider's prompt cache, and their highest cost.
//! - `providers`: provider answers, refusals and broken connections, and their ledger rows.
//! - `replay`: missed events arrive after `since`, once and in order.
//! - `response_cache`: a stored response is reused if a node allows it.
//! - `responses`: the end of a response, and bodies that no route reads.
//! - `retries`: failure handling of nodes: retries, fallbacks and substitutes.
//! - `runs`: exact messages of a run, failures, cancel and restart.
//! - `settings`: settings and models for the page, without secrets.
//! - `stored_responses`: the Responses API, stored objects and background responses.
//! - `triggers`: webhooks with their secrets and keys; schedules and missed times.
//! - `upgrade`: a database of the previous version opens and continues.
//! - `upstream`: a scripted provider over real sockets.
//! - `usage`: tokens and cost of each provider's answers.
//! - `verify`: `verify` finds every change made outside flowledger, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod access;
mod aimock;
mod bad_input;
mod binary;
mod bodies;
mod browser;
mod budget_bounds;
mod budgets;
mod calls;
mod calls_page;
mod client_answers;
mod client_batches;
mod client_bounds;
mod client_endpoints;
mod client_gemini;
mod client_kinds;
mod client_ollama;
mod client_routes;
mod client_streams;
mod clients;
mod command_line;
mod conformance;
mod counts;
mod disk;
mod docs;
mod events;
mod flow_events;
mod harness;
mod history;
mod hub;
mod interop;
mod invariants;
mod keys;
mod layers;
#[allow(dead_code)]
#[path = "../benches/ledger/fill.rs"]
mod ledger_rows;
mod limits;
mod lists;
mod maps;
mod networks;
mod nodes;
mod optimizer;
mod optimizer_fixture;
mod optimizer_models;
mod optimizer_rules;
mod optimizer_trial;
mod origins;
mod overload;
mod overview;
mod page;
mod page_access;
mod page_budgets;
mod page_calls;
mod page_connect;
mod page_files;
mod page_flows;
mod page_graph;
mod page_live;
mod page_load;
mod page_runs;
mod page_tasks;
mod pools;
mod prices;
mod prompt_cache;
mod providers;
mod replay;
mod response_cache;
mod responses;
mod retries;
mod runs;
mod settings;
mod stored_responses;
mod translation;
mod triggers;
mod upgrade;
mod upstream;
mod usage;
mod verify;
