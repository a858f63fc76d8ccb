//! The work of one node: render the prompt, commit the intent, make the call.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::unit::Unit;
use crate::budget::Reserve;
use crate::calls::{
    self, CallOutcome, CallRequest, CallResources, Calls, Ended, Exchanged, FillGuard, Filled,
    Prepared, PromptSize, Waiter, prompt_hash,
};
use crate::event::{Attribution, Event};
use crate::flow::{
    self, Agent, Graph, Http, Node, NodeKind, RenderError, Scope, Watch, constant_beginning, render,
};
use crate::hub::Hub;
use crate::journal::Journal;
use crate::providers::{CacheMarks, Call, Cancel, Failure, FailureKind, Fetch, KeyChoice};
use crate::store::{Change, NewCall, NodeRef, Prompt};
use crate::threads::panic_message;
use crate::time::Timestamp;

/// The shortest time between two messages of streamed text: at most 20 a second for each node.
const OUTPUT_INTERVAL: Duration = Duration::from_millis(50);

/// Limits the text of one message to a small part of a client's queue.
const OUTPUT_BYTES_MAX: usize = 64 << 10;

/// Limits the time for rendering the templates of one node.
const RENDERING_TIME_MAX: Duration = Duration::from_secs(10);
const RENDERING_CANCELLED: &str = "the run was cancelled";

pub struct JobItem {
    pub values: Arc<Vec<Value>>,
    pub index: usize,
}

pub struct Job {
    pub unit: Unit,
    pub item: Option<JobItem>,
    pub at: NodeRef,
    pub graph: Arc<Graph>,
    pub input: Arc<Value>,
    /// Outputs of finished nodes by id.
    pub outputs: Vec<(String, NodeOutput)>,
    /// The index of the target that an agent calls.
    pub target: usize,
    /// The permit for its call, if a deferred attempt obtained one.
    pub resources: Option<CallResources>,
    pub cancel: Cancel,
    /// Changes of the run that are committed together with the intent.
    pub carried: Vec<Change>,
}

#[derive(Clone, Debug)]
pub enum NodeOutput {
    /// The text output; empty for a skipped node.
    Text(Arc<str>),
    Flag(bool),
    List(Arc<Value>),
    Input,
}

impl NodeOutput {
    /// Returns the empty output of a skipped node.
    pub fn skipped(node: &Node) -> Self {
        match node.kind {
            NodeKind::Map(_) => Self::List(Arc::new(Value::Array(Vec::new()))),
            _ => Self::Text(Arc::default()),
        }
    }

    pub fn of(node: &Node, text: &Arc<str>) -> Self {
        match node.kind {
            NodeKind::Condition(_) => Self::Flag(&**text == "true"),
            NodeKind::Map(_) => {
                Self::List(Arc::new(serde_json::from_str(text).unwrap_or_default()))
            }
            NodeKind::Input(_) => Self::Input,
            _ => Self::Text(Arc::clone(text)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    None,
    /// Call another provider or model.
    AnotherTarget,
    /// Try again, or call another target.
    Again {
        /// The wait that the provider asked for.
        retry_after: Option<Duration>,
    },
}

pub enum Outcome {
    Finished {
        output: Arc<str>,
        latency_ms: u64,
        at: Timestamp,
        cached: bool,
        unwritten: Vec<Change>,
    },
    /// The items of a map are known.
    Listed {
        items: Vec<Value>,
        unwritten: Vec<Change>,
    },
    /// The call has to wait for its rate limit or for an identical call.
    Deferred {
        wait: Duration,
        resources: Option<CallResources>,
        unwritten: Vec<Change>,
    },
    Failed {
        error: String,
        cancelled: bool,
        unwritten: Vec<Change>,
        remedy: Remedy,
    },
}

impl Outcome {
    fn finished(
        output: impl Into<Arc<str>>,
        latency_ms: u64,
        cached: bool,
        unwritten: Vec<Change>,
    ) -> Self {
        let (output, at) = (output.into(), Timestamp::now());
        Self::Finished { output, latency_ms, at, cached, unwritten }
    }

    fn failed(error: impl Into<String>, unwritten: Vec<Change>) -> Self {
        Self::failed_with(error, unwritten, Remedy::None)
    }

    fn failed_with(error: impl Into<String>, unwritten: Vec<Change>, remedy: Remedy) -> Self {
        Self::Failed { error: error.into(), cancelled: false, unwritten, remedy }
    }

    /// A template of the job that was not rendered.
    fn not_rendered(job: &Job, error: &RenderError, unwritten: Vec<Change>) -> Self {
        let (error, remedy) = (error.to_string(), Remedy::None);
        Self::Failed { error, cancelled: job.cancel.is_cancelled(), unwritten, remedy }
    }

    /// Returns whether the call was stopped by [`Cancel`].
    pub fn was_cancelled(&self) -> bool {
        matches!(self, Self::Failed { cancelled: true, .. })
    }

    /// Returns the changes of a call that was cancelled because the server stops. Its usage is
    /// kept, and its node runs again at the next start.
    pub fn interrupted(self) -> Vec<Change> {
        match self {
            Self::Failed { unwritten, .. } if has_settlement(&unwritten) => {
                calls::interrupted(unwritten)
            }
            _ => Vec::new(),
        }
    }
}

fn has_settlement(changes: &[Change]) -> bool {
    let mut changes = changes.iter();
    changes.any(|change| matches!(change, Change::SettleCall(_)))
}

impl Job {
    /// Returns a function that makes the outcome of a job that could not run, for example without
    /// a thread.
    pub fn cannot_run(&self) -> impl FnOnce(String) -> Outcome + use<> {
        let mut unwritten = self.carried.clone();
        unwritten.push(self.start(None));
        move |error| Outcome::failed(error, unwritten)
    }

    fn start(&self, call: Option<&Call>) -> Change {
        Change::StartNode {
            node: self.at.clone(),
            prompt: call
                .map(|call| Prompt { prompt: call.prompt.clone(), system: call.system.clone() }),
            at: Timestamp::now(),
        }
    }

    fn scope(&self) -> Scope {
        let outputs = self.outputs.iter().map(|(id, output)| {
            let output = match output {
                NodeOutput::Text(text) => flow::Output::Text(text),
                NodeOutput::Flag(flag) => flow::Output::Flag(*flag),
                NodeOutput::List(list) => flow::Output::List(list),
                NodeOutput::Input => flow::Output::Input,
            };
            (id.as_str(), output)
        });
        let scope = Scope::new(&self.input, outputs).with_watch(Some(self.watch()));
        match &self.item {
            Some(item) => scope.with_item(&item.values[item.index], item.index),
            None => scope,
        }
    }

    /// Stops a rendering that takes too long or whose run is cancelled.
    fn watch(&self) -> Watch {
        let (cancel, until) = (self.cancel.clone(), Instant::now() + RENDERING_TIME_MAX);
        Watch::new(move || {
            if cancel.is_cancelled() {
                return Some(RENDERING_CANCELLED);
            }
            (Instant::now() > until).then_some("rendering the template takes more than 10 seconds")
        })
    }

    fn call(&self, agent: &Agent) -> Result<Call, RenderError> {
        let scope = self.scope();
        let target = &agent.targets[self.target];
        let fill = |source: &str| render(source, &scope);
        let system = agent.system.as_deref().map(fill).transpose()?;
        let prompt = fill(&agent.prompt)?;
        Ok(Call {
            provider: target.provider.clone(),
            model: target.model.clone(),
            cache_marks: cache_marks(agent, &prompt),
            key: None,
            system,
            prompt,
            max_tokens: agent.max_tokens,
            temperature: agent.temperature,
            stream: agent.stream,
            first_byte_timeout: agent.first_token_timeout,
            total_timeout: agent.total_timeout,
        })
    }

    fn request(&self, http: &Http) -> Result<Fetch, RenderError> {
        let scope = self.scope();
        let fill = |(name, value): &(String, String)| Ok((name.clone(), render(value, &scope)?));
        let body = http.body.as_deref();
        Ok(Fetch {
            method: http.method.clone(),
            url: render(&http.url, &scope)?.trim().to_owned(),
            headers: http.headers.iter().map(fill).collect::<Result<_, _>>()?,
            body: body.map(|body| render(body, &scope)).transpose()?,
            timeout: http.timeout,
        })
    }

    /// Returns an id that is the same for every attempt at this node or item in this run, even
    /// after a restart.
    fn operation_id(&self) -> String {
        let NodeRef { run_id, node_id, .. } = &self.at;
        match &self.item {
            Some(item) => format!("{run_id}:{node_id}[{}]", item.index),
            None => format!("{run_id}:{node_id}"),
        }
    }

    fn call_request<'a>(&self, agent: &Agent, call: &'a Call, calls: &Calls) -> CallRequest<'a> {
        CallRequest {
            call,
            row: NewCall {
                at: Timestamp::now(),
                flow_id: Some(self.at.flow_id),
                run_id: Some(self.at.run_id.clone()),
                node_id: Some(self.at.node_id.clone()),
                attempt: self.at.attempt,
                operation_id: self.operation_id(),
                provider: call.provider.clone(),
                model: call.model.clone(),
                role: agent.role.clone(),
                prompt_hash: prompt_hash(call),
                key_name: None,
                tags: None,
                attribution: Attribution::default(),
                billing: None,
                looping: None,
                reserve: Reserve::default(),
                bounds: None,
            },
            prompt: PromptSize::OfCall,
            cache: agent.cache_age.map(|age| (calls.cache_key(call), age)),
            has_own_key: false,
        }
    }
}

/// Returns the constant parts of an agent's texts, if the node wants prompt caching.
fn cache_marks(agent: &Agent, prompt: &str) -> CacheMarks {
    if !agent.prompt_cache {
        return CacheMarks::default();
    }
    let is_constant = |source| constant_beginning(source).1;
    let (beginning, _) = constant_beginning(&agent.prompt);
    // Rendering can change the beginning; then none of the prompt is marked.
    let begins_with_it = prompt.starts_with(&beginning);
    CacheMarks {
        system: agent.system.as_deref().is_some_and(is_constant),
        prompt_bytes: if begins_with_it { beginning.len() } else { 0 },
    }
}

/// Runs nodes. Clones share everything.
#[derive(Clone)]
pub struct Worker {
    pub journal: Journal,
    pub hub: Hub,
    pub calls: Calls,
}

impl Worker {
    pub fn run(&self, job: Job) -> Outcome {
        let after_panic = job.cannot_run();
        catch_unwind(AssertUnwindSafe(|| self.work(job))).unwrap_or_else(|panic| {
            let error = format!("internal error: {}", panic_message(panic.as_ref()));
            log::error!("{error}");
            after_panic(error)
        })
    }

    fn work(&self, mut job: Job) -> Outcome {
        let mut changes = std::mem::take(&mut job.carried);
        let resources = job.resources.take();
        let graph = Arc::clone(&job.graph);
        let kind = &graph.nodes()[job.unit.node].kind;
        match kind {
            NodeKind::Agent(agent) => return self.call_model(&job, agent, resources, changes),
            NodeKind::Map(map) if job.item.is_some() => {
                return self.call_model(&job, &map.agent, resources, changes);
            }
            _ => changes.push(job.start(None)),
        }
        match kind {
            NodeKind::Http(http) => self.fetch(&job, http, changes),
            NodeKind::Map(map) => match flow::items(&map.items, &job.scope()) {
                Ok(items) => Outcome::Listed { items, unwritten: changes },
                Err(error) => Outcome::not_rendered(&job, &error, changes),
            },
            NodeKind::Agent(_) | NodeKind::Input(_) => {
                Outcome::finished(job.input.to_string(), 0, false, changes)
            }
            NodeKind::Condition(template)
            | NodeKind::Template(template)
            | NodeKind::Output(template) => match render(template, &job.scope()) {
                Ok(text) => Outcome::finished(text, 0, false, changes),
                Err(error) => Outcome::not_rendered(&job, &error, changes),
            },
        }
    }

    /// Makes an agent's call. `changes` are committed with its intent.
    fn call_model(
        &self,
        job: &Job,
        agent: &Agent,
        resources: Option<CallResources>,
        mut changes: Vec<Change>,
    ) -> Outcome {
        let call = match job.call(agent) {
            Ok(call) => call,
            Err(error) => {
                changes.push(job.start(None));
                return Outcome::not_rendered(job, &error, changes);
            }
        };
        let request = job.call_request(agent, &call, &self.calls);
        let resources = match self.calls.prepare(&request, resources) {
            Prepared::Ready(resources) => resources,
            Prepared::Deferred { wait, resources, .. } => {
                return Outcome::Deferred { wait, resources, unwritten: changes };
            }
            Prepared::Over(end) => {
                changes.push(job.start(Some(&call)));
                changes.extend(end.changes);
                return ended(end.outcome, changes);
            }
        };
        changes.push(job.start(Some(&call)));
        let end = self.try_keys(job, agent, call, resources, changes);
        ended(end.outcome, end.changes)
    }

    /// Makes a call with a key of its provider, and at once with another one if that was refused.
    /// Each call has its own row; all belong to the same attempt of the node.
    fn try_keys(
        &self,
        job: &Job,
        agent: &Agent,
        mut call: Call,
        mut resources: CallResources,
        mut changes: Vec<Change>,
    ) -> Ended {
        let providers = self.calls.providers();
        let any_key = KeyChoice::Pool(&[]);
        let mut lease = providers
            .choose(&call.provider, any_key)
            .unwrap_or_else(|_| providers.choose_paused(&call.provider, any_key));
        let mut tried = Vec::new();
        loop {
            call.key = lease.key();
            let request = job.call_request(agent, &call, &self.calls);
            let exchange = |fill| self.exchange(job, &call, fill);
            let end = self.calls.make(&request, resources, changes, exchange);
            let Some(refused_key) = end.outcome.record(lease) else {
                return end;
            };
            tried.push(refused_key);
            let Ok(next) = providers.choose(&call.provider, KeyChoice::Pool(&tried)) else {
                return end;
            };
            let waiter = Waiter { cancel: &job.cancel, has_left: &|| false };
            resources = match self.calls.wait(&request, &waiter) {
                Ok(resources) => resources,
                Err(_) => return end,
            };
            (lease, changes) = (next, end.changes);
        }
    }

    fn exchange(&self, job: &Job, call: &Call, fill: Option<FillGuard>) -> Exchanged {
        // Viewers could not separate the chunks of several items.
        let is_shown = job.item.is_none();
        let mut output = OutputStream::new(&self.hub, &job.at, is_shown);
        let answer = self
            .calls
            .providers()
            .call(call, &job.cancel, &mut |delta| output.push(delta))
            .map_err(Box::new);
        output.flush();
        let filled = fill.zip(answer.as_ref().ok()).map(|(fill, answer)| Filled {
            fill,
            output: answer.text.clone(),
            content_type: None,
        });
        (answer, filled)
    }

    /// Makes the request of an `http` node; its start is committed first.
    fn fetch(&self, job: &Job, http: &Http, changes: Vec<Change>) -> Outcome {
        let fetch = match job.request(http) {
            Ok(fetch) => fetch,
            Err(error) => return Outcome::not_rendered(job, &error, changes),
        };
        let fallback = changes.clone();
        if let Err(error) = self.journal.commit(changes) {
            let error =
                format!("the request was not sent, because its start could not be saved: {error}");
            return Outcome::failed(error, fallback);
        }
        match self.calls.providers().fetch(&fetch, &job.cancel) {
            Ok(fetched) => Outcome::finished(fetched.body, fetched.latency_ms, false, Vec::new()),
            Err(failure) => Outcome::Failed {
                error: failure.message,
                cancelled: failure.cancelled,
                unwritten: Vec::new(),
                remedy: if failure.is_transient {
                    let retry_after = failure.retry_after;
                    Remedy::Again { retry_after }
                } else {
                    Remedy::None
                },
            },
        }
    }
}

fn ended(outcome: CallOutcome, changes: Vec<Change>) -> Outcome {
    match outcome {
        CallOutcome::Answered(answer) => {
            Outcome::finished(answer.text, answer.latency_ms, false, changes)
        }
        CallOutcome::Cached(bought) => Outcome::finished(bought.output.as_str(), 0, true, changes),
        CallOutcome::Failed(failure) => failed(*failure, changes),
        CallOutcome::OverBudget(why)
        | CallOutcome::HeldBudget(why)
        | CallOutcome::NotConfigured(why) => {
            Outcome::failed_with(why, changes, Remedy::AnotherTarget)
        }
        CallOutcome::NotCommitted(error) => {
            let error =
                format!("the call was not sent, because it was not written to the ledger: {error}");
            Outcome::failed(error, changes)
        }
        CallOutcome::Panicked(error) => Outcome::failed(error, changes),
        // These occur only for callers that block.
        CallOutcome::RateLimited(_) | CallOutcome::SameCallTimeout | CallOutcome::Cancelled => {
            Outcome::failed("the call was not made", changes)
        }
    }
}

fn failed(failure: Failure, unwritten: Vec<Change>) -> Outcome {
    let cancelled = failure.kind == FailureKind::Cancelled;
    let remedy = if cancelled {
        Remedy::None
    } else if failure.is_transient() {
        let retry_after = failure.retry_after;
        Remedy::Again { retry_after }
    } else {
        Remedy::AnotherTarget
    };
    Outcome::Failed { error: failure.message, cancelled, unwritten, remedy }
}

/// Sends streamed text to viewers, merged to respect [`OUTPUT_INTERVAL`].
struct OutputStream<'a> {
    hub: &'a Hub,
    node: &'a NodeRef,
    is_shown: bool,
    text: String,
    sent_at: Option<Instant>,
}

impl<'a> OutputStream<'a> {
    fn new(hub: &'a Hub, node: &'a NodeRef, is_shown: bool) -> Self {
        Self { hub, node, is_shown, text: String::new(), sent_at: None }
    }

    fn push(&mut self, delta: &str) {
        if !self.is_shown {
            return;
        }
        self.text.push_str(delta);
        if self.sent_at.is_none_or(|at| at.elapsed() >= OUTPUT_INTERVAL) {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.text.is_empty() {
            return;
        }
        self.sent_at = Some(Instant::now());
        let text = std::mem::take(&mut self.text);
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.floor_char_boundary(OUTPUT_BYTES_MAX));
            rest = after;
            let context = self.node.context(Timestamp::now());
            // If the hub has ended, there are no viewers.
            let _ = self.hub.broadcast(&Event::NodeOutput { context, delta: piece.to_owned() });
        }
    }
}
