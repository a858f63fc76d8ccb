use std::time::Duration;

use super::*;
use crate::providers::health::Pause;
use crate::providers::testing;

fn key(name: &str, secret: Option<&str>, weight: u32) -> PoolKey {
    PoolKey { name: name.into(), key: secret.map(Secret::new), weight }
}

fn pools(keys: Vec<PoolKey>) -> Pools {
    let provider = testing::provider(Kind::OpenAi, "http://h");
    let providers = BTreeMap::from([("p".to_owned(), provider)]);
    let keys = BTreeMap::from([("p".to_owned(), keys)]);
    Pools::new(&providers, keys, &BTreeMap::new(), HealthRules::default())
}

fn failure(kind: FailureKind, status: Option<u16>) -> Failure {
    Failure {
        kind,
        message: "no".into(),
        status,
        retry_after: None,
        usage: Default::default(),
        billing: Default::default(),
        model: "m".into(),
        latency_ms: 1,
        sent: true,
    }
}

fn choose<'a>(pools: &'a Pools, tried: &[usize]) -> Result<KeyLease<'a>, Option<Instant>> {
    pools.choose("p", KeyChoice::Pool(tried), &mut |_| 0)
}

#[test]
fn weights_share_the_calls_exactly() {
    for (weights, expected) in
        [(&[80, 20][..], &[80, 20][..]), (&[1, 0, 3], &[1, 0, 3]), (&[7], &[7])]
    {
        let sum: u32 = weights.iter().sum();
        let mut counts = vec![0; weights.len()];
        for number in 0..sum {
            let mut random = |below| {
                assert_eq!(below, sum);
                number
            };
            counts[weighted(weights, &mut random).unwrap()] += 1;
        }
        assert_eq!(counts, expected);
    }
    assert_eq!(weighted(&[0, 0], &mut |_| unreachable!()), None);
    assert_eq!(weighted(&[], &mut |_| unreachable!()), None);
}

#[test]
fn keys_without_value_or_weight_are_never_chosen() {
    let pools =
        pools(vec![key("A", None, 5), key("B", Some("sk-b"), 0), key("C", Some("sk-c"), 1)]);
    assert_eq!(choose(&pools, &[]).unwrap().key(), Some(2));
    assert!(matches!(choose(&pools, &[2]), Err(None)));
    assert_eq!(pools.force("p", KeyChoice::Pool(&[]), &mut |_| 0).key(), Some(2));
    let member = pools.member("p", None).unwrap();
    assert_eq!(member.api_key.as_ref().unwrap().expose(), "sk-c");
    assert!(pools.member("p", Some(0)).is_none());
}

#[test]
fn a_refused_key_is_replaced_by_another() {
    let pools = pools(vec![key("A", Some("sk-a"), 1), key("B", Some("sk-b"), 1)]);
    let lease = choose(&pools, &[]).unwrap();
    assert_eq!(lease.key(), Some(0));
    lease.record(Err(&failure(FailureKind::Status, Some(401))));
    assert_eq!(choose(&pools, &[0]).unwrap().key(), Some(1));
    assert_eq!(choose(&pools, &[]).unwrap().key(), Some(1));
    let member = pools.member("p", None).unwrap();
    assert_eq!(member.api_key.as_ref().unwrap().expose(), "sk-b");
    // If all keys pause, the one whose pause ends first is used.
    choose(&pools, &[]).unwrap().record(Err(&failure(FailureKind::Status, Some(429))));
    assert!(matches!(choose(&pools, &[]), Err(Some(_))));
    assert_eq!(pools.force("p", KeyChoice::Pool(&[]), &mut |_| 0).key(), Some(1));
}

#[test]
fn failures_of_the_provider_leave_its_keys_alone() {
    let pools = pools(vec![key("A", Some("sk-a"), 1)]);
    for kind in [FailureKind::Connect, FailureKind::Timeout, FailureKind::BadAnswer] {
        choose(&pools, &[]).unwrap().record(Err(&failure(kind, None)));
    }
    assert!(matches!(choose(&pools, &[]), Err(Some(_))));
    let own = pools.choose("p", KeyChoice::Own, &mut |_| 0);
    assert!(matches!(own, Err(Some(_))));
    let states = pools.pools["p"].states();
    assert_eq!(states.keys[0].health.state(), HealthState::Ok);
    assert!(matches!(states.provider.health.state(), HealthState::Open(_)));
}

#[test]
fn refused_requests_change_no_state() {
    let pools = pools(vec![key("A", Some("sk-a"), 1)]);
    for status in [400, 404, 422].repeat(5) {
        choose(&pools, &[]).unwrap().record(Err(&failure(FailureKind::Status, Some(status))));
    }
    for kind in [FailureKind::Cancelled, FailureKind::NotConfigured, FailureKind::TooLarge] {
        choose(&pools, &[]).unwrap().record(Err(&failure(kind, None)));
    }
    for status in [401, 429] {
        let own = pools.choose("p", KeyChoice::Own, &mut |_| 0).unwrap();
        assert_eq!(own.key(), None);
        own.record(Err(&failure(FailureKind::Status, Some(status))));
    }
    let states = pools.pools["p"].states();
    assert_eq!(states.keys[0].health.state(), HealthState::Ok);
    assert_eq!(states.provider.health.state(), HealthState::Ok);
}

#[test]
fn an_account_without_credit_benches_its_key_but_a_flagged_input_does_not() {
    let openrouter = testing::provider(Kind::OpenAi, "https://openrouter.ai/api/v1");
    let providers = BTreeMap::from([("p".to_owned(), openrouter)]);
    let keys = vec![key("A", Some("sk-a"), 1), key("B", Some("sk-b"), 1)];
    let keys = BTreeMap::from([("p".to_owned(), keys)]);
    let pools = Pools::new(&providers, keys, &BTreeMap::new(), HealthRules::default());
    choose(&pools, &[]).unwrap().record(Err(&failure(FailureKind::Status, Some(403))));
    assert_eq!(choose(&pools, &[]).unwrap().key(), Some(0));
    choose(&pools, &[]).unwrap().record(Err(&failure(FailureKind::Status, Some(402))));
    assert_eq!(choose(&pools, &[]).unwrap().key(), Some(1));
}

#[test]
fn a_probe_ends_when_its_response_begins() {
    let mut pools = pools(vec![key("A", Some("sk-a"), 1)]);
    pools.rules.bench = Pause { first: Duration::ZERO, max: Duration::ZERO };
    choose(&pools, &[]).unwrap().record(Err(&failure(FailureKind::Status, Some(401))));
    let probe = choose(&pools, &[]).unwrap();
    assert!(choose(&pools, &[]).is_err());
    probe.begun();
    drop(choose(&pools, &[]).unwrap());
    assert_eq!(pools.pools["p"].states().keys[0].health.state(), HealthState::Ok);
    probe.record(Err(&failure(FailureKind::Status, Some(401))));
    assert!(matches!(pools.pools["p"].states().keys[0].health.state(), HealthState::Benched(_)));
}

#[test]
fn a_probe_without_result_leaves_room_for_the_next() {
    let mut pools = pools(vec![key("A", Some("sk-a"), 1)]);
    pools.rules.bench = Pause { first: Duration::ZERO, max: Duration::ZERO };
    choose(&pools, &[]).unwrap().record(Err(&failure(FailureKind::Status, Some(401))));
    let probe = choose(&pools, &[]).unwrap();
    assert!(choose(&pools, &[]).is_err());
    drop(probe);
    let probe = choose(&pools, &[]).unwrap();
    probe.record(Err(&failure(FailureKind::Status, Some(400))));
    assert!(choose(&pools, &[]).is_ok());
}

#[test]
fn calls_during_a_pause_of_the_provider_keep_the_weights() {
    let pools = pools(vec![key("A", Some("sk-a"), 1), key("B", Some("sk-b"), 99)]);
    while let Ok(lease) = choose(&pools, &[]) {
        lease.record(Err(&failure(FailureKind::Status, Some(503))));
    }
    let forced = |number: u32| pools.force("p", KeyChoice::Pool(&[]), &mut |_| number).key();
    assert_eq!(forced(0), Some(0));
    assert_eq!(forced(1), Some(1));
}
