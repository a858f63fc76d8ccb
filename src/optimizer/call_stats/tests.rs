use super::*;
use crate::money::Usd;

const MINUTE_MS: i64 = 60 * 1000;

/// An answered call of 10 nano-dollars, whose answer began after a second.
fn answered(id: i64, at_ms: i64, prompt: &str) -> CallRow<'_> {
    CallRow {
        id,
        at: Timestamp(at_ms),
        node: Some((1, "n")),
        provider: "p",
        model: "m",
        status: CallStatus::Success,
        usage: Usage { input_tokens: 5, output_tokens: 1, ..Usage::default() },
        cost: Some(Usd::from_nanousd(10)),
        begun_ms: Some(1_000),
        prompt_hash: prompt,
        cached: false,
        saved: None,
        refused: false,
    }
}

fn target() -> Target {
    Target { provider: "p".into(), model: "m".into() }
}

fn calls(stats: &CallStats) -> Option<NodeCalls<'_>> {
    stats.calls_to(1, "n", &target())
}

/// The sums of all answered calls, and the numbers of repeated and of failed ones.
fn sums(stats: &CallStats) -> (CallSums, u64, u64) {
    let calls = calls(stats).unwrap();
    let count = |outcome| calls.count(outcome);
    (calls.answered(), count(Outcome::Repeated), count(Outcome::Failed))
}

#[test]
fn a_prefix_is_reused_only_after_an_earlier_response_began() {
    let mut stats = CallStats::default();
    let prefix_hits = [
        (0, false),
        // At the same time as the first, before any answer began.
        (0, false),
        (999, false),
        (1_000, true),
        (4 * MINUTE_MS, true),
        // Five minutes after the previous answer began.
        (9 * MINUTE_MS + 1_000, false),
        // Settled late: answers that began after its start do not count.
        (500, false),
    ];
    let mut expected = 0;
    for (id, (at_ms, is_soon)) in (1..).zip(prefix_hits) {
        stats.take(&answered(id, at_ms, &id.to_string()));
        expected += u64::from(is_soon);
        let prefix_hits = calls(&stats).unwrap().answered().prefix_hits;
        assert_eq!(prefix_hits, expected, "{at_ms}");
    }
}

fn change(concern: Concern) -> NodeChange {
    NodeChange { flow_id: 1, node_id: "n".into(), concern, last_call: 6, at: Timestamp(9) }
}

#[test]
fn a_change_resets_only_its_own_stats_also_for_late_rows() {
    let failed = |id| CallRow { status: CallStatus::Failed, ..answered(id, 0, "a") };
    let refused = |id| CallRow { refused: true, ..failed(id) };
    // Repeated calls: one longer than the others, after another answer had begun, and one of
    // unknown cost.
    let mut longest = answered(4, 2_000, "a");
    (longest.usage.input_tokens, longest.usage.output_tokens) = (50, 9);
    let unpriced = CallRow { cost: None, ..answered(5, 3_000, "a") };
    let rows = [answered(1, 0, "a"), answered(2, 0, "a"), failed(3), longest, unpriced, refused(6)];
    let mut known = Vec::new();
    let take = |stats: &mut CallStats| rows.iter().for_each(|row| stats.take(row));
    for forgets_first in [false, true] {
        let mut stats = CallStats::default();
        if !forgets_first {
            take(&mut stats);
            let (all, repeated, failed) = sums(&stats);
            assert_eq!((all.spend.calls, repeated, failed), (3, 2, 1));
            assert_eq!(all.prefix_hits, 1);
        }
        for concern in [Concern::Repeats, Concern::Failures] {
            stats.forget(&change(concern));
        }
        if forgets_first {
            take(&mut stats);
        }
        let (all, repeated, failed) = sums(&stats);
        assert_eq!((repeated, failed), (0, 0));
        assert_eq!((all.spend.nanousd, all.usage.input_tokens), (10, 5));
        assert_eq!((all.prefix_hits, all.prompt_tokens_max), (0, 5));
        let left = calls(&stats).unwrap();
        let refused = left.count(Outcome::Refused);
        assert_eq!((left.since, refused), (Timestamp(0), 1));
        assert_eq!(left.all().answer_tokens_max, 9);
        known.push(format!("{left:?}"));
        let question = Concern::Question;
        assert_eq!(stats.changed_at(1, "n", question), None);
        stats.forget(&change(Concern::Question));
        assert!(calls(&stats).is_none());
        assert_eq!(stats.changed_at(1, "n", question), Some(Timestamp(9)));
        // Differs, for example in its temperature, so it is not a repetition.
        stats.take(&answered(7, 0, "a"));
        let (all, repeated, _) = sums(&stats);
        assert_eq!((all.spend.calls, repeated), (1, 0));
    }
    assert_eq!(known[0], known[1]);
}

#[test]
fn a_model_stays_in_use_after_its_node_changes() {
    let used = BTreeMap::from([(target(), 2)]);
    for forgets_first in [false, true] {
        let mut stats = CallStats::default();
        if forgets_first {
            stats.forget(&change(Concern::Question));
        }
        stats.take(&answered(1, 0, "a"));
        stats.take(&answered(2, 0, "b"));
        stats.forget(&change(Concern::Question));
        assert!(calls(&stats).is_none());
        assert_eq!(stats.targets(), used);
        stats.expire(Timestamp((WINDOW_DAYS + 1) * MS_PER_DAY));
        assert_eq!(stats.targets(), BTreeMap::new());
    }
}

#[test]
fn responses_count_from_the_time_of_the_node_change() {
    let at = |stats: &CallStats, concern| stats.changed_at(1, "n", concern);
    let mut stats = CallStats::default();
    for concern in Concern::ALL {
        let new = NodeChange { last_call: 0, at: Timestamp(1), ..change(concern) };
        stats.forget(&new);
    }
    for id in 1..=6 {
        stats.take(&answered(id, 0, "a"));
    }
    assert_eq!(at(&stats, Concern::Failures), None);
    stats.forget(&change(Concern::Failures));
    assert_eq!(at(&stats, Concern::Failures), Some(Timestamp(9)));
    assert_eq!(at(&stats, Concern::Repeats), None);
    stats.take(&answered(7, 0, "a"));
    let all = calls(&stats).unwrap().all();
    assert_eq!((all.spend.calls, all.answered_since_retry_change), (7, 1));
}

#[test]
fn changes_to_a_deleted_flow_are_forgotten() {
    let mut stats = CallStats::default();
    stats.forget(&change(Concern::Question));
    stats.forget_changes(1);
    assert!(stats.changes.is_empty());
}
