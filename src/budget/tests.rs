use super::*;
use proptest::prelude::*;
use serde_json::json;

fn budget(more: Value) -> Budget {
    let mut document = json!({"name": "b", "per": "day", "limitUsd": "1"});
    for (key, value) in more.as_object().unwrap() {
        document[key] = value.clone();
    }
    parse_all(json!({"budgets": [document]})).unwrap().remove(0)
}

fn no_scope() -> Scope<'static> {
    Scope {
        flow_id: None,
        provider: "",
        model: "",
        key: None,
        tags: None,
        attribution: &Attribution::NONE,
        billing: None,
    }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn days_and_months_follow_the_time_zone() {
    let period = |per: &str, zone: &str, moment: &str| {
        let (start, end) = budget(json!({"per": per, "timezone": zone})).period(at(moment));
        (start.to_string(), end.to_string())
    };
    assert_eq!(
        period("day", "Europe/Berlin", "2026-07-01T22:30:00Z"),
        ("2026-07-01T22:00:00.000Z".into(), "2026-07-02T22:00:00.000Z".into())
    );
    // The day of the spring clock change has 23 hours.
    assert_eq!(
        period("day", "Europe/Berlin", "2026-03-29T12:00:00Z"),
        ("2026-03-28T23:00:00.000Z".into(), "2026-03-29T22:00:00.000Z".into())
    );
    assert_eq!(
        period("month", "UTC", "2026-12-31T23:59:59.999Z"),
        ("2026-12-01T00:00:00.000Z".into(), "2027-01-01T00:00:00.000Z".into())
    );
}

#[test]
fn each_error_names_its_field() {
    let faults = match parse_all(json!({"budgets": [
        {"name": "", "per": "day", "limitUsd": "-1"},
        {"name": "a", "per": "year", "limitUsd": 1},
        {"name": "a", "per": "day", "limitUsd": 1, "limitTokens": 1, "timezone": "Mars/Base"},
        {"name": "b", "per": "day", "limitUsd": "0.0000000001", "model": "gpt"},
        {"name": "c", "per": "day", "limitTokens": 1, "typo": 1},
        {"name": "d", "per": "day", "limitTokens": 0},
        {"name": "d", "per": "run", "limitUsd": "0"},
        7,
        {"name": "e", "per": "day", "limitTokens": 1, "endUser": "", "tag": "x".repeat(201)},
        {"name": "f", "per": "day", "limitTokens": 1, "tag": "a,b"}
    ]})) {
        Err(Error::Invalid { faults, .. }) => faults,
        other => panic!("{other:?}"),
    };
    let fields: Vec<&str> = faults.iter().map(|fault| fault.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "budgets[0].name",
            "budgets[0].limitUsd",
            "budgets[1].per",
            "budgets[2].limitUsd",
            "budgets[2].timezone",
            "budgets[3].limitUsd",
            "budgets[3].model",
            "budgets[4].typo",
            "budgets[6].name",
            "budgets[7]",
            "budgets[8].tag",
            "budgets[8].endUser",
            "budgets[9].tag"
        ]
    );
}

#[test]
fn a_budget_applies_to_matching_calls_only() {
    let call = Scope { flow_id: Some(1), provider: "openai", model: "gpt-4o-mini", ..no_scope() };
    for (more, expected) in [
        (json!({}), true),
        (json!({"flowId": 1}), true),
        (json!({"flowId": 2}), false),
        (json!({"model": "openai/gpt-4o"}), false),
        (json!({"model": "openai/gpt-4o*"}), true),
        (json!({"model": "openai/gpt-4o-mini"}), true),
        (json!({"model": "groq/*"}), false),
        (json!({"key": "ann"}), false),
        (json!({"model": "OpenAI/GPT-4o-Mini"}), true),
        (json!({"model": "openai2/gpt-4o*"}), false),
    ] {
        assert_eq!(budget(more.clone()).covers(&call), expected, "{more}");
    }
}

#[test]
fn a_budget_selects_by_origin_tag_and_billing() {
    let attribution = Attribution {
        client: Some("claude-cli".into()),
        session: Some("s".into()),
        end_user: Some("ann".into()),
        project: None,
    };
    let billing = Some(Billing::Subscription);
    let billed = Scope { tags: Some("a,team=b"), attribution: &attribution, ..no_scope() };
    let subscribed = Scope { billing, ..billed };
    for (more, expected) in [
        (json!({}), [true, false]),
        (json!({"includeSubscriptions": true}), [true, true]),
        (json!({"limitUsd": null, "limitTokens": 1}), [true, true]),
        (json!({"tag": "team=b"}), [true, false]),
        (json!({"tag": "team"}), [false, false]),
        (json!({"client": "claude-cli", "endUser": "ann"}), [true, false]),
        (json!({"client": "codex_cli_rs"}), [false, false]),
        (json!({"endUser": "s"}), [false, false]),
        (json!({"project": "p"}), [false, false]),
        (json!({"per": "session", "onLoop": "stop"}), [true, false]),
    ] {
        let budget = budget(more.clone());
        let covered = [budget.covers(&billed), budget.covers(&subscribed)];
        assert_eq!(covered, expected, "{more}");
        let again = parse_all(json!({"budgets": [budget.to_json()]})).unwrap().remove(0);
        assert_eq!(again, budget);
    }
    for more in
        [json!({"onLoop": "stop"}), json!({"per": "session", "onLoop": "stop", "hard": false})]
    {
        let mut document = json!({"name": "b", "per": "day", "limitUsd": "1"});
        for (key, value) in more.as_object().unwrap() {
            document[key] = value.clone();
        }
        let error = parse_all(json!({"budgets": [document]}));
        let Err(Error::Invalid { faults, .. }) = error else { panic!("{error:?}") };
        assert_eq!(faults[0].field, "budgets[0].onLoop");
    }
}

#[test]
fn no_spelling_of_a_priced_model_evades_a_budget() {
    for (pattern, provider, models) in [
        (
            "anthropic/claude-opus-4-6*",
            "anthropic",
            ["claude-opus-4.6", "claude-4.6-opus", "claude-4-6-opus"],
        ),
        (
            "vertex/publishers/anthropic/models/claude-opus-4-6",
            "vertex",
            ["claude-opus-4-6", "anthropic/claude-opus-4-6", "anthropic/claude-opus-4.6"],
        ),
        (
            "openrouter/openai/gpt-4o:nitro",
            "openrouter",
            ["openai/gpt-4o:floor", "openai/gpt-4o", "gpt-4o"],
        ),
    ] {
        let budget = budget(json!({"model": pattern}));
        for model in models {
            let call = Scope { provider, model, ..no_scope() };
            assert!(budget.covers(&call), "{pattern} {model}");
        }
    }
}

#[test]
fn an_unmatchable_model_pattern_is_an_error() {
    let is_fault = |pattern: &str| model_fault(pattern, |name| name == "openai").is_some();
    for pattern in
        ["openai/*mini", "openai/gpt*mini*", "openai/**", "*/gpt", "open*/x", "opnai/*", "openai/"]
    {
        assert!(is_fault(pattern), "{pattern}");
    }
    for pattern in ["openai/*", "openai/gpt-4o*", "openai/gpt-4o", "openai/a/b*"] {
        assert!(!is_fault(pattern), "{pattern}");
    }
}

#[test]
fn a_zero_budget_is_reached_by_any_use() {
    let nothing = budget(json!({"limitUsd": 0}));
    assert_eq!((nothing.level(0), nothing.level(1)), (0, 100));
    let some = budget(json!({"limitUsd": "0.000001"}));
    assert_eq!(
        [0, 799, 800, 999, 1000, 5000].map(|used| some.level(used)),
        [0, 0, 80, 80, 100, 100]
    );
}

proptest! {
    #[test]
    fn periods_are_contiguous_and_contain_their_times(
        moment in 0i64..4_000_000_000_000,
        per in prop_oneof![Just("day"), Just("month")],
        zone in prop_oneof![Just("UTC"), Just("America/New_York"), Just("Pacific/Apia"), Just("Asia/Kathmandu")],
    ) {
        let budget = budget(json!({"per": per, "timezone": zone}));
        let (start, end) = budget.period(Timestamp(moment));
        prop_assert!(start.0 <= moment && moment < end.0);
        prop_assert_eq!(budget.period(start), (start, end));
        prop_assert_eq!(budget.period(end).0, end);
        prop_assert_eq!(budget.period(Timestamp(end.0 - 1)), (start, end));
    }

    #[test]
    fn a_stored_budget_round_trips(
        limit in 0i64..i64::MAX, tokens in proptest::option::of(0u64..1 << 60), hard in any::<bool>(),
    ) {
        let mut document = json!({"name": "b", "per": "run", "hard": hard});
        match tokens {
            Some(tokens) => document["limitTokens"] = json!(tokens),
            None => document["limitUsd"] = json!(Usd::from_nanousd(limit).to_string()),
        }
        let read = parse_all(json!({"budgets": [document]})).unwrap().remove(0);
        let amount = tokens.map_or(limit, |tokens| tokens as i64);
        prop_assert_eq!(read.limit.amount(), amount);
        let again = parse_all(json!({"budgets": [read.to_json()]})).unwrap().remove(0);
        prop_assert_eq!(again, read);
    }
}
