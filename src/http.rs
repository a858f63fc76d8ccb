//! The page and the HTTP API, on `tiny_http`, behind the listener. The only user of that crate.
//!
//! One thread takes requests and gives each to a worker; a worker finds the route, and the route
//! answers with a [`Reply`].

mod assets;
mod budget;
mod flows;
mod hooks;
mod keys;
mod ledger;
mod metrics;
mod optimizations;
mod prices;
mod reply;
mod runs;
mod schedules;

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tiny_http::{Method, Request, Server};

pub use self::flows::check_document;
pub use self::ledger::ledger_csv;
use self::reply::{Failure, Query, Reply};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::flow::TEMPLATE_STACK_BYTES_MIN;
use crate::gateway::{Keys, Stats};
use crate::hub::Hub;
use crate::journal::Journal;
use crate::optimizer::Optimizer;
use crate::optimizer::trial::Trials;
use crate::providers::Providers;
use crate::scheduler::Scheduler;
use crate::store::Store;
use crate::threads::{OnFatal, Pool, panic_message, vital};

/// How many requests are worked on at a time: as many as the listener lets in.
const WORKERS_MAX: usize = 1_024;
/// Stack of a worker: reading the templates of a flow is its deepest work.
const STACK_BYTES: usize = TEMPLATE_STACK_BYTES_MIN;
/// The largest body; the listener lets no larger one through.
const BODY_BYTES_MAX: u64 = 4 << 20;
/// What routes work with.
pub struct Context {
    /// Questions.
    pub store: Arc<Store>,
    /// Changes.
    pub journal: Journal,
    /// Runs.
    pub engine: Engine,
    /// Told when a schedule changes.
    pub scheduler: Scheduler,
    /// Told when a flow changes.
    pub optimizer: Optimizer,
    /// What tries suggestions.
    pub trials: Arc<Trials>,
    /// What calls cost.
    pub providers: Arc<Providers>,
    /// How many clients there are.
    pub hub: Hub,
    /// Keys of the gateway's clients.
    pub keys: Arc<Keys>,
    /// How many requests of theirs were answered.
    pub gateway: Arc<Stats>,
    /// Origins of other pages that may use the API.
    pub origins: Vec<String>,
    /// When the server started.
    pub started: Instant,
}

/// The HTTP server, for who stops it.
pub struct Http {
    stopping: Arc<AtomicBool>,
    server: Arc<Server>,
    thread: JoinHandle<()>,
}

impl Http {
    /// Serves requests from `listener`.
    pub fn start(listener: UnixListener, context: Context, on_fatal: OnFatal) -> Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        let server = Server::from_listener(listener, None)
            .map(Arc::new)
            .map_err(|error| Error::internal(format!("the HTTP server does not start: {error}")))?;
        let acceptor = Acceptor {
            server: Arc::clone(&server),
            context: Arc::new(context),
            stopping: Arc::clone(&stopping),
            pool: Pool::new("http", WORKERS_MAX, STACK_BYTES),
            on_fatal: Arc::clone(&on_fatal),
        };
        let thread = vital("http", on_fatal, move || acceptor.run())?;
        Ok(Self {
            stopping,
            server,
            thread,
        })
    }

    /// Takes no more requests, and waits for those under way.
    pub fn stop(self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.server.unblock();
        let _ = self.thread.join();
    }
}

/// How long requests under way may take once the server stops.
const STOP_TIME_MAX: Duration = Duration::from_millis(500);

struct Acceptor {
    server: Arc<Server>,
    context: Arc<Context>,
    stopping: Arc<AtomicBool>,
    pool: Pool,
    on_fatal: OnFatal,
}

impl Acceptor {
    /// Takes requests until the server is stopped. tiny_http's own accepting thread ends for good
    /// at its first error; the listener keeps descriptors back so that there is none, and a server
    /// that can take no requests any more ends, so that whoever started it can start it again.
    fn run(self) {
        while !self.stopping.load(Ordering::SeqCst) {
            match self.server.recv() {
                Ok(request) => self.hand_over(request),
                Err(_) if self.stopping.load(Ordering::SeqCst) => break,
                Err(error) => {
                    log::error!("no more requests can be taken: {error}");
                    (self.on_fatal)("http");
                    break;
                }
            }
        }
        self.pool.join(Instant::now() + STOP_TIME_MAX);
    }

    fn hand_over(&self, request: Request) {
        let context = Arc::clone(&self.context);
        // A request that no worker takes is dropped, which tiny_http answers with 500; the listener
        // lets no more in than there are workers, so that it does not come to that.
        if let Err(error) = self.pool.run(Box::new(move || answer(&context, request))) {
            log::error!("a request is not answered: {error}");
        }
    }
}

fn answer(context: &Context, mut request: Request) {
    let is_allowed = |origin: &String| {
        let mut allowed = context.origins.iter();
        allowed.any(|allowed| allowed.eq_ignore_ascii_case(origin))
    };
    let origin = header(&request, "origin").filter(is_allowed);
    let reply = catch_unwind(AssertUnwindSafe(|| reply_to(context, &mut request)))
        .unwrap_or_else(|panic| {
            let message = panic_message(panic.as_ref());
            log::error!("{} {}: panic: {message}", request.method(), request.url());
            Err(Error::internal("the request could not be answered").into())
        })
        .unwrap_or_else(Failure::into_reply);
    let reply = match origin {
        Some(origin) => reply.for_origin(&origin),
        None => reply,
    };
    if let Err(error) = reply.send(request) {
        log::debug!("an answer was not taken: {error}");
    }
}

fn header(request: &Request, name: &'static str) -> Option<String> {
    headers(request, name).next()
}

fn headers(request: &Request, name: &'static str) -> impl Iterator<Item = String> {
    let all = request.headers().iter();
    all.filter(move |header| header.field.equiv(name))
        .map(|header| header.value.as_str().to_owned())
}

fn reply_to(context: &Context, request: &mut Request) -> std::result::Result<Reply, Failure> {
    let mut body = Vec::new();
    request
        .as_reader()
        .take(BODY_BYTES_MAX)
        .read_to_end(&mut body)
        .map_err(Error::io("the request's body cannot be read"))?;
    // tiny_http takes the end of the stream for the end of the body: a client that was gone in
    // the middle of its request did not ask for what the first half of it says.
    if request
        .body_length()
        .is_some_and(|length| body.len() < length)
    {
        return Err(Failure::new(400, "bad_request", "the body is incomplete"));
    }
    let url = request.url().to_owned();
    let (path, query) = url.split_once('?').unwrap_or((&url, ""));
    let query = Query::parse(query);
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let method = match request.method() {
        Method::Head => Method::Get,
        method => method.clone(),
    };
    if method == Method::Options {
        return Ok(Reply::preflight());
    }
    use Method::{Delete, Get, Post, Put};
    match (segments.as_slice(), method) {
        ([""], Get) => assets::page(),
        (["favicon.ico"], Get) => assets::file("icon.svg"),
        (["assets", name], Get) => assets::file(name),
        (["api", "health"], Get) => Ok(health(context)),
        (["metrics"], Get) => Ok(metrics::text(context)),
        (["api", "flows"], Get) => flows::list(context, query),
        (["api", "flows"], Post) => flows::create(context, &body),
        (["api", "flows", id], Get) => flows::get(context, flow_id(id)?),
        (["api", "flows", id], Put) => flows::replace(context, flow_id(id)?, &body),
        (["api", "flows", id], Delete) => flows::delete(context, flow_id(id)?),
        (["api", "flows", id, "execute"], Post) => {
            runs::execute(context, flow_id(id)?, query, &body)
        }
        (["api", "flows", id, "estimate"], Post) => runs::estimate(context, flow_id(id)?, &body),
        (["api", "flows", id, "status"], Get) => runs::status(context, flow_id(id)?),
        (["api", "flows", id, "hook"], Put) => {
            hooks::set(context, flow_id(id)?, &hooks::base_url(request))
        }
        (["api", "flows", id, "hook"], Get) => {
            hooks::get(context, flow_id(id)?, &hooks::base_url(request))
        }
        (["api", "flows", id, "hook"], Delete) => hooks::delete(context, flow_id(id)?),
        (["hooks", slug], Post) => {
            hooks::deliver(context, slug, hooks::Envelope::of(request), &body)
        }
        (["api", "flows", id, "schedule"], Put) => schedules::set(context, flow_id(id)?, &body),
        (["api", "flows", id, "schedule"], Get) => schedules::get(context, flow_id(id)?),
        (["api", "flows", id, "schedule"], Delete) => schedules::delete(context, flow_id(id)?),
        (["api", "runs"], Get) => runs::list(context, query),
        (["api", "runs", id], Get) => runs::get(context, id),
        (["api", "runs", id], Delete) => runs::delete(context, id),
        (["api", "runs", id, "cancel"], Post) => runs::cancel(context, id),
        (["api", "runs", id, "resume"], Post) => runs::resume(context, id),
        (["api", "ledger"], Get) => ledger::list(context, query),
        (["api", "ledger", "summary"], Get) => ledger::summary(context, query),
        (["api", "ledger.csv"], Get) => ledger::csv(context, query),
        (["api", "ledger", "optimizations"], Get) => optimizations::list(context, query),
        (["api", "ledger", "optimizations", id], Get) => {
            optimizations::get(context, suggestion_id(id)?, query)
        }
        (["api", "ledger", "optimizations", id, "apply"], Post) => {
            optimizations::apply(context, suggestion_id(id)?, &body)
        }
        (["api", "ledger", "optimizations", id, "revert"], Post) => {
            optimizations::revert(context, suggestion_id(id)?)
        }
        (["api", "ledger", "optimizations", id, "dismiss"], Post) => {
            optimizations::dismiss(context, suggestion_id(id)?)
        }
        (["api", "ledger", "optimizations", id, "trial"], Post) => {
            optimizations::trial(context, suggestion_id(id)?, &body)
        }
        (["api", "prices"], Get) => prices::find(context, query),
        (["api", "prices", id], Get) => prices::get(context, id),
        (["api", "keys"], Get) => keys::list(context),
        (["api", "keys"], Post) => keys::create(context, &body),
        (["api", "keys", id], Delete) => keys::delete(context, id, query),
        (["api", "budget"], Get) => budget::get(context),
        (["api", "budget"], Put) => {
            let if_match = header(request, "if-match");
            budget::set(context, &body, if_match.as_deref())
        }
        (segments, _) => Err(match allowed(segments) {
            Some(allow) => Failure::method_not_allowed(request.method().as_str(), path, allow),
            None => Error::NotFound(format!("route {path}")).into(),
        }),
    }
}

/// The methods of a route that exists; none for one that does not.
fn allowed(segments: &[&str]) -> Option<&'static str> {
    Some(match segments {
        [""] | ["favicon.ico"] | ["assets", _] | ["api", "health"] | ["metrics"] => "GET",
        ["api", "flows"] | ["api", "keys"] => "GET, POST",
        ["api", "keys", _] => "DELETE",
        ["api", "flows", _] => "GET, PUT, DELETE",
        ["api", "flows", _, "execute" | "estimate"] | ["api", "runs", _, "cancel" | "resume"] => {
            "POST"
        }
        ["api", "runs", _] => "GET, DELETE",
        ["api", "flows", _, "hook" | "schedule"] => "GET, PUT, DELETE",
        ["hooks", _] => "POST",
        ["api", "flows", _, "status"] | ["api", "runs"] => "GET",
        ["api", "ledger"] | ["api", "ledger", "summary"] | ["api", "ledger.csv"] => "GET",
        ["api", "ledger", "optimizations"] | ["api", "ledger", "optimizations", _] => "GET",
        [
            "api",
            "ledger",
            "optimizations",
            _,
            "apply" | "revert" | "dismiss" | "trial",
        ] => "POST",
        ["api", "prices"] | ["api", "prices", _] => "GET",
        ["api", "budget"] => "GET, PUT",
        _ => return None,
    })
}

fn flow_id(text: &str) -> Result<i64> {
    text.parse()
        .map_err(|_| Error::NotFound(format!("flow `{text}`; a flow's id is a number")))
}

fn suggestion_id(text: &str) -> Result<i64> {
    text.parse()
        .map_err(|_| Error::NotFound(format!("suggestion `{text}`; its id is a number")))
}

fn health(context: &Context) -> Reply {
    Reply::json(
        200,
        &serde_json::json!({
            "status": "ok",
            "version": env!("CARGO_PKG_VERSION"),
            "uptimeMs": u64::try_from(context.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "clients": context.hub.stats().clients.load(Ordering::Relaxed),
        }),
    )
}
