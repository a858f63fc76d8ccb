//! Connects all parts; `main` and the tests start the same server.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use socket2::{Domain, Protocol, Socket, Type};

use crate::calls::Calls;
use crate::config::Config;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::gateway::{Gateway, Keys, Stats};
use crate::http::{self, FlowFacts, HeavyReads};
use crate::hub::{Hub, Message, Publish};
use crate::ids::Seq;
use crate::journal::Journal;
use crate::listener::{Auth, Listener, RequestHandler, Rules};
use crate::optimizer::trial::Trials;
use crate::optimizer::{Optimizer, WakeSignal};
use crate::prices::Prices;
use crate::providers::Providers;
use crate::scheduler::Scheduler;
use crate::store::{Change, EndUsers, NewFlow, Store};
use crate::threads::OnFatal;
use crate::time::Timestamp;
use crate::websocket::{HubClients, Limits, Sockets};

/// Flows saved for new users; they need no key and no network.
const EXAMPLES: &[&str] = &[
    include_str!("../assets/page/templates/plan-then-write.json"),
    include_str!("../assets/page/templates/two-views.json"),
];

/// Limits how long the engine may take to end.
const ENGINE_END_MAX: Duration = Duration::from_millis(1_500);
/// Limits how long the hub may take to end. It closes all clients within a second.
const HUB_END_MAX: Duration = Duration::from_millis(1_500);
const CLIENTS_END_MAX: Duration = Duration::from_millis(2_500);
const PART_END_MAX: Duration = Duration::from_millis(500);
/// Limits all parts together, so that a shutdown takes at most five seconds.
const SHUTDOWN_MAX: Duration = Duration::from_secs(4);
/// Limits the connections that wait to be accepted; the system may allow fewer.
const LISTEN_QUEUE: i32 = 4_096;
const JOIN_POLL: Duration = Duration::from_millis(2);

/// All parts except the network: store, journal, hub, providers, engine.
pub struct Core {
    /// Wakes the optimizer, which starts later if it is enabled.
    wake_signal: WakeSignal,
    pub store: Arc<Store>,
    pub journal: Journal,
    pub hub: Hub,
    pub providers: Arc<Providers>,
    pub calls: Calls,
    pub engine: Engine,
    /// Threads of the hub, the journal and the engine.
    threads: [JoinHandle<()>; 3],
}

fn fatal_channel() -> (OnFatal, Receiver<String>) {
    let (sender, receiver): (Sender<String>, _) = bounded(8);
    let on_fatal: OnFatal = Arc::new(move |name: &str| drop(sender.try_send(name.to_owned())));
    (on_fatal, receiver)
}

/// Passes committed events to the hub and to a receiver within the process.
struct Tee {
    hub: Hub,
    tap: Sender<Message>,
}

impl Publish for Tee {
    fn publish(&self, messages: Vec<Message>, oldest: Option<Seq>) {
        for message in &messages {
            let _ = self.tap.send(message.clone());
        }
        self.hub.publish(messages, oldest);
    }
}

impl Core {
    /// Opens the database and recovers the state of an earlier process. `tap` receives every
    /// committed event, like the hub; with `resume_runs`, runs of an earlier process continue.
    pub fn start(
        config: &Config,
        tap: Option<Sender<Message>>,
        resume_runs: bool,
        on_fatal: &OnFatal,
    ) -> Result<Self> {
        // First, so that invalid prices change nothing on disk.
        let mut prices = Prices::built_in();
        if let Some(path) = &config.prices {
            prices = prices.with_own(path)?;
        }
        let (store, writer) = Store::open(&config.data)?;
        let store = Arc::new(store);
        let (newest, oldest) = (writer.newest_seq(), writer.oldest_seq()?);
        let epochs = writer.epochs().clone();
        let (hub, hub_thread) = Hub::start(newest, oldest, epochs, Arc::clone(on_fatal))?;
        let publisher: Box<dyn Publish> = match tap {
            Some(tap) => Box::new(Tee { hub: hub.clone(), tap }),
            None => Box::new(hub.clone()),
        };
        let wake_signal = WakeSignal::default();
        let publisher = Box::new(wake_signal.watch(publisher));
        let (journal, journal_thread) =
            Journal::start(writer, publisher, config.retention, Arc::clone(on_fatal))?;
        let providers = Providers::new(config.providers.clone(), config.timeouts)
            .with_rates(config.rates.clone())
            .with_pools(config.pools.clone(), &config.key_names, config.health);
        let providers = providers.with_fetch_rules(config.fetch_rules.clone());
        let providers = providers.with_failed_call_costs(config.failed_call_costs);
        let providers = Arc::new(providers.with_prices(prices));
        let calls = Calls::start(Arc::clone(&store), journal.clone(), Arc::clone(&providers))?;
        let (engine, engine_thread) = Engine::start(
            Arc::clone(&store),
            journal.clone(),
            hub.clone(),
            calls.clone(),
            config.engine,
            resume_runs,
            Arc::clone(on_fatal),
        )?;
        let threads = [hub_thread, journal_thread, engine_thread];
        let core = Self { wake_signal, store, journal, hub, providers, calls, engine, threads };
        if core.store.has_never_had_a_flow()? {
            save_examples(&core)?;
        }
        Ok(core)
    }

    /// Ends all parts in order and closes the database. Running calls are stopped; their runs
    /// continue at the next start.
    pub fn shutdown(self) {
        let store = Arc::clone(&self.store);
        if self.end_parts(Instant::now() + SHUTDOWN_MAX) {
            store.close();
        }
    }

    /// Returns whether the journal has ended, so that nothing writes any more. It may take until
    /// `deadline`, because the disk may be slow.
    fn end_parts(self, deadline: Instant) -> bool {
        let [hub, journal, engine] = self.threads;
        self.engine.shutdown();
        join(engine, "engine", ENGINE_END_MAX);
        self.calls.shutdown(Instant::now() + PART_END_MAX);
        self.hub.shutdown();
        join(hub, "hub", HUB_END_MAX);
        self.journal.shutdown();
        let left = deadline.saturating_duration_since(Instant::now());
        join(journal, "journal", left.max(PART_END_MAX))
    }
}

pub struct Server {
    core: Core,
    scheduler: Scheduler,
    scheduler_thread: JoinHandle<()>,
    optimizer: Optimizer,
    optimizer_thread: JoinHandle<()>,
    trials: Arc<Trials>,
    gateway: Arc<Gateway>,
    listener: Listener,
    fatal: Receiver<String>,
}

impl Server {
    /// Starts all parts. The port accepts requests once this returns.
    pub fn start(config: &Config) -> Result<Self> {
        let started = Instant::now();
        let (on_fatal, fatal) = fatal_channel();
        config.check_exposure()?;
        config.check_pools()?;
        // First, so that a port in use changes nothing on disk.
        let listener = bind_public(config.listen)
            .map_err(Error::io(format!("cannot listen on {}", config.listen)))?;
        let core = Core::start(config, None, true, &on_fatal)?;
        let (scheduler, scheduler_thread) = Scheduler::start(
            Arc::clone(&core.store),
            core.journal.clone(),
            core.engine.clone(),
            Arc::clone(&on_fatal),
        )?;
        let (optimizer, optimizer_thread) = Optimizer::start(
            &core.wake_signal,
            Arc::clone(&core.store),
            core.journal.clone(),
            Arc::clone(&core.providers),
            Arc::clone(&on_fatal),
        )?;
        let trials = Arc::new(Trials::new(Arc::clone(&core.store), core.calls.clone()));
        let keys = Arc::new(Keys::load(&core.store, core.journal.clone())?);
        let stats = Arc::<Stats>::default();
        let gateway = Arc::new(Gateway::start(
            config.gateway.clone(),
            config.token.clone(),
            Arc::clone(&keys),
            Arc::clone(&core.store),
            core.calls.clone(),
            Arc::clone(&stats),
        )?);
        let http = Arc::new(http::Context {
            store: Arc::clone(&core.store),
            journal: core.journal.clone(),
            engine: core.engine.clone(),
            scheduler: scheduler.clone(),
            optimizer: optimizer.clone(),
            trials: Arc::clone(&trials),
            providers: Arc::clone(&core.providers),
            hub: core.hub.clone(),
            keys,
            end_users: EndUsers::load(&core.store, config.gateway.hash_end_users)?,
            gateway: stats,
            started,
            settings: http::Settings {
                retention: config.retention,
                is_token_required: config.token.is_some(),
                hashes_end_users: config.gateway.hash_end_users,
                alias_models: config.gateway.alias_models(),
            },
            token: config.token.clone(),
            heavy_reads: HeavyReads::default(),
            flow_facts: FlowFacts::default(),
        });
        let handlers: Vec<Arc<dyn RequestHandler>> = vec![gateway.clone(), http];
        let listener = listen(config, &core, listener, handlers, on_fatal)?;
        Ok(Self {
            core,
            scheduler,
            scheduler_thread,
            optimizer,
            optimizer_thread,
            trials,
            gateway,
            listener,
            fatal,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    pub fn core(&self) -> &Core {
        &self.core
    }

    /// Returns the channel that receives the name of a vital thread that has ended.
    pub fn fatal(&self) -> &Receiver<String> {
        &self.fatal
    }

    /// Shuts the server down within five seconds: accepts no new connections, stops running calls,
    /// closes clients with 1001 and commits everything.
    pub fn shutdown(self) {
        let began = Instant::now();
        self.listener.stop_accepting();
        self.scheduler.shutdown();
        self.optimizer.shutdown();
        self.trials.stop();
        join(self.scheduler_thread, "scheduler", PART_END_MAX);
        join(self.optimizer_thread, "optimizer", PART_END_MAX);
        // Before the journal ends, because it settles the stopped calls.
        let calls_end = Instant::now() + PART_END_MAX;
        let left = self.gateway.shutdown(calls_end);
        if left > 0 {
            log::warn!("{left} gateway calls did not finish before the shutdown deadline");
        }
        let left = self.trials.wait_for_all(calls_end);
        if left > 0 {
            log::warn!("{left} trials did not finish before the shutdown deadline");
        }
        let store = Arc::clone(&self.core.store);
        let is_written = self.core.end_parts(began + SHUTDOWN_MAX);
        let deadline = (Instant::now() + CLIENTS_END_MAX).min(began + SHUTDOWN_MAX);
        let left = self.listener.join(deadline);
        if left > 0 {
            log::warn!("{left} connections did not close before the shutdown deadline");
        }
        // Last, because requests that are still answered read from it.
        if is_written {
            store.close();
        }
    }
}

fn listen(
    config: &Config,
    core: &Core,
    listener: TcpListener,
    handlers: Vec<Arc<dyn RequestHandler>>,
    on_fatal: OnFatal,
) -> Result<Listener> {
    let rules = Rules {
        access: Auth {
            token: config.token.clone(),
            hosts: config.allow_hosts.clone(),
            origins: config.allow_origins.clone(),
        },
        connections_per_address: config.connections_per_address,
    };
    let clients = HubClients { hub: core.hub.clone(), store: Arc::clone(&core.store) };
    let sockets =
        Sockets { handler: Arc::new(clients), pings: config.pings, limits: Limits::default() };
    Listener::start(listener, handlers, rules, sockets, on_fatal)
}

/// Binds like `TcpListener::bind`, but with a longer queue: std's holds 128 connections that are
/// not accepted yet, too few if a thousand clients reconnect at once.
fn bind_public(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Allows a port with lingering old connections, like std.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_QUEUE)?;
    Ok(socket.into())
}

fn save_examples(core: &Core) -> Result<()> {
    let at = Timestamp::now();
    let mut changes = Vec::new();
    for text in EXAMPLES {
        let body =
            serde_json::from_str(text).map_err(|error| Error::internal(error.to_string()))?;
        let check = |data: &serde_json::Value| core.engine.parse(data).map(drop);
        let (name, document) = http::check_document(body, &check)?;
        changes.push(Change::CreateFlow(NewFlow { name, document, origin: None, at }));
    }
    core.journal.commit(changes).map(drop)
}

/// Waits for a thread for at most `time_max`: a part that hangs is logged and does not block the
/// rest. Returns whether the thread has ended.
fn join(thread: JoinHandle<()>, name: &str, time_max: Duration) -> bool {
    let deadline = Instant::now() + time_max;
    while !thread.is_finished() {
        if Instant::now() >= deadline {
            log::error!("the {name} thread did not stop before the shutdown deadline");
            return false;
        }
        thread::sleep(JOIN_POLL);
    }
    let _ = thread.join();
    true
}
