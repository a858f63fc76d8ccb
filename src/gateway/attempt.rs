//! One attempt at a client's call: one target, one ledger row.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::cache::{CACHED_FIELD, ClientLookup, Recording};
use super::chat_request::ChatRequest;
use super::echo::Shape;
use super::in_flight::{InFlightGuard, WATCH_INTERVAL};
use super::labels::Labels;
use super::protocol::{ErrorResponse, Protocol, Refusal};
use super::targets::Target;
use super::{Client, Gateway, tell};
use crate::budget::Reserve;
use crate::error::Error;
use crate::event::{RefusedBy, Timestamp};
use crate::listener::ResponseWriter;
use crate::providers::{
    Answer, AnswerHead, CacheMarks, Call, Cancel, ClientKey, Failure, FailureKind, Forward,
    ForwardError, Kind, ResponseSink,
};
use crate::response_cache::FillGuard;
use crate::settlement::{self, lost_call};
use crate::store::{Bought, Change, NewCall, Receipt, Settlement};
use crate::threads::panic_message;

/// What a client asked for, for all attempts at it.
pub(super) struct Operation<'a> {
    /// Joins the attempts.
    pub(super) id: String,
    pub(super) protocol: Protocol,
    pub(super) prompt_hash: String,
    /// Fields that go on to the provider.
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) asked: ChatRequest<'a>,
    pub(super) labels: Labels,
    /// How old an answer may be that was bought before; none where it is to be bought.
    pub(super) cache_age: Option<Duration>,
    pub(super) client: Client,
}

/// What became of an attempt.
pub(super) enum Attempt {
    /// The client has its answer, or what there is of it, or has left.
    Over,
    /// Nothing was answered yet: another target may be asked.
    Failed(Box<ErrorResponse>),
    /// This target cannot be asked at all: another may be.
    Unusable(Box<ErrorResponse>),
    /// Nothing was answered, and no other target would help.
    Refused(Box<ErrorResponse>),
}

/// A client that would have to wait longer than this for its turn at a provider is refused. Flows that
/// come meanwhile have every other turn, so that it may become twice as long; then it is refused as well.
pub(super) const TURN_WAIT_MAX: Duration = Duration::from_secs(60);

/// Settles the row of a call that ends by a panic.
struct Settle<'a> {
    gateway: &'a Gateway,
    call: &'a Call,
    id: i64,
    began: Timestamp,
}

impl Gateway {
    /// Asks one target. `number` is raised for an attempt that has a row in the ledger.
    pub(super) fn attempt(
        &self,
        operation: &Operation<'_>,
        target: &Target,
        number: &mut u32,
        reply: &mut ResponseWriter<'_>,
    ) -> Attempt {
        let kind = match self.usable(operation, target) {
            Ok(kind) => kind,
            // No call was made, hence no row.
            Err(refusal) => return Attempt::Unusable(Box::new(ErrorResponse::Ours(refusal))),
        };
        let presence = reply.presence();
        let ends_with_client = self.toward(&target.provider).drain_max.is_none();
        let watched = ends_with_client.then(|| presence.clone());
        let Some(entered) = self.in_flight.enter(watched) else {
            return refused(stopping());
        };
        let asked = &operation.asked;
        let call = Call {
            provider: target.provider.clone(),
            model: target.model.clone(),
            system: None,
            prompt: String::new(),
            max_tokens: asked.max_tokens,
            temperature: None,
            stream: asked.is_streamed,
            first_byte_timeout: None,
            total_timeout: None,
            cache_marks: CacheMarks::default(),
        };
        let fill = match self.look(operation, &call, &entered.cancel, &presence) {
            Ok(ClientLookup::Answer(bought)) => {
                *number += 1;
                return self.give(operation, &call, &bought, *number, reply);
            }
            Ok(ClientLookup::Nothing(fill)) => fill,
            Err(refusal) => return refused(refusal),
        };
        let permit = self.providers.permit_for(&call, asked.prompt.bytes_about());
        let wait = permit.wait(Instant::now());
        if wait > TURN_WAIT_MAX {
            return no_turn(&call, wait);
        }
        if !wait.is_zero() {
            // What is refused anyway need not wait for it.
            let intent = self.intent(operation, &call, *number + 1);
            if let Err(Error::Budget(why)) = self.store.check_budgets(&intent) {
                *number += 1;
                return self.over_budget(intent, why);
            }
        }
        let until = Instant::now() + 2 * TURN_WAIT_MAX;
        let turn_in = |now| permit.wait(now);
        match wait_for(turn_in, until, &entered.cancel, || presence.has_left()) {
            Waited::Came => {}
            Waited::Ended => return refused(self.ended()),
            Waited::TooLong(wait) => return no_turn(&call, wait),
        }
        *number += 1;
        let id = match self.open(operation, &call, *number) {
            Ok(id) => id,
            Err(attempt) => return attempt,
        };
        permit.used();
        let settle = Settle {
            gateway: self,
            call: &call,
            id,
            began: Timestamp::now(),
        };
        let made = catch_unwind(AssertUnwindSafe(|| match kind {
            Kind::Echo => self.echo(operation, &call, fill, &entered, &settle, reply),
            _ => self.forward(operation, &call, fill, &entered, &settle, reply),
        }));
        made.unwrap_or_else(|panic| {
            let message = panic_message(panic.as_ref());
            log::error!("internal error during the call: {message}");
            let settlement = Settlement {
                error: Some(format!("internal error during the call: {message}")),
                ..lost_call(id, Timestamp::now())
            };
            self.settlements.settle(settlement, None);
            let message = "the request could not be answered";
            self.conclude(operation, Refusal::new(500, "internal", message), reply)
        })
    }

    /// The kind of a target's provider, if it can be asked at all.
    pub(super) fn usable(
        &self,
        operation: &Operation<'_>,
        target: &Target,
    ) -> Result<Kind, Refusal> {
        let protocol = operation.protocol;
        let provider = &target.provider;
        let own_key = self.own_key(operation, provider).is_some();
        if let Err(why) = self.providers.check(provider)
            && !(own_key && self.providers.knows(provider))
        {
            let message = format!(
                "{why}. A model is `PROVIDER/NAME`, an alias, or a name of provider {}",
                protocol.name()
            );
            return Err(Refusal::bad_request("provider_not_configured", message));
        }
        match self.providers.kind(provider) {
            Some(kind) if protocol.reaches(kind) => Ok(kind),
            _ => {
                let message = format!(
                    "provider {provider} does not speak the protocol of {}; ask for it at {}",
                    protocol.path(),
                    protocol.other().path()
                );
                Err(Refusal::bad_request("wrong_protocol", message))
            }
        }
    }

    /// Whether the provider is asked for the usage of a stream, of which the client is told nothing.
    pub(super) fn adds_usage(&self, operation: &Operation<'_>, provider: &str) -> bool {
        let asked = &operation.asked;
        let is_possible = operation.protocol == Protocol::OpenAi && asked.is_streamed;
        is_possible && !asked.wants_usage && self.providers.takes_stream_options(provider)
    }

    /// Why a call was ended that waited.
    pub(super) fn ended(&self) -> Refusal {
        if self.in_flight.is_stopping() {
            stopping()
        } else {
            Refusal::new(499, "cancelled", "the client has left")
        }
    }

    /// The client's own key, where the provider is to get it.
    pub(super) fn own_key<'a>(
        &self,
        operation: &'a Operation<'_>,
        provider: &str,
    ) -> Option<&'a ClientKey> {
        let toward = self.settings.toward.get(provider);
        let own = operation.client.own.as_ref();
        own.filter(|_| toward.is_some_and(|toward| toward.pass_through_key))
    }

    /// Gives the client an answer that was bought before, once a row says so. It needs no budget, and no
    /// turn at the provider.
    fn give(
        &self,
        operation: &Operation<'_>,
        call: &Call,
        bought: &Bought,
        attempt: u32,
        reply: &mut ResponseWriter<'_>,
    ) -> Attempt {
        let booked = Change::BookCached {
            call: intent(operation, call, attempt, Reserve::default()),
            model: bought.model.clone(),
            saved: bought.cost,
        };
        if let Err(error) = self.settlements.commit_with(booked) {
            return unwritten(error);
        }
        let content_type = bought.content_type.as_deref();
        let fields: Vec<_> = content_type
            .map(|value| ("content-type", value))
            .into_iter()
            .chain([(CACHED_FIELD, "true")])
            .collect();
        reply.whole(200, &fields, bought.output.as_bytes());
        Attempt::Over
    }

    /// Commits the intent and gives the number of the row.
    fn open(&self, operation: &Operation<'_>, call: &Call, attempt: u32) -> Result<i64, Attempt> {
        let intent = self.intent(operation, call, attempt);
        match self
            .settlements
            .commit_with(Change::OpenCall(intent.clone()))
        {
            Ok(Receipt::Call(entry)) => Ok(entry.id),
            Ok(_) => {
                let message = "the journal gave no ledger row";
                Err(refused(Refusal::new(500, "internal", message)))
            }
            Err(Error::Budget(why)) => Err(self.over_budget(intent, why)),
            Err(error) => Err(unwritten(error)),
        }
    }

    /// The row of a call before it is made, with what budgets have to have left for it.
    fn intent(&self, operation: &Operation<'_>, call: &Call, attempt: u32) -> NewCall {
        let asked = &operation.asked;
        let bytes = asked.prompt.bytes_at_most(operation.protocol);
        let writes = asked.cache_writes;
        let reserve = self
            .providers
            .reserve_for(call, bytes, writes, Timestamp::now());
        intent(operation, call, attempt, reserve)
    }

    /// A call that no budget allows: told in the ledger as well, as one that was not made.
    fn over_budget(&self, intent: NewCall, why: String) -> Attempt {
        let change = Change::RefuseCall(intent, RefusedBy::Budget, why.clone());
        if let Err(error) = self.journal.commit_one(change) {
            log::warn!("that a call was refused cannot be written: {error}");
        }
        failed(Refusal::new(402, "budget", why))
    }

    fn forward(
        &self,
        operation: &Operation<'_>,
        call: &Call,
        fill: Option<FillGuard>,
        entered: &InFlightGuard<'_>,
        settle: &Settle<'_>,
        reply: &mut ResponseWriter<'_>,
    ) -> Attempt {
        let asked = &operation.asked;
        let adds_usage = self.adds_usage(operation, &call.provider);
        let forward = Forward {
            call,
            api_format: operation.protocol.api_format(),
            texts: &|| asked.all_texts(),
            body: &asked.for_model(&call.model, adds_usage),
            headers: &operation.headers,
            key: self.own_key(operation, &call.provider),
            hides_usage: adds_usage,
            drain_max: self.toward(&call.provider).drain_max,
        };
        let mut client = ToClient::new(operation, fill, reply);
        let forwarded = self
            .providers
            .forward(&forward, &entered.cancel, &mut client);
        let recording = client.recording;
        match forwarded {
            Ok(answer) => {
                settle.answered(&answer, recording);
                Attempt::Over
            }
            Err(mut not) => {
                if entered.has_left() {
                    "the client has left".clone_into(&mut not.failure.message);
                    settle.failed(&not.failure);
                    return Attempt::Over;
                }
                settle.failed(&not.failure);
                self.forward_error(operation, *not, reply)
            }
        }
    }

    pub(super) fn forward_error(
        &self,
        operation: &Operation<'_>,
        not: ForwardError,
        reply: &mut ResponseWriter<'_>,
    ) -> Attempt {
        let ForwardError {
            failure,
            refused,
            begun,
            told,
        } = not;
        if begun && told {
            reply.end();
            return Attempt::Over;
        }
        match refused {
            // A redirect is nothing that a client could follow: its key would go along.
            Some((head, body)) if !(300..400).contains(&head.status) => {
                Attempt::Failed(Box::new(ErrorResponse::Providers(head, body)))
            }
            _ => self.conclude(operation, self.refusal(&failure), reply),
        }
    }

    /// What a client is told of a call that failed without a word of the provider's.
    fn refusal(&self, failure: &Failure) -> Refusal {
        let (status, code) = match failure.kind {
            FailureKind::NotConfigured => (400, "provider_not_configured"),
            FailureKind::Connect => (502, "provider_unreachable"),
            FailureKind::Timeout => (504, "provider_timeout"),
            FailureKind::Status => (502, "provider_error"),
            FailureKind::BadAnswer | FailureKind::TooLarge => (502, "provider_bad_answer"),
            FailureKind::Cancelled if self.in_flight.is_stopping() => return stopping(),
            FailureKind::Cancelled => (499, "cancelled"),
        };
        Refusal::new(status, code, failure.message.clone())
    }

    /// Ends an answer that had begun; else another target may be asked.
    fn conclude(
        &self,
        operation: &Operation<'_>,
        refusal: Refusal,
        reply: &mut ResponseWriter<'_>,
    ) -> Attempt {
        if !reply.is_open() {
            tell(operation.protocol, &ErrorResponse::Ours(refusal), reply);
            return Attempt::Over;
        }
        if self.in_flight.is_stopping() {
            return refused(stopping());
        }
        failed(refusal)
    }

    fn echo(
        &self,
        operation: &Operation<'_>,
        call: &Call,
        fill: Option<FillGuard>,
        entered: &InFlightGuard<'_>,
        settle: &Settle<'_>,
        reply: &mut ResponseWriter<'_>,
    ) -> Attempt {
        let (system, prompt) = operation.asked.texts();
        let call = Call {
            system,
            prompt,
            ..call.clone()
        };
        let shape = Shape {
            protocol: operation.protocol,
            id: &operation.id,
            model: &call.model,
            wants_usage: operation.asked.wants_usage,
        };
        let mut client = ToClient::new(operation, fill, reply);
        let mut is_there = true;
        if call.stream {
            let head = answer_head("text/event-stream");
            is_there = client.begin(&head);
            is_there &= client.piece(&shape.begin());
        }
        let called = self
            .providers
            .call(&call, &entered.cancel, &mut |text| {
                is_there &= client.piece(&shape.piece(text));
                if !is_there {
                    // It costs nothing to stop.
                    entered.cancel.cancel();
                }
            })
            .map_err(Box::new);
        if let Ok(answer) = &called {
            if call.stream {
                client.piece(&shape.end(&answer.usage));
                client.end(true);
            } else {
                let head = answer_head("application/json");
                client.whole(&head, &shape.document(answer));
            }
        }
        let recording = client.recording;
        match called {
            Ok(answer) => {
                settle.answered(&answer, recording);
                Attempt::Over
            }
            Err(failure) => {
                settle.failed(&failure);
                let refusal = self.refusal(&failure);
                self.conclude(operation, refusal, reply)
            }
        }
    }
}

impl Settle<'_> {
    fn answered(&self, answer: &Answer, recording: Option<Recording>) {
        let providers = &self.gateway.providers;
        let settlement = settlement::answered(providers, self.call, self.id, answer, self.began);
        let kept = recording.and_then(|recording| recording.done(&answer.model, &settlement));
        self.gateway.settlements.settle(settlement, kept);
    }

    fn failed(&self, failure: &Failure) {
        let providers = &self.gateway.providers;
        let settlement = settlement::failed(providers, self.call, self.id, failure, self.began);
        // Nobody stopped it but the end of the server: as for calls of flows, what it used is kept.
        let is_lost =
            failure.kind == FailureKind::Cancelled && self.gateway.in_flight.is_stopping();
        let settlement = if is_lost {
            Settlement {
                usage: settlement.usage,
                latency_ms: settlement.latency_ms,
                ..lost_call(self.id, settlement.at)
            }
        } else {
            settlement
        };
        self.gateway.settlements.settle(settlement, None);
    }
}

/// How waiting for a turn ended.
#[derive(Debug, PartialEq, Eq)]
enum Waited {
    /// The call may be made.
    Came,
    /// It was cancelled, or its client has left.
    Ended,
    /// It took too long, and would take so much longer.
    TooLong(Duration),
}

/// Waits for a turn, which comes in as long as `turn_in` says, not beyond `until`. Nobody pays for a call whose client has left before it,
/// whatever becomes of those that leave during it.
fn wait_for(
    turn_in: impl Fn(Instant) -> Duration,
    until: Instant,
    cancel: &Cancel,
    has_left: impl Fn() -> bool,
) -> Waited {
    loop {
        if has_left() {
            return Waited::Ended;
        }
        let now = Instant::now();
        let wait = turn_in(now);
        if wait.is_zero() {
            return Waited::Came;
        }
        if now >= until {
            return Waited::TooLong(wait);
        }
        let pause = wait.min(WATCH_INTERVAL).min(until - now);
        if cancel.wait(pause) {
            return Waited::Ended;
        }
    }
}

/// The provider's rate leaves no room for a call soon enough.
fn no_turn(call: &Call, wait: Duration) -> Attempt {
    let seconds = wait.as_secs() + 1;
    let message = format!(
        "provider {} allows no more calls for {seconds} seconds",
        call.provider
    );
    let refusal = Refusal::new(429, "rate_limit", message);
    failed(refusal.with("retry-after", seconds.to_string()))
}

fn failed(refusal: Refusal) -> Attempt {
    Attempt::Failed(Box::new(ErrorResponse::Ours(refusal)))
}

fn refused(refusal: Refusal) -> Attempt {
    Attempt::Refused(Box::new(ErrorResponse::Ours(refusal)))
}

pub(super) fn stopping() -> Refusal {
    Refusal::new(503, "stopping", "the server is shutting down")
}

/// The row of a call before it is made.
fn intent(operation: &Operation<'_>, call: &Call, attempt: u32, reserve: Reserve) -> NewCall {
    let labels = &operation.labels;
    NewCall {
        at: Timestamp::now(),
        flow_id: labels.flow_id,
        run_id: None,
        node_id: None,
        attempt,
        operation_id: operation.id.clone(),
        provider: call.provider.clone(),
        model: call.model.clone(),
        role: labels.role.clone(),
        prompt_hash: operation.prompt_hash.clone(),
        key_name: operation.client.key_name.clone(),
        tags: labels.tags.clone(),
        reserve,
    }
}

/// What becomes of a call whose row could not be written: none without a row that says so.
fn unwritten(error: Error) -> Attempt {
    match error {
        Error::Busy(why) => failed(Refusal::new(429, "busy", why)),
        Error::Stopping => refused(stopping()),
        error => {
            let message = format!(
                "the call was not made, because its ledger row could not be written: {error}"
            );
            refused(Refusal::new(503, "ledger", message))
        }
    }
}

/// What an answer of our own begins with.
fn answer_head(content_type: &str) -> AnswerHead {
    AnswerHead {
        status: 200,
        headers: vec![("content-type".to_owned(), content_type.to_owned())],
    }
}

/// Gives an answer to the client, and records it where it is to be kept.
pub(super) struct ToClient<'a, 'b> {
    reply: &'a mut ResponseWriter<'b>,
    /// Whether the client is told that its answer was bought.
    tells_bought: bool,
    recording: Option<Recording>,
}

impl<'a, 'b> ToClient<'a, 'b> {
    pub(super) fn new(
        operation: &Operation<'_>,
        fill: Option<FillGuard>,
        reply: &'a mut ResponseWriter<'b>,
    ) -> Self {
        Self {
            reply,
            tells_bought: operation.cache_age.is_some(),
            recording: fill.map(Recording::new),
        }
    }

    fn fields<'c>(&self, head: &'c AnswerHead) -> Vec<(&'c str, &'c str)> {
        let all = head.headers.iter();
        all.map(|(name, value)| (name.as_str(), value.as_str()))
            .chain(self.tells_bought.then_some((CACHED_FIELD, "false")))
            .collect()
    }

    /// Lets the recording see it; where that gives up, the others may buy the answer themselves.
    fn record(&mut self, see: impl FnOnce(&mut Recording) -> bool) {
        if self.recording.as_mut().is_some_and(|kept| !see(kept)) {
            self.recording = None;
        }
    }
}

impl ResponseSink for ToClient<'_, '_> {
    fn whole(&mut self, head: &AnswerHead, body: &[u8]) -> bool {
        self.record(|kept| kept.begin(head) && kept.push(body));
        self.record(|kept| {
            kept.end(true);
            true
        });
        let fields = self.fields(head);
        self.reply.whole(head.status, &fields, body)
    }

    fn begin(&mut self, head: &AnswerHead) -> bool {
        self.record(|kept| kept.begin(head));
        let fields = self.fields(head);
        self.reply.begin(head.status, &fields)
    }

    fn piece(&mut self, bytes: &[u8]) -> bool {
        // First to the client.
        let is_taken = self.reply.piece(bytes);
        self.record(|kept| kept.push(bytes));
        is_taken
    }

    fn end(&mut self, is_whole: bool) {
        self.record(|kept| {
            kept.end(is_whole);
            true
        });
        self.reply.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_not_waited_for_without_end() {
        const LONG: Duration = Duration::from_secs(90);
        let (now, cancel) = (Instant::now(), Cancel::default());
        let soon = now + Duration::from_millis(5);
        let wait = |turn_in: Duration, until| wait_for(|_| turn_in, until, &cancel, || false);
        assert_eq!(wait(LONG, soon), Waited::TooLong(LONG));
        assert_eq!(wait(Duration::ZERO, now), Waited::Came);
        let left = wait_for(|_| LONG, soon, &cancel, || true);
        assert_eq!(left, Waited::Ended);
        cancel.cancel();
        assert_eq!(wait(LONG, now + LONG), Waited::Ended);
    }
}
