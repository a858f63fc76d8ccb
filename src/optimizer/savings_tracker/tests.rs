use super::*;
use crate::event::UsageSource;

/// A nano-dollar per token, and a tenth of it per cached token.
fn price(_: &str, _: &str, usage: &Usage, _: Timestamp) -> Option<Usd> {
    let tokens = usage.input_tokens + usage.output_tokens;
    let nanousd = tokens * 10 - usage.cached_input_tokens * 9;
    Some(Usd::from_nanousd(i64::try_from(nanousd).unwrap()))
}

fn tracker(baseline: Baseline) -> SavingsTracker {
    let tracked = Tracked {
        flow_id: 1,
        node_id: "n".to_owned(),
        baseline,
        until: Timestamp(9_000),
        last_call: 10,
        sums: empty_measurement(Timestamp(1_000)),
        stored: None,
    };
    SavingsTracker { applied: BTreeMap::from([(6, None), (7, Some(tracked))]) }
}

fn answered(id: i64, cached_input_tokens: u64, nanousd: i64) -> CallRow<'static> {
    CallRow {
        id,
        at: Timestamp(2_000),
        node: Some((1, "n")),
        provider: "p",
        model: "m",
        status: CallStatus::Success,
        usage: Usage {
            input_tokens: 100,
            cached_input_tokens,
            output_tokens: 10,
            source: UsageSource::Provider,
            ..Usage::default()
        },
        cost: Some(Usd::from_nanousd(nanousd)),
        begun_ms: Some(5),
        prompt_hash: "h",
        cached: false,
        saved: None,
        refused: false,
    }
}

fn realised(tracker: &SavingsTracker) -> Option<Realised> {
    tracker.applied[&7].as_ref()?.realised((0, 0))
}

#[test]
fn cached_prompts_are_compared_with_their_full_price() {
    let mut tracker = tracker(Baseline::PromptCache);
    assert_eq!(realised(&tracker), None);
    tracker.take(&answered(11, 0, 1_100), &price);
    // 90 tokens at a tenth of the price.
    tracker.take(&answered(12, 90, 290), &price);
    let realised = realised(&tracker).unwrap();
    assert_eq!(realised.calls, 2);
    assert_eq!(realised.would_have_cost_usd.nanousd, 2_200);
    assert_eq!(realised.saved_usd.nanousd, 810);
}

#[test]
fn only_calls_in_the_window_after_the_change_count() {
    let mut tracker = tracker(Baseline::MaxTokens);
    tracker.take(&answered(10, 0, 1), &price);
    let late = CallRow { at: Timestamp(9_001), ..answered(11, 0, 1) };
    tracker.take(&late, &price);
    let elsewhere = CallRow { node: Some((1, "other")), ..answered(12, 0, 1) };
    tracker.take(&elsewhere, &price);
    assert_eq!(realised(&tracker), None);
    tracker.take(&answered(13, 0, 1), &price);
    assert_eq!(realised(&tracker).map(|it| it.calls), Some(1));
}

#[test]
fn a_higher_cost_is_a_negative_saving() {
    let target = |model: &str| Target { provider: "p".to_owned(), model: model.to_owned() };
    let (from, to) = (target("before"), target("m"));
    let mut tracker = tracker(Baseline::ModelSwitch { from, to: vec![to] });
    tracker.take(&answered(11, 0, 1_500), &price);
    let realised = realised(&tracker).unwrap();
    assert_eq!(realised.would_have_cost_usd.nanousd, 1_100);
    assert_eq!(realised.saved_usd.nanousd, -400);
}

#[test]
fn failures_and_fallbacks_of_a_new_model_count_against_it() {
    let target = |model: &str| Target { provider: "p".to_owned(), model: model.to_owned() };
    let to = vec![target("m"), target("other")];
    let from = target("before");
    let mut tracker = tracker(Baseline::ModelSwitch { from, to });
    let failed = CallRow { status: CallStatus::Failed, ..answered(11, 0, 300) };
    tracker.take(&failed, &price);
    let instead = CallRow { model: "other", ..answered(12, 0, 500) };
    tracker.take(&instead, &price);
    let elsewhere = CallRow { model: "by hand", ..answered(13, 0, 700) };
    tracker.take(&elsewhere, &price);
    let realised = realised(&tracker).unwrap();
    assert_eq!((realised.calls, realised.cost_usd.nanousd), (1, 800));
    assert_eq!(realised.would_have_cost_usd.nanousd, 1_100);
}

#[test]
fn failures_are_measured_without_earlier_successes() {
    let mut tracker =
        tracker(Baseline::RetryWaste { nanousd: 900, calls: 3, were_answered: false });
    tracker.take(&answered(11, 0, 50), &price);
    let failed = CallRow { status: CallStatus::Timeout, ..answered(12, 0, 300) };
    tracker.take(&failed, &price);
    let realised = realised(&tracker).unwrap();
    assert_eq!((realised.calls, realised.cost_usd.nanousd), (2, 300));
    assert_eq!(realised.would_have_cost_usd.nanousd, 600);
}

#[test]
fn calls_are_measured_once_they_are_settled() {
    let mut tracker = tracker(Baseline::MaxTokens);
    assert_eq!(tracker.first_call(), Some(10));
    let pending = CallRow { status: CallStatus::Pending, ..answered(12, 0, 1) };
    tracker.take(&pending, &price);
    assert_eq!(realised(&tracker), None);
    tracker.take(&answered(12, 0, 1), &price);
    assert_eq!(realised(&tracker).map(|it| it.calls), Some(1));
}
