use proptest::prelude::*;

use super::*;

const RULES: HealthRules = HealthRules {
    failures: 3,
    open: Pause { first: Duration::from_secs(5), max: Duration::from_secs(30) },
    bench: Pause { first: Duration::from_secs(60), max: Duration::from_secs(200) },
    cool: Pause { first: Duration::from_secs(1), max: Duration::from_secs(10) },
};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Makes one call with a result at `now`.
fn call(health: &mut Health, event: HealthEvent, now: Instant) {
    let admitted = health.begin(now);
    health.record(admitted, event, &RULES, now);
}

#[test]
fn a_provider_opens_after_failures_in_a_row_and_closes_after_a_probe() {
    let (start, mut health) = (Instant::now(), Health::default());
    for _ in 0..2 {
        call(&mut health, HealthEvent::Failure, start);
    }
    call(&mut health, HealthEvent::Success, start);
    for _ in 0..2 {
        call(&mut health, HealthEvent::Failure, start);
        call(&mut health, HealthEvent::Reached, start);
    }
    assert_eq!(health.state(), HealthState::Ok);
    call(&mut health, HealthEvent::Failure, start);
    assert_eq!(health.state(), HealthState::Open(start + seconds(5)));
    // Each failed probe doubles the pause, up to the maximum.
    let mut now = start + seconds(5);
    for pause in [10, 20, 30, 30] {
        assert_eq!(health.admission(now - seconds(1)), Admission::Pause(now));
        assert_eq!(health.admission(now), Admission::Probe);
        let probe = health.begin(now);
        assert!(probe.is_probe);
        // Others do not wait for its result.
        assert_eq!(health.admission(now), Admission::Pause(now));
        health.record(probe, HealthEvent::Failure, &RULES, now);
        now += seconds(pause);
        assert_eq!(health.state(), HealthState::Open(now));
    }
    // A refused request shows that the provider is not down.
    call(&mut health, HealthEvent::Reached, now);
    assert_eq!((health.state(), health.failures()), (HealthState::Ok, 0));
    for _ in 0..3 {
        call(&mut health, HealthEvent::Failure, now);
    }
    assert_eq!(health.state(), HealthState::Open(now + seconds(5)));
}

#[test]
fn a_refused_key_is_benched_until_a_probe_succeeds() {
    let (start, mut health) = (Instant::now(), Health::default());
    call(&mut health, HealthEvent::Rejected, start);
    assert_eq!(health.state(), HealthState::Benched(start + seconds(60)));
    let now = start + seconds(60);
    call(&mut health, HealthEvent::Rejected, now);
    assert_eq!(health.state(), HealthState::Benched(now + seconds(120)));
    // A probe that ends without a result leaves room for the next one.
    let now = now + seconds(120);
    let probe = health.begin(now);
    health.release(probe);
    assert_eq!(health.admission(now), Admission::Probe);
    call(&mut health, HealthEvent::Success, now);
    assert_eq!(health.state(), HealthState::Ok);
}

#[test]
fn a_rate_limit_cools_for_the_stated_time_or_a_growing_one() {
    let (start, mut health) = (Instant::now(), Health::default());
    let parallel = health.begin(start);
    call(&mut health, HealthEvent::RateLimited(Some(seconds(7))), start);
    assert_eq!(health.admission(start), Admission::Pause(start + seconds(7)));
    health.record(parallel, HealthEvent::RateLimited(Some(seconds(9))), &RULES, start);
    assert_eq!(health.state(), HealthState::Cooling(start + seconds(9)));
    let mut now = start + seconds(9);
    for pause in [1, 2, 4, 8, 10] {
        // It ends without a probe.
        assert_eq!(health.admission(now), Admission::Free);
        let calls = [health.begin(now), health.begin(now)];
        for call in calls {
            health.record(call, HealthEvent::RateLimited(None), &RULES, now);
        }
        now += seconds(pause);
        assert_eq!(health.state(), HealthState::Cooling(now));
    }
    call(&mut health, HealthEvent::Success, now);
    call(&mut health, HealthEvent::RateLimited(None), now);
    assert_eq!(health.state(), HealthState::Cooling(now + seconds(1)));
}

#[test]
fn calls_of_an_earlier_state_change_nothing() {
    let (start, mut health) = (Instant::now(), Health::default());
    let early = [health.begin(start), health.begin(start), health.begin(start)];
    call(&mut health, HealthEvent::Rejected, start);
    let benched = health.state();
    for (call, event) in
        early.into_iter().zip([HealthEvent::Success, HealthEvent::Rejected, HealthEvent::Failure])
    {
        health.record(call, event, &RULES, start + seconds(1));
        assert_eq!(health.state(), benched);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Begin,
    /// Ends one of the calls in flight; none for a call without a result.
    End(prop::sample::Index, Option<HealthEvent>),
}

/// Steps with the events of a provider or of a key.
fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    let provider = prop_oneof![
        2 => Just(HealthEvent::Success),
        1 => Just(HealthEvent::Reached),
        5 => Just(HealthEvent::Failure),
    ];
    let delay = prop::option::of((0u64..40).prop_map(seconds));
    let key = prop_oneof![
        2 => Just(HealthEvent::Success),
        2 => Just(HealthEvent::Rejected),
        4 => delay.prop_map(HealthEvent::RateLimited),
    ];
    prop_oneof![steps_of(provider.boxed()), steps_of(key.boxed())]
}

fn steps_of(event: BoxedStrategy<HealthEvent>) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0u64..90).prop_map(Step::Wait),
        4 => Just(Step::Begin),
        4 => (any::<prop::sample::Index>(), prop::option::weighted(0.9, event))
            .prop_map(|(call, event)| Step::End(call, event)),
    ];
    prop::collection::vec(step, 0..120)
}

/// The expected state, written as a table of modes with times in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Ok { failures: u32, cooled: u64 },
    Cooling { until: u64, cooled: u64, failures: u32 },
    Paused { until: u64, length: u64, is_open: bool },
}

struct Model {
    mode: Mode,
    /// Counts the modes, so that a call knows whether its mode is over.
    turn: u64,
    now: u64,
    probe: Option<usize>,
}

impl Model {
    fn enter(&mut self, mode: Mode) {
        self.mode = mode;
        self.turn += 1;
        self.probe = None;
    }

    fn end(&mut self, id: usize, turn: u64, event: Option<HealthEvent>) {
        let is_probe = self.probe == Some(id);
        if is_probe {
            self.probe = None;
        }
        let is_present = turn == self.turn;
        let (now, Some(event)) = (self.now, event) else {
            return;
        };
        if let (Mode::Cooling { until, cooled, failures }, HealthEvent::RateLimited(Some(delay))) =
            (self.mode, event)
            && until > now
        {
            let until = until.max(now + delay.as_secs());
            self.mode = Mode::Cooling { until, cooled, failures };
            return;
        }
        if !is_present {
            return;
        }
        let is_free = match self.mode {
            Mode::Ok { .. } => true,
            Mode::Cooling { until, .. } => until <= now,
            Mode::Paused { .. } => false,
        };
        let (failures, cooled) = match self.mode {
            Mode::Ok { failures, cooled } | Mode::Cooling { failures, cooled, .. } => {
                (failures, cooled)
            }
            Mode::Paused { .. } => (RULES.failures, 0),
        };
        let length_of = |is_open_wanted| match self.mode {
            Mode::Paused { length, is_open, .. } if is_open == is_open_wanted => length,
            _ => 0,
        };
        let doubled = |length: u64, first: u64, max: u64| match length {
            0 => first,
            length => (2 * length).min(max),
        };
        match event {
            HealthEvent::Success => {
                let is_ok = matches!(self.mode, Mode::Ok { .. });
                let mode = Mode::Ok { failures: 0, cooled: 0 };
                match is_ok {
                    true => self.mode = mode,
                    false => self.enter(mode),
                }
            }
            HealthEvent::Reached if !is_free => self.enter(Mode::Ok { failures: 0, cooled: 0 }),
            HealthEvent::Reached => {}
            _ if !is_free && !is_probe => {}
            HealthEvent::Failure if !is_probe && failures + 1 < RULES.failures => {
                match &mut self.mode {
                    Mode::Ok { failures, .. } | Mode::Cooling { failures, .. } => *failures += 1,
                    Mode::Paused { .. } => unreachable!(),
                }
            }
            HealthEvent::Failure => {
                let length = doubled(length_of(true), 5, 30);
                self.enter(Mode::Paused { until: now + length, length, is_open: true });
            }
            HealthEvent::Rejected => {
                let length = doubled(length_of(false), 60, 200);
                self.enter(Mode::Paused { until: now + length, length, is_open: false });
            }
            HealthEvent::RateLimited(delay) => {
                let is_cooling = matches!(self.mode, Mode::Cooling { .. });
                let (wait, cooled) = match delay {
                    Some(delay) => (delay.as_secs(), cooled),
                    None => {
                        let wait = doubled(if is_cooling { cooled } else { 0 }, 1, 10);
                        (wait, wait)
                    }
                };
                let failures = failures.saturating_add(1);
                self.enter(Mode::Cooling { until: now + wait, cooled, failures });
            }
        }
    }
}

proptest! {
    #[test]
    fn states_agree_with_a_model(steps in any_steps()) {
        let (start, mut health) = (Instant::now(), Health::default());
        let mut model =
            Model { mode: Mode::Ok { failures: 0, cooled: 0 }, turn: 0, now: 0, probe: None };
        let (mut in_flight, mut next) = (Vec::new(), 0);
        for step in steps {
            let now = start + seconds(model.now);
            match step {
                Step::Wait(wait) => model.now += wait,
                Step::Begin => {
                    let is_due = matches!(model.mode,
                        Mode::Paused { until, .. } if until <= model.now);
                    let is_probe = is_due && model.probe.is_none();
                    let admission = health.admission(now);
                    prop_assert_eq!(admission == Admission::Probe, is_probe);
                    let is_free = match model.mode {
                        Mode::Ok { .. } => true,
                        Mode::Cooling { until, .. } => until <= model.now,
                        Mode::Paused { .. } => false,
                    };
                    prop_assert_eq!(admission == Admission::Free, is_free);
                    let admitted = health.begin(now);
                    prop_assert_eq!(admitted.is_probe, is_probe);
                    if is_probe {
                        model.probe = Some(next);
                    }
                    in_flight.push((next, model.turn, admitted));
                    next += 1;
                }
                Step::End(index, event) if !in_flight.is_empty() => {
                    let (id, turn, admitted) = in_flight.swap_remove(index.index(in_flight.len()));
                    match event {
                        Some(event) => health.record(admitted, event, &RULES, now),
                        None => health.release(admitted),
                    }
                    model.end(id, turn, event);
                }
                Step::End(..) => {}
            }
            let at = |until| start + seconds(until);
            let expected = match model.mode {
                Mode::Ok { .. } => HealthState::Ok,
                Mode::Cooling { until, .. } => HealthState::Cooling(at(until)),
                Mode::Paused { until, is_open: true, .. } => HealthState::Open(at(until)),
                Mode::Paused { until, is_open: false, .. } => HealthState::Benched(at(until)),
            };
            prop_assert_eq!(health.state(), expected);
        }
        // It never stays closed to all calls.
        for (.., admitted) in in_flight {
            health.release(admitted);
        }
        let late = start + seconds(model.now) + seconds(24 * 60 * 60);
        prop_assert!(!matches!(health.admission(late), Admission::Pause(_)));
    }
}
