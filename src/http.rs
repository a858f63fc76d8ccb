//! The page and the HTTP API, served on the threads of the listener's connections. Only this
//! module uses `tiny_http`: its types for methods, headers and responses, and its output of
//! responses with known length.

mod assets;
mod bodies;
mod budget;
mod calls_page;
mod end_users;
mod flow_list;
mod flow_names;
mod flows;
mod heavy_reads;
mod hooks;
mod keys;
mod ledger;
mod metrics;
mod models;
mod optimizations;
mod overview;
mod prices;
mod providers;
mod reply;
mod request;
mod routes;
mod runs;
mod schedules;
mod settings;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tiny_http::ResponseBox;

pub use self::flow_list::FlowFacts;
pub use self::flows::check_document;
pub use self::heavy_reads::HeavyReads;
pub use self::ledger::ledger_csv;
pub use self::runs::run_json;
pub use self::settings::Settings;
use crate::engine::Engine;
use crate::error::Error;
use crate::gateway::{Keys, Stats};
use crate::hub::Hub;
use crate::journal::Journal;
use crate::listener::{RequestBody, RequestHandler, RequestHead, ResponseWriter};
use crate::optimizer::Optimizer;
use crate::optimizer::trial::Trials;
use crate::providers::Providers;
use crate::scheduler::Scheduler;
use crate::secret::Secret;
use crate::store::{EndUsers, Store};
use crate::threads::panic_message;

pub struct Context {
    /// The listener checks it; the page decides by it what it may show at a public address.
    pub token: Option<Secret>,
    pub store: Arc<Store>,
    pub journal: Journal,
    pub engine: Engine,
    pub scheduler: Scheduler,
    pub optimizer: Optimizer,
    pub trials: Arc<Trials>,
    pub providers: Arc<Providers>,
    pub hub: Hub,
    pub keys: Arc<Keys>,
    pub end_users: EndUsers,
    pub gateway: Arc<Stats>,
    pub started: Instant,
    pub settings: Settings,
    pub heavy_reads: HeavyReads,
    pub flow_facts: FlowFacts,
}

/// Answers all requests that no other handler accepts.
impl RequestHandler for Context {
    fn takes(&self, _: &RequestHead) -> bool {
        true
    }

    fn answer(
        &self,
        head: &RequestHead,
        body: &mut RequestBody<'_>,
        response: &mut ResponseWriter<'_>,
    ) {
        let client = response.presence();
        let answer = catch_unwind(AssertUnwindSafe(|| routes::answer(self, head, body, client)));
        let answered = answer
            .unwrap_or_else(|panic| {
                let message = panic_message(panic.as_ref());
                log::error!("{} {}: panic: {message}", head.method, head.target);
                Err(Error::internal("the request failed; see the server's log").into())
            })
            .unwrap_or_else(reply::error);
        reply::send(reply::compressed(answered, head), head, response);
    }
}

fn health(context: &Context) -> ResponseBox {
    let view = serde_json::json!({
        "status": "ok",
        "version": env!("CARGO_PKG_VERSION"),
        "uptimeMs": u64::try_from(context.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "clients": context.hub.stats().clients.load(Ordering::Relaxed),
    });
    reply::json(200, &view)
}
