use std::collections::BTreeMap;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::event::{CallStatus, LedgerEntry, Usage};
use crate::hub::{Message, Publish};
use crate::ids::Seq;
use crate::journal::Retention;
use crate::providers::{
    Billing, CacheMarks, FailureKind, Kind, Network, ProviderConfig, Rate, Timeouts,
};
use crate::store::LedgerFilter;
use crate::store::testing::new_call;

struct NoViewers;

impl Publish for NoViewers {
    fn publish(&self, _: Vec<Message>, _: Option<Seq>) {}
}

/// The layer over a real store and journal, with the provider `echo`.
struct Rig {
    calls: Calls,
    journal: Journal,
    thread: Option<std::thread::JoinHandle<()>>,
    store: Arc<Store>,
    _dir: TempDir,
}

impl Rig {
    fn new() -> Self {
        Self::with_rate(Rate::default())
    }

    fn with_rate(rate: Rate) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, writer) = Store::open(dir.path()).unwrap();
        let store = Arc::new(store);
        let on_fatal = Arc::new(|_: &str| {});
        let (journal, thread) =
            Journal::start(writer, Box::new(NoViewers), Retention::default(), on_fatal).unwrap();
        let echo = ProviderConfig {
            kind: Kind::Echo,
            base_url: String::new(),
            api_key: None,
            missing_key_hint: None,
            stream_usage: true,
            trust_stated_cost: None,
            apis: Vec::new(),
            network: Network::default(),
        };
        let providers =
            Providers::new(BTreeMap::from([("echo".to_owned(), echo)]), Timeouts::default());
        let providers = Arc::new(providers.with_rates(BTreeMap::from([("echo".to_owned(), rate)])));
        let calls = Calls::start(Arc::clone(&store), journal.clone(), providers).unwrap();
        Self { calls, journal, thread: Some(thread), store, _dir: dir }
    }

    fn rows(&self) -> Vec<LedgerEntry> {
        let filter = LedgerFilter::default();
        let mut rows = self.store.ledger(&filter, None, 100).unwrap();
        rows.reverse();
        rows
    }

    /// Waits for the row of one call, which is settled in the background.
    fn settled_row(&self) -> LedgerEntry {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let rows = self.rows();
            if let [row] = &rows[..]
                && row.status != CallStatus::Pending
            {
                return row.clone();
            }
            assert!(Instant::now() < deadline, "{rows:?}");
            std::thread::yield_now();
        }
    }

    fn stop_journal(&mut self) {
        self.journal.shutdown();
        self.thread.take().unwrap().join().unwrap();
    }

    /// Sets a hard budget that allows one token.
    fn allow_one_token(&self) {
        let all = json!({"budgets": [{"name": "tiny", "per": "day", "limitTokens": 1}]});
        let all = crate::budget::parse_all(all).unwrap();
        let change = Change::SetBudgets { all, version: None };
        self.journal.commit_one(change).unwrap();
    }

    /// Makes a call the way a node does: without blocking.
    fn make(&self, call: &Call, exchange: impl FnOnce(Option<FillGuard>) -> Exchanged) -> Ended {
        let request = self.request(call);
        match self.calls.prepare(&request, None) {
            Prepared::Ready(resources) => {
                self.calls.make(&request, resources, Vec::new(), exchange)
            }
            Prepared::Over(ended) => ended,
            Prepared::Deferred { reason, .. } => panic!("deferred: {reason:?}"),
        }
    }

    fn request<'a>(&self, call: &'a Call) -> CallRequest<'a> {
        CallRequest {
            call,
            row: NewCall {
                provider: call.provider.clone(),
                model: call.model.clone(),
                prompt_hash: prompt_hash(call),
                ..new_call(0)
            },
            prompt: PromptSize::OfCall,
            cache: Some((self.calls.cache_key(call), Duration::from_secs(60))),
            has_own_key: false,
        }
    }

    /// Calls `echo` and caches its answer.
    fn echo(&self, call: &Call, fill: Option<FillGuard>) -> Exchanged {
        let answer = self.calls.providers().call(call, &Cancel::new(), &mut |_| {});
        let answer = answer.map_err(Box::new);
        let filled = fill.zip(answer.as_ref().ok()).map(|(fill, answer)| Filled {
            fill,
            output: answer.text.clone(),
            content_type: None,
        });
        (answer, filled)
    }
}

fn call() -> Call {
    Call {
        provider: "echo".into(),
        model: "echo-1".into(),
        system: None,
        prompt: "two words".into(),
        max_tokens: None,
        temperature: None,
        stream: false,
        first_byte_timeout: None,
        total_timeout: None,
        cache_marks: CacheMarks::default(),
        key: None,
    }
}

fn unused(_: Option<FillGuard>) -> Exchanged {
    panic!("the call was made");
}

fn one_a_minute() -> Rate {
    Rate { requests_per_minute: Some(1), ..Rate::default() }
}

#[test]
fn a_successful_call_is_settled_and_its_response_reused() {
    let rig = Rig::new();
    let ended = rig.make(&call(), |fill| {
        assert_eq!(rig.rows()[0].status, CallStatus::Pending);
        rig.echo(&call(), fill)
    });
    let CallOutcome::Answered(answer) = &ended.outcome else {
        panic!("no answer");
    };
    assert_eq!(answer.text, "[echo of echo-1] two words");
    rig.calls.settle(ended.changes);
    assert_eq!(rig.settled_row().status, CallStatus::Success);

    let again = rig.make(&call(), unused);
    let CallOutcome::Cached(reused) = &again.outcome else {
        panic!("not reused");
    };
    assert_eq!(reused.output, "[echo of echo-1] two words");
    rig.calls.commit(again.changes).unwrap();
    assert!(rig.rows()[1].more.cached);
}

#[test]
fn a_budget_refusal_is_a_row_and_makes_no_call() {
    let rig = Rig::new();
    rig.allow_one_token();
    let ended = rig.make(&call(), unused);
    assert!(matches!(ended.outcome, CallOutcome::OverBudget(_)));
    assert!(ended.has_row());
    rig.calls.settle(ended.changes);
    assert_eq!(rig.settled_row().more.refused, Some(RefusedBy::Budget));
}

#[test]
fn a_call_over_budget_does_not_wait_for_a_permit() {
    let rig = Rig::with_rate(one_a_minute());
    rig.make(&call(), |fill| rig.echo(&call(), fill));
    rig.allow_one_token();
    let other = Call { prompt: "another".into(), ..call() };
    let ended = rig.make(&other, unused);
    assert!(matches!(ended.outcome, CallOutcome::OverBudget(_)));
}

#[test]
fn a_panic_during_the_call_settles_its_row() {
    let rig = Rig::new();
    let ended = rig.make(&call(), |_| panic!("oh no"));
    assert!(matches!(&ended.outcome, CallOutcome::Panicked(why) if why.contains("oh no")));
    rig.calls.settle(ended.changes);
    let row = rig.settled_row();
    assert_eq!(row.status, CallStatus::Unknown);
    assert!(row.error_message.unwrap().contains("oh no"));
    // The right to fill the cache is free again.
    let again = rig.make(&call(), |fill| rig.echo(&call(), fill));
    assert!(matches!(again.outcome, CallOutcome::Answered(_)));
}

#[test]
fn a_failed_call_keeps_its_usage_when_the_server_stops() {
    let rig = Rig::new();
    let ended = rig.make(&call(), |_| {
        let failure = Failure {
            kind: FailureKind::Cancelled,
            message: "cancelled".into(),
            status: None,
            retry_after: None,
            usage: Usage { input_tokens: 7, ..Usage::default() },
            billing: Billing::default(),
            model: "echo-1".into(),
            latency_ms: 5,
            sent: true,
        };
        (Err(Box::new(failure)), None)
    });
    rig.calls.settle(interrupted(ended.changes));
    let row = rig.settled_row();
    assert_eq!((row.status, row.usage.input_tokens), (CallStatus::Unknown, 7));
}

#[test]
fn a_call_requires_a_committed_intent() {
    let mut rig = Rig::new();
    rig.stop_journal();
    let call = call();
    let request = rig.request(&call);
    let Prepared::Ready(resources) = rig.calls.prepare(&request, None) else {
        panic!("not ready");
    };
    let before = vec![Change::SetBudgets { all: Vec::new(), version: None }];
    let ended = rig.calls.make(&request, resources, before, unused);
    assert!(matches!(ended.outcome, CallOutcome::NotCommitted(Error::Stopping)));
    assert_eq!(ended.changes.len(), 1);
}

#[test]
fn an_identical_call_waits_for_the_one_in_flight() {
    let rig = Rig::new();
    rig.make(&call(), |fill| {
        let same = call();
        let prepared = rig.calls.prepare(&rig.request(&same), None);
        let reason = match prepared {
            Prepared::Deferred { reason, .. } => reason,
            _ => panic!("not deferred"),
        };
        assert_eq!(reason, WaitReason::SameCall);
        rig.echo(&call(), fill)
    });
    let again = rig.make(&call(), unused);
    assert!(matches!(again.outcome, CallOutcome::Cached(_)));
}

#[test]
fn a_blocked_caller_ends_on_cancel_or_disconnect() {
    let rig = Rig::new();
    let other = call();
    let request = rig.request(&other);
    let cancel = Cancel::new();
    let wait = |has_left: bool| {
        let waiter = Waiter { cancel: &cancel, has_left: &|| has_left };
        rig.calls.wait(&request, &waiter)
    };
    let is_cancelled = |has_left| matches!(wait(has_left), Err(ended) if matches!(ended.outcome, CallOutcome::Cancelled));
    assert!(is_cancelled(true));
    // Makes the next caller wait.
    let resources = wait(false).ok().unwrap();
    cancel.cancel();
    assert!(is_cancelled(false));
    drop(resources);
}

#[test]
fn a_full_rate_limit_queue_refuses_a_blocked_caller() {
    // A wait of just under a minute is allowed, so the call after the next is over the limit.
    let rig = Rig::with_rate(one_a_minute());
    rig.make(&call(), |fill| rig.echo(&call(), fill));
    let (second, third) =
        (Call { prompt: "second".into(), ..call() }, Call { prompt: "third".into(), ..call() });
    let prepared = rig.calls.prepare(&rig.request(&second), None);
    assert!(matches!(prepared, Prepared::Deferred { reason: WaitReason::RateLimit, .. }));
    let cancel = Cancel::new();
    let waiter = Waiter { cancel: &cancel, has_left: &|| false };
    let ended = rig.calls.wait(&rig.request(&third), &waiter).err().unwrap();
    assert!(matches!(ended.outcome, CallOutcome::RateLimited(wait) if wait > PERMIT_WAIT_MAX));
    assert!(!ended.has_row());
}
