//! How fast calls may follow each other at a provider: so many, and so many tokens, in any minute.
//!
//! Calls wait for their turn instead of being refused by the provider: those of flows in the order in
//! which they come, those of clients likewise, and where both wait, each side has every other turn. A call
//! that nobody asks for once it may go is passed over until somebody does. What counts is when calls are
//! made, not when they could have been. Pure but for a lock: moments are given.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::cancel::Cancel;

/// The length of the window over which calls and tokens are counted.
pub const MINUTE: Duration = Duration::from_secs(60);

/// The most calls a minute that a provider may be given: each is remembered for a minute.
pub const REQUESTS_MAX: u32 = 100_000;

/// How late a call may ask for its turn and still have it kept. Whoever has not asked by then cannot make
/// the call as things are: others go before it until it asks again.
const LATE_MAX: Duration = Duration::from_secs(1);

/// What a provider allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Calls in any minute, 1 to [`REQUESTS_MAX`]; none: as many as come.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers in any minute, at least 1; none: as many as come.
    pub tokens_per_minute: Option<u64>,
    /// What counts as a minute: [`MINUTE`], but in tests, which cannot wait for so long.
    pub minute: Duration,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            requests_per_minute: None,
            tokens_per_minute: None,
            minute: MINUTE,
        }
    }
}

/// Whose calls take turns with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Those of flows, and of trials.
    Flows,
    /// Those of clients at `/v1`.
    Clients,
}

/// Gives calls their turns.
#[derive(Debug, Default)]
pub struct RateLimiter {
    lanes: BTreeMap<String, Arc<Mutex<ProviderQueue>>>,
}

/// The turn of a call. Given back when dropped, unless it was used: whoever does not make the call lets
/// others have it.
#[derive(Debug)]
pub struct Permit {
    /// None where nothing is limited, and once it was used.
    given: Option<Given>,
}

/// Where a turn was given, and which.
#[derive(Debug)]
struct Given {
    lane: Arc<Mutex<ProviderQueue>>,
    side: Side,
    number: u64,
}

impl Permit {
    /// How long it has to be waited for, as things are; after that it is to be asked again. Once it is
    /// nothing, the call may be made, and counts as made until it is or the turn is given back.
    pub fn wait(&self, now: Instant) -> Duration {
        self.given.as_ref().map_or(Duration::ZERO, |given| {
            locked(&given.lane).wait(given.side, given.number, now)
        })
    }

    /// Waits until the call may be made. Gives whether it may: not where it was cancelled before.
    pub fn come(&self, cancel: &Cancel) -> bool {
        loop {
            let wait = self.wait(Instant::now());
            if wait.is_zero() {
                return true;
            }
            if cancel.wait(wait) {
                return false;
            }
        }
    }

    /// The call is made.
    pub fn used(self) {
        self.used_at(Instant::now());
    }

    fn used_at(mut self, now: Instant) {
        if let Some(given) = self.given.take() {
            locked(&given.lane).make(given.side, given.number, now);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(given) = self.given.take() {
            locked(&given.lane).take(given.side, given.number);
        }
    }
}

fn locked(lane: &Mutex<ProviderQueue>) -> MutexGuard<'_, ProviderQueue> {
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The calls of one provider.
#[derive(Debug)]
struct ProviderQueue {
    rate: Rate,
    /// When calls of the last minute were made, and their tokens; in order.
    made: VecDeque<(Instant, u64)>,
    /// Their tokens together.
    made_tokens: u64,
    /// Those that may be made and are about to be, and may take a while to.
    leaving: Vec<Waiting>,
    /// Those that wait.
    flows: VecDeque<Waiting>,
    clients: VecDeque<Waiting>,
    /// Whose turn it is where both wait.
    next: Side,
    /// The number of the next call: they rise in the order in which calls come.
    number: u64,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    number: u64,
    tokens: u64,
    /// When it may go, as it was last told; none where it has not asked yet.
    told: Option<Instant>,
}

impl Waiting {
    /// Whether nobody asked for it when it could have gone.
    fn is_overdue(&self, now: Instant) -> bool {
        self.told.is_some_and(|told| told + LATE_MAX < now)
    }
}

impl RateLimiter {
    /// Paces for the providers of those names.
    pub fn new(rates: BTreeMap<String, Rate>) -> Self {
        Self {
            lanes: rates
                .into_iter()
                .filter(|(_, rate)| *rate != Rate::default())
                .map(|(name, rate)| (name, Arc::new(Mutex::new(ProviderQueue::new(rate)))))
                .collect(),
        }
    }

    /// Gives a call of so many tokens its turn. A call that has more tokens than a minute may have goes
    /// when the minute is all its own.
    pub fn give(&self, provider: &str, side: Side, tokens: u64) -> Permit {
        let given = self.lanes.get(provider).map(|lane| Given {
            number: locked(lane).give(side, tokens),
            lane: Arc::clone(lane),
            side,
        });
        Permit { given }
    }
}

impl ProviderQueue {
    fn new(rate: Rate) -> Self {
        Self {
            rate,
            made: VecDeque::new(),
            made_tokens: 0,
            leaving: Vec::new(),
            flows: VecDeque::new(),
            clients: VecDeque::new(),
            next: Side::Clients,
            number: 0,
        }
    }

    fn waiting(&mut self, side: Side) -> &mut VecDeque<Waiting> {
        match side {
            Side::Flows => &mut self.flows,
            Side::Clients => &mut self.clients,
        }
    }

    fn give(&mut self, side: Side, tokens: u64) -> u64 {
        let number = self.number;
        self.number += 1;
        let tokens = match self.rate.tokens_per_minute {
            Some(most) => tokens.min(most),
            None => 0,
        };
        self.waiting(side).push_back(Waiting {
            number,
            tokens,
            told: None,
        });
        number
    }

    /// Takes a call out from among those that are not made.
    fn take(&mut self, side: Side, number: u64) -> Option<Waiting> {
        if let Some(at) = self.leaving.iter().position(|it| it.number == number) {
            return Some(self.leaving.swap_remove(at));
        }
        let at = self.place(side, number)?;
        self.waiting(side).remove(at)
    }

    /// Where a call stands among those of its side that wait.
    fn place(&mut self, side: Side, number: u64) -> Option<usize> {
        let waiting = self.waiting(side);
        waiting.binary_search_by_key(&number, |it| it.number).ok()
    }

    fn make(&mut self, side: Side, number: u64, now: Instant) {
        if let Some(call) = self.take(side, number) {
            let last = self.made.back().map(|(at, _)| *at);
            let at = last.map_or(now, |last| last.max(now));
            self.made.push_back((at, call.tokens));
            self.made_tokens += call.tokens;
        }
    }

    fn wait(&mut self, side: Side, number: u64, now: Instant) -> Duration {
        if self.leaving.iter().any(|it| it.number == number) {
            return Duration::ZERO;
        }
        while let Some((at, tokens)) = self.made.front()
            && *at + self.rate.minute <= now
        {
            self.made_tokens -= tokens;
            self.made.pop_front();
        }
        let moment = self.moment(number, now);
        if let Some(at) = self.place(side, number) {
            self.waiting(side)[at].told = Some(moment);
        }
        let wait = moment.saturating_duration_since(now);
        if wait.is_zero()
            && let Some(call) = self.take(side, number)
        {
            self.leaving.push(call);
            self.next = match side {
                Side::Flows => Side::Clients,
                Side::Clients => Side::Flows,
            };
        }
        wait
    }

    /// When the call of that number may be made, where all before it are made as soon as they may, but
    /// those that are overdue.
    fn moment(&self, number: u64, now: Instant) -> Instant {
        let (made, leaving) = (self.made.len(), self.leaving.len());
        let mut planned: Vec<(Instant, u64)> = Vec::new();
        // Those that count in the minute that ends with `moment`: all but the first ones.
        let mut first = 0;
        let mut count = made + leaving;
        let mut used = self.made_tokens + self.leaving.iter().map(|it| it.tokens).sum::<u64>();
        let mut moment = now;
        for call in self.in_turn(number, now) {
            while count > 0 {
                let (at, tokens) = if first < made {
                    self.made[first]
                } else if first < made + leaving {
                    (now, self.leaving[first - made].tokens)
                } else {
                    planned[first - made - leaving]
                };
                if at + self.rate.minute > moment {
                    let has_room = self
                        .rate
                        .requests_per_minute
                        .is_none_or(|most| count < usize::try_from(most).unwrap_or(usize::MAX));
                    let fits = self
                        .rate
                        .tokens_per_minute
                        .is_none_or(|most| used.saturating_add(call.tokens) <= most);
                    if has_room && fits {
                        break;
                    }
                    moment = at + self.rate.minute;
                }
                first += 1;
                count -= 1;
                used -= tokens;
            }
            if call.number == number {
                break;
            }
            planned.push((moment, call.tokens));
            count += 1;
            used += call.tokens;
        }
        moment
    }

    /// Those that wait, in the order in which they may go: one of each side in turn, as long as both
    /// have any. Of those that are overdue only the one of that number, which asks now.
    fn in_turn<'a>(&'a self, number: u64, now: Instant) -> impl Iterator<Item = &'a Waiting> {
        let planned = |calls: &'a VecDeque<Waiting>| {
            let is_planned = move |call: &&Waiting| call.number == number || !call.is_overdue(now);
            calls.iter().filter(is_planned)
        };
        let (flows, clients) = (planned(&self.flows), planned(&self.clients));
        let (mut one, mut other) = match self.next {
            Side::Flows => (flows, clients),
            Side::Clients => (clients, flows),
        };
        std::iter::from_fn(move || {
            let next = one.next();
            std::mem::swap(&mut one, &mut other);
            // Of a side that has none left, nobody comes any more: then both are the other.
            next.or_else(|| one.next())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pace(requests: Option<u32>, tokens: Option<u64>) -> RateLimiter {
        let rate = Rate {
            requests_per_minute: requests,
            tokens_per_minute: tokens,
            minute: MINUTE,
        };
        RateLimiter::new([("p".to_owned(), rate)].into())
    }

    fn seconds(turns: &[Permit], now: Instant) -> Vec<u64> {
        turns
            .iter()
            .map(|permit| permit.wait(now).as_secs())
            .collect()
    }

    #[test]
    fn as_many_go_at_once_as_a_minute_may_have_and_the_next_wait_for_room() {
        let pace = pace(Some(2), None);
        let now = Instant::now();
        let turns = [(); 5].map(|()| pace.give("p", Side::Flows, 1));
        assert_eq!(seconds(&turns, now), [0, 0, 60, 60, 120]);
        let other = pace.give("other", Side::Flows, 1);
        assert_eq!(other.wait(now), Duration::ZERO);
    }

    #[test]
    fn a_turn_that_is_not_used_is_had_by_another() {
        let pace = pace(Some(1), None);
        let now = Instant::now();
        let give = || pace.give("p", Side::Flows, 1);
        let (first, second) = (give(), give());
        assert_eq!(first.wait(now).as_secs(), 0);
        assert_eq!(second.wait(now).as_secs(), 60);
        drop(second);
        assert_eq!(give().wait(now).as_secs(), 60);
        drop(first);
        assert_eq!(give().wait(now).as_secs(), 0);
    }

    #[test]
    fn a_call_that_no_minute_has_room_for_goes_alone() {
        let pace = pace(None, Some(100));
        let turns = [60, 40, 1, 5_000, 1].map(|tokens| pace.give("p", Side::Clients, tokens));
        assert_eq!(seconds(&turns, Instant::now()), [0, 0, 60, 120, 180]);
    }

    #[test]
    fn turns_whose_moment_has_passed_have_no_more_room_together_than_others() {
        let pace = pace(Some(2), None);
        let began = Instant::now();
        let turns = [(); 5].map(|()| pace.give("p", Side::Flows, 1));
        assert_eq!(seconds(&turns[4..], began), [120]);
        // All were kept from it for longer.
        let now = began + Duration::from_secs(140);
        assert_eq!(seconds(&turns, now), [0, 0, 60, 60, 120]);
        // What takes long to leave counts from when it left.
        let later = now + Duration::from_secs(50);
        let [first, second, ..] = turns;
        for permit in [first, second] {
            permit.used_at(later);
        }
        let next = pace.give("p", Side::Flows, 1);
        assert_eq!(seconds(&[next], later), [120]);
    }

    #[test]
    fn clients_and_flows_have_every_other_turn_where_both_wait() {
        let pace = pace(Some(1), None);
        let now = Instant::now();
        let give = |side| pace.give("p", side, 1);
        let first = give(Side::Flows);
        assert_eq!(first.wait(now), Duration::ZERO);
        first.used_at(now);
        let flows = [(); 4].map(|()| give(Side::Flows));
        assert_eq!(seconds(&flows, now), [60, 120, 180, 240]);
        let clients = [(); 2].map(|()| give(Side::Clients));
        assert_eq!(seconds(&clients, now), [60, 180]);
        assert_eq!(seconds(&flows, now), [120, 240, 300, 360]);
    }

    #[test]
    fn a_call_that_nobody_asks_for_is_passed_over_until_somebody_does() {
        let pace = pace(None, Some(30_000));
        let began = Instant::now();
        let give = |side, tokens| pace.give("p", side, tokens);
        let first = give(Side::Flows, 20_000);
        assert_eq!(first.wait(began), Duration::ZERO);
        first.used_at(began);
        let flow = give(Side::Flows, 20_000);
        assert_eq!(flow.wait(began).as_secs(), 60);
        // The turn is the client's, but there is no room for it either.
        let clients = [(); 2].map(|()| give(Side::Clients, 15_000));
        let due = began + MINUTE;
        assert_eq!(clients[0].wait(due), Duration::ZERO);
        // Some time is left to ask.
        let soon = due + LATE_MAX;
        assert_eq!(clients[1].wait(soon), 2 * MINUTE);
        let late = soon + Duration::from_millis(1);
        assert_eq!(clients[1].wait(late), Duration::ZERO);
        for client in clients {
            client.used_at(late);
        }
        // It has kept its place before those that came later.
        let next = give(Side::Flows, 20_000);
        assert_eq!(seconds(&[flow, next], late), [60, 120]);
    }

    #[test]
    fn a_provider_does_not_stand_idle_for_a_flow_that_cannot_ask() {
        let pace = pace(Some(1), None);
        let mut now = Instant::now();
        let flow = pace.give("p", Side::Flows, 1);
        let made = |client: Permit, now| {
            assert_eq!(client.wait(now), Duration::ZERO);
            client.used_at(now);
        };
        made(pace.give("p", Side::Clients, 1), now);
        assert_eq!(flow.wait(now), MINUTE);
        now += 2 * MINUTE;
        for _ in 0..5 {
            made(pace.give("p", Side::Clients, 1), now);
            now += MINUTE;
        }
        made(flow, now);
    }

    /// A call that was made.
    #[derive(Debug)]
    struct Made {
        at: Instant,
        came: Instant,
        number: usize,
        side: Side,
        tokens: u64,
    }

    /// Makes calls: how long after the one before each comes, whose it is, its tokens, and how late it
    /// always is. In the order in which they were made.
    fn play(pace: &RateLimiter, calls: &[(u64, bool, u64, u64)]) -> Vec<Made> {
        let mut now = Instant::now();
        // When each is looked at next.
        let mut waiting: Vec<(Instant, usize, Instant, Permit)> = Vec::new();
        let mut made = Vec::new();
        let mut come = now;
        let mut number = 0;
        loop {
            let due = waiting
                .iter()
                .map(|(due, number, ..)| (*due, *number))
                .min();
            let next = calls
                .get(number)
                .map(|call| come + Duration::from_millis(call.0));
            let side = |number: usize| {
                if calls[number].1 {
                    Side::Flows
                } else {
                    Side::Clients
                }
            };
            let late = |number: usize| Duration::from_millis(calls[number].3);
            match (next, due) {
                (None, None) => return made,
                (Some(next), due) if due.is_none_or(|(due, _)| next <= due) => {
                    (come, now) = (next, next);
                    let permit = pace.give("p", side(number), calls[number].2);
                    waiting.push((now + late(number), number, now, permit));
                    number += 1;
                }
                (_, Some((due, of))) => {
                    now = due;
                    let at = waiting.iter().position(|it| it.1 == of).unwrap();
                    let (_, number, came, permit) = waiting.swap_remove(at);
                    let wait = permit.wait(now);
                    if wait.is_zero() {
                        permit.used_at(now);
                        made.push(Made {
                            at: now,
                            came,
                            number,
                            side: side(number),
                            tokens: calls[number].2,
                        });
                    } else {
                        waiting.push((now + wait + late(number), number, came, permit));
                    }
                }
                (Some(_), None) => unreachable!("it was taken"),
            }
        }
    }

    proptest! {
        #[test]
        fn no_minute_has_more_than_it_may_however_late_turns_are_used(
            requests in proptest::option::of(1u32..6),
            most in proptest::option::of(1u64..200),
            calls in proptest::collection::vec(
                (0u64..30_000, any::<bool>(), 0u64..300, 0u64..200_000), 1..60),
        ) {
            let made = play(&pace(requests, most), &calls);
            prop_assert_eq!(made.len(), calls.len());
            for begin in made.iter().map(|call| call.at) {
                let within = made.iter().filter(|it| it.at >= begin && it.at < begin + MINUTE);
                let tokens = |call: &Made| most.map_or(0, |most| call.tokens.min(most));
                let (count, sum) = within.fold((0, 0), |(n, sum), call| (n + 1, sum + tokens(call)));
                prop_assert!(requests.is_none_or(|requests| count <= requests));
                prop_assert!(most.is_none_or(|most| sum <= most));
            }
        }

        #[test]
        fn each_side_keeps_its_order_and_none_has_two_turns_while_the_other_waits(
            requests in proptest::option::of(1u32..6),
            most in proptest::option::of(1u64..200),
            calls in proptest::collection::vec((0u64..30_000, any::<bool>(), 0u64..300), 1..60),
        ) {
            let calls: Vec<_> = calls.into_iter().map(|(after, side, tokens)| (after, side, tokens, 0)).collect();
            let made = play(&pace(requests, most), &calls);
            for side in [Side::Flows, Side::Clients] {
                prop_assert!(made.iter().filter(|call| call.side == side).is_sorted_by_key(|call| call.number));
            }
            // With tokens, who could go a little earlier than expected is only looked at when expected.
            if most.is_some() {
                return Ok(());
            }
            for (at, pair) in made.windows(2).enumerate() {
                let [one, two] = pair else { continue };
                // Whoever of the other side came next; in the same moment it was not passed over.
                let other = made[at + 2..].iter().find(|other| other.side != one.side);
                let passed_over = other.filter(|other| {
                    one.side == two.side && other.came < one.at && other.at > two.at
                });
                prop_assert!(passed_over.is_none(), "{one:?}, {two:?}, {passed_over:?}");
            }
        }
    }
}
