use super::*;
use proptest::prelude::*;

fn limiter(requests: Option<u32>, tokens: Option<u64>) -> RateLimiter {
    let rate = Rate { requests_per_minute: requests, tokens_per_minute: tokens, minute: MINUTE };
    RateLimiter::new([("p".to_owned(), rate)].into())
}

fn seconds(permits: &[Permit], now: Instant) -> Vec<u64> {
    permits.iter().map(|permit| permit.acquire(now).as_secs()).collect()
}

#[test]
fn calls_above_the_limit_wait_for_a_permit() {
    let limiter = limiter(Some(2), None);
    let now = Instant::now();
    let permits = [(); 5].map(|()| limiter.enqueue("p", Side::Flows, 1));
    assert_eq!(seconds(&permits, now), [0, 0, 60, 60, 120]);
    let other = limiter.enqueue("other", Side::Flows, 1);
    assert_eq!(other.acquire(now), Duration::ZERO);
}

#[test]
fn a_dropped_permit_is_free_for_another_call() {
    let limiter = limiter(Some(1), None);
    let now = Instant::now();
    let give = || limiter.enqueue("p", Side::Flows, 1);
    let (first, second) = (give(), give());
    assert_eq!(first.acquire(now).as_secs(), 0);
    assert_eq!(second.acquire(now).as_secs(), 60);
    drop(second);
    assert_eq!(give().acquire(now).as_secs(), 60);
    drop(first);
    assert_eq!(give().acquire(now).as_secs(), 0);
}

#[test]
fn a_call_above_the_token_limit_runs_alone() {
    let limiter = limiter(None, Some(100));
    let permits = [60, 40, 1, 5_000, 1].map(|tokens| limiter.enqueue("p", Side::Clients, tokens));
    assert_eq!(seconds(&permits, Instant::now()), [0, 0, 60, 120, 180]);
}

#[test]
fn late_permits_do_not_overrun_the_limit() {
    let limiter = limiter(Some(2), None);
    let began = Instant::now();
    let permits = [(); 5].map(|()| limiter.enqueue("p", Side::Flows, 1));
    assert_eq!(seconds(&permits[4..], began), [120]);
    // All calls ask again later than they could.
    let now = began + Duration::from_secs(140);
    assert_eq!(seconds(&permits, now), [0, 0, 60, 60, 120]);
    // A call that is sent late counts from then.
    let later = now + Duration::from_secs(50);
    let [first, second, ..] = permits;
    for permit in [first, second] {
        permit.consume_at(later);
    }
    let next = limiter.enqueue("p", Side::Flows, 1);
    assert_eq!(seconds(&[next], later), [120]);
}

#[test]
fn clients_and_flows_alternate() {
    let limiter = limiter(Some(1), None);
    let now = Instant::now();
    let give = |side| limiter.enqueue("p", side, 1);
    let first = give(Side::Flows);
    assert_eq!(first.acquire(now), Duration::ZERO);
    first.consume_at(now);
    let flows = [(); 4].map(|()| give(Side::Flows));
    assert_eq!(seconds(&flows, now), [60, 120, 180, 240]);
    let clients = [(); 2].map(|()| give(Side::Clients));
    assert_eq!(seconds(&clients, now), [60, 180]);
    assert_eq!(seconds(&flows, now), [120, 240, 300, 360]);
}

#[test]
fn a_call_that_does_not_poll_is_skipped_until_it_does() {
    let limiter = limiter(None, Some(30_000));
    let began = Instant::now();
    let give = |side, tokens| limiter.enqueue("p", side, tokens);
    let first = give(Side::Flows, 20_000);
    assert_eq!(first.acquire(began), Duration::ZERO);
    first.consume_at(began);
    let flow = give(Side::Flows, 20_000);
    assert_eq!(flow.acquire(began).as_secs(), 60);
    // It is the client's turn, but there is no room for its call either.
    let clients = [(); 2].map(|()| give(Side::Clients, 15_000));
    let due = began + MINUTE;
    assert_eq!(clients[0].acquire(due), Duration::ZERO);
    // A short grace period is left to ask.
    let soon = due + GRACE;
    assert_eq!(clients[1].acquire(soon), 2 * MINUTE);
    let late = soon + Duration::from_millis(1);
    assert_eq!(clients[1].acquire(late), Duration::ZERO);
    for client in clients {
        client.consume_at(late);
    }
    // It has kept its place ahead of later calls.
    let next = give(Side::Flows, 20_000);
    assert_eq!(seconds(&[flow, next], late), [60, 120]);
}

#[test]
fn a_flow_that_does_not_poll_delays_no_other_call() {
    let limiter = limiter(Some(1), None);
    let mut now = Instant::now();
    let flow = limiter.enqueue("p", Side::Flows, 1);
    let sent = |client: Permit, now| {
        assert_eq!(client.acquire(now), Duration::ZERO);
        client.consume_at(now);
    };
    sent(limiter.enqueue("p", Side::Clients, 1), now);
    assert_eq!(flow.acquire(now), MINUTE);
    now += 2 * MINUTE;
    for _ in 0..5 {
        sent(limiter.enqueue("p", Side::Clients, 1), now);
        now += MINUTE;
    }
    sent(flow, now);
}

#[derive(Debug)]
struct SentCall {
    at: Instant,
    arrived_at: Instant,
    number: usize,
    side: Side,
    tokens: u64,
}

/// Plays calls: delay after the previous call, side, tokens, and lateness. Returns them in the
/// order in which they were sent.
fn simulate(limiter: &RateLimiter, calls: &[(u64, bool, u64, u64)]) -> Vec<SentCall> {
    let mut now = Instant::now();
    // The time of each call's next check.
    let mut waiting: Vec<(Instant, usize, Instant, Permit)> = Vec::new();
    let mut sent = Vec::new();
    let mut arrived_at = now;
    let mut number = 0;
    loop {
        let due = waiting.iter().map(|(due, number, ..)| (*due, *number)).min();
        let next = calls.get(number).map(|call| arrived_at + Duration::from_millis(call.0));
        let side = |number: usize| {
            if calls[number].1 { Side::Flows } else { Side::Clients }
        };
        let late = |number: usize| Duration::from_millis(calls[number].3);
        match (next, due) {
            (None, None) => return sent,
            (Some(next), due) if due.is_none_or(|(due, _)| next <= due) => {
                (arrived_at, now) = (next, next);
                let permit = limiter.enqueue("p", side(number), calls[number].2);
                waiting.push((now + late(number), number, now, permit));
                number += 1;
            }
            (_, Some((due, of))) => {
                now = due;
                let at = waiting.iter().position(|it| it.1 == of).unwrap();
                let (_, number, arrived_at, permit) = waiting.swap_remove(at);
                let wait = permit.acquire(now);
                if wait.is_zero() {
                    permit.consume_at(now);
                    sent.push(SentCall {
                        at: now,
                        arrived_at,
                        number,
                        side: side(number),
                        tokens: calls[number].2,
                    });
                } else {
                    waiting.push((now + wait + late(number), number, arrived_at, permit));
                }
            }
            (Some(_), None) => unreachable!("it was taken"),
        }
    }
}

proptest! {
    #[test]
    fn late_calls_never_exceed_the_limit_of_a_minute(
        requests in proptest::option::of(1u32..6),
        tokens_max in proptest::option::of(1u64..200),
        calls in proptest::collection::vec(
            (0u64..30_000, any::<bool>(), 0u64..300, 0u64..200_000), 1..60),
    ) {
        let sent = simulate(&limiter(requests, tokens_max), &calls);
        prop_assert_eq!(sent.len(), calls.len());
        for begin in sent.iter().map(|call| call.at) {
            let within = sent.iter().filter(|it| it.at >= begin && it.at < begin + MINUTE);
            let tokens = |call: &SentCall| tokens_max.map_or(0, |tokens_max| call.tokens.min(tokens_max));
            let (count, sum) = within.fold((0, 0), |(n, sum), call| (n + 1, sum + tokens(call)));
            prop_assert!(requests.is_none_or(|requests| count <= requests));
            prop_assert!(tokens_max.is_none_or(|tokens_max| sum <= tokens_max));
        }
    }

    #[test]
    fn client_and_flow_queues_keep_order_and_alternate(
        requests in proptest::option::of(1u32..6),
        tokens_max in proptest::option::of(1u64..200),
        calls in proptest::collection::vec((0u64..30_000, any::<bool>(), 0u64..300), 1..60),
    ) {
        let calls: Vec<_> = calls.into_iter().map(|(after, side, tokens)| (after, side, tokens, 0)).collect();
        let sent = simulate(&limiter(requests, tokens_max), &calls);
        for side in [Side::Flows, Side::Clients] {
            prop_assert!(sent.iter().filter(|call| call.side == side).is_sorted_by_key(|call| call.number));
        }
        // With token limits, a call that could go a little earlier is checked only at its expected
        // time.
        if tokens_max.is_some() {
            return Ok(());
        }
        for (at, pair) in sent.windows(2).enumerate() {
            let [one, two] = pair else { continue };
            // The next call of the other side; a call made at the same time was not passed over.
            let other = sent[at + 2..].iter().find(|other| other.side != one.side);
            let passed_over = other.filter(|other| {
                one.side == two.side && other.arrived_at < one.at && other.at > two.at
            });
            prop_assert!(passed_over.is_none(), "{one:?}, {two:?}, {passed_over:?}");
        }
    }
}
