//! Compares pages and sums with a plain filter over all rows while the clock jumps; checks query
//! plans.

use std::collections::BTreeMap;

use super::*;
use crate::event::{Attribution, Billing, Charge, UsageSource};
use crate::store::block_index;
use crate::store::ledger_filter::Order;
use crate::store::ledger_page::Limits;
use crate::store::testing::{self, new_call};
use crate::store::{Change, LedgerCursor, LedgerQuery, LedgerSort, NewCall, Settlement, Writer};
use crate::time::Timestamp;

const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;
/// Number of optional parts of a filter.
const PARTS: u64 = 7;
/// Repetitions of each combination of parts, each with other values.
const TURNS: usize = 3;
const ROWS: usize = 2_500;
/// Rows per transaction.
const BATCH: usize = 50;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

fn call(random: &mut Random, at: i64) -> NewCall {
    let rare = random.one_in(300);
    NewCall {
        flow_id: (!random.one_in(4)).then(|| random.below(3) as i64),
        run_id: Some(format!("run {}", random.below(40))),
        provider: if rare { "p9".into() } else { "p0".into() },
        model: format!("m{}", if rare { 9 } else { random.below(3) }),
        role: (!random.one_in(3)).then(|| format!("r{}", random.below(2))),
        key_name: random.one_in(3).then(|| format!("k{}", random.below(2))),
        tags: [None, Some("t1"), Some("t1,t10"), Some("t10,t2,t1")][random.below(4) as usize]
            .map(str::to_owned),
        attribution: Attribution {
            client: random.one_in(3).then(|| format!("c{}", random.below(2))),
            session: random.one_in(2).then(|| format!("s{}", random.below(40))),
            end_user: random.one_in(2).then(|| format!("u{}", random.below(9))),
            project: random.one_in(3).then(|| format!("j{}", random.below(2))),
        },
        billing: random.one_in(5).then_some(Billing::Subscription),
        ..new_call(at)
    }
}

fn charge(random: &mut Random) -> Charge {
    let mut cost =
        |one_in| (!random.one_in(one_in)).then(|| Usd::from_nanousd(random.below(100_000) as i64));
    Charge { cost: cost(6), price_cost: cost(2), provider_cost: cost(2), ..Charge::UNKNOWN }
}

fn settlement(random: &mut Random, id: i64, at: i64) -> Settlement {
    let rare = [CallStatus::Timeout, CallStatus::Unknown, CallStatus::Cancelled];
    Settlement {
        model: random.one_in(10).then(|| "m0-2026".to_owned()),
        usage: Usage {
            input_tokens: random.below(1_000),
            cached_input_tokens: random.below(9),
            cache_write_tokens: random.below(9),
            output_tokens: random.below(77),
            reasoning_tokens: random.below(7),
            source: [UsageSource::Provider, UsageSource::Estimated, UsageSource::None]
                [random.below(3) as usize],
            ..Usage::default()
        },
        charge: charge(random),
        status: match random.below(400) {
            0 => rare[random.below(3) as usize],
            1..20 => CallStatus::Failed,
            _ => CallStatus::Success,
        },
        ..testing::settlement(id, at)
    }
}

/// A ledger that is being written, and its expected rows.
struct Books {
    writer: Writer,
    random: Random,
    rows: BTreeMap<i64, LedgerEntry>,
    pending: Vec<i64>,
    now: i64,
}

impl Books {
    /// Writes rows while the clock advances, and sometimes steps back a month or forward a year.
    fn write(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            if self.random.one_in(6) {
                let jumps = [-30, 365, -365, 1, -1];
                self.now += jumps[self.random.below(5) as usize] * MS_PER_DAY;
            }
            let Self { writer, random, rows, pending, now } = self;
            writer
                .transaction(|batch| {
                    for _ in 0..left.min(BATCH) {
                        *now += random.below(MS_PER_DAY as u64 / 40) as i64;
                        let opened = batch.apply(&Change::OpenCall(call(random, *now)))?;
                        let row = testing::row(opened);
                        pending.push(row.id);
                        rows.insert(row.id, row);
                        while pending.len() > 3 || (!pending.is_empty() && random.one_in(3)) {
                            let at = random.below(pending.len() as u64) as usize;
                            let settled = settlement(random, pending.swap_remove(at), *now);
                            let settled = batch.apply(&Change::SettleCall(settled))?;
                            let row = testing::row(settled);
                            rows.insert(row.id, row);
                        }
                    }
                    Ok(())
                })
                .unwrap();
            left -= left.min(BATCH);
            // The journal also does this some time after the calls.
            if self.random.one_in(3) {
                self.writer.index_blocks(4).unwrap();
            }
            if self.random.one_in(3) {
                self.writer.roll_up_day(Timestamp(self.now)).unwrap();
            }
        }
    }

    fn filter(&mut self, parts: u64) -> LedgerFilter {
        let random = &mut self.random;
        let has = |part: u64| parts >> part & 1 == 1;
        let statuses =
            [CallStatus::Success, CallStatus::Failed, CallStatus::Timeout, CallStatus::Pending];
        let models = ["m0", "m9", "m0-2026", "none"];
        let texts = ["M9", "s1", "RUN 3", "T10", "fault"];
        let usd = |nanousd| Usd::from_nanousd(nanousd as i64);
        let mut moment = || {
            let at = random.below(self.rows.len() as u64) as usize;
            let moment = self.rows.values().nth(at).unwrap().timestamp.0;
            let whole_day = moment.div_euclid(MS_PER_DAY) * MS_PER_DAY;
            Timestamp(if random.one_in(2) { moment } else { whole_day })
        };
        let (from, to) = (moment(), moment());
        LedgerFilter {
            flow_id: has(0).then(|| random.below(3) as i64),
            run_id: has(1).then(|| format!("run {}", random.below(40))),
            model: has(2).then(|| models[random.below(4) as usize].to_owned()),
            provider: has(3).then(|| format!("p{}", 9 * random.below(2))),
            statuses: has(4).then(|| statuses[random.below(4) as usize]).into_iter().collect(),
            role: random.one_in(6).then(|| format!("r{}", random.below(3))),
            key: random.one_in(6).then(|| format!("k{}", random.below(3))),
            tag: random.one_in(6).then(|| format!("t{}", random.below(3))),
            client: random.one_in(6).then(|| format!("c{}", random.below(3))),
            session: random.one_in(6).then(|| format!("s{}", random.below(40))),
            end_user: random.one_in(6).then(|| format!("u{}", random.below(9))),
            project: random.one_in(6).then(|| format!("j{}", random.below(3))),
            from: has(5).then_some(from),
            to: has(6).then_some(to),
            node: random.one_in(9).then(|| "node".to_owned()),
            cost_min: random.one_in(7).then(|| usd(random.below(60_000))),
            cost_max: random.one_in(7).then(|| usd(random.below(120_000))),
            ms_min: random.one_in(7).then(|| random.below(90) as i64),
            ms_max: random.one_in(7).then(|| random.below(120) as i64),
            cached: random.one_in(9).then_some(false),
            is_cost_unknown: random.one_in(9),
            text: random.one_in(5).then(|| texts[random.below(5) as usize].to_owned()),
            ..LedgerFilter::default()
        }
    }
}

fn tags(row: &LedgerEntry) -> Vec<&str> {
    let tags = row.more.tags.as_deref();
    tags.map_or_else(Vec::new, |tags| tags.split(',').collect())
}

fn fits(filter: &LedgerFilter, row: &LedgerEntry) -> bool {
    filter.flow_id.is_none_or(|id| row.flow_id == Some(id))
        && (filter.run_id.is_none() || row.run_id == filter.run_id)
        && filter.model.as_ref().is_none_or(|model| row.model_used == *model)
        && filter.provider.as_ref().is_none_or(|name| row.provider == *name)
        && (filter.statuses.is_empty() || filter.statuses.contains(&row.status))
        && (filter.role.is_none() || row.agent_role == filter.role)
        && (filter.key.is_none() || row.more.key_name == filter.key)
        && fits_origin(filter, &row.more.attribution)
        && filter.tag.iter().all(|tag| tags(row).contains(&tag.as_str()))
        && filter.from.is_none_or(|from| row.timestamp >= from)
        && filter.to.is_none_or(|to| row.timestamp < to)
        && (filter.node.is_none() || row.node_id == filter.node)
        && filter.cost_min.is_none_or(|min| row.total_cost_usd.is_some_and(|cost| cost >= min))
        && filter.cost_max.is_none_or(|max| row.total_cost_usd.is_some_and(|cost| cost <= max))
        && filter.ms_min.is_none_or(|min| row.latency_ms.is_some_and(|ms| ms as i64 >= min))
        && filter.ms_max.is_none_or(|max| row.latency_ms.is_some_and(|ms| ms as i64 <= max))
        && filter.cached.is_none_or(|cached| row.more.cached == cached)
        && (!filter.is_cost_unknown
            || row.total_cost_usd.is_none() && row.status != CallStatus::Pending)
        && filter.text.as_ref().is_none_or(|text| contains(row, text))
}

fn contains(row: &LedgerEntry, text: &str) -> bool {
    let origin = &row.more.attribution;
    let optional = [
        &row.node_id,
        &row.more.key_name,
        &row.more.tags,
        &origin.session,
        &origin.client,
        &origin.end_user,
        &origin.project,
        &row.run_id,
        &row.error_message,
    ];
    let texts = optional.into_iter().flatten().chain([&row.provider, &row.model_used]);
    texts.into_iter().any(|it| it.to_lowercase().contains(&text.to_lowercase()))
}

const SORTS: [LedgerSort; 5] = [
    LedgerSort::Time,
    LedgerSort::Cost,
    LedgerSort::Latency,
    LedgerSort::InputTokens,
    LedgerSort::OutputTokens,
];

/// The value that a row is sorted by; none if it comes last.
fn value(sort: LedgerSort, row: &LedgerEntry) -> Option<i64> {
    let tokens = |count: u64| row.usage.known(count).map(|count| count as i64);
    match sort {
        LedgerSort::Time => Some(0),
        LedgerSort::Cost => row.total_cost_usd.map(|cost| cost.nanousd),
        LedgerSort::Latency => row.latency_ms.map(|ms| ms as i64),
        LedgerSort::InputTokens => tokens(row.usage.input_tokens),
        LedgerSort::OutputTokens => tokens(row.usage.output_tokens),
    }
}

/// Returns the ids of all matching rows in order.
fn expected(books: &Books, query: &LedgerQuery) -> Vec<i64> {
    let fitting = books.rows.values().filter(|row| fits(&query.filter, row));
    let mut rows: Vec<_> = fitting.map(|row| (value(query.sort, row), row.id)).collect();
    rows.sort_by(|a, b| {
        let by_value = match query.order {
            Order::Desc => b.cmp(a),
            Order::Asc => a.cmp(b),
        };
        a.0.is_none().cmp(&b.0.is_none()).then(by_value)
    });
    rows.into_iter().map(|(_, id)| id).collect()
}

#[test]
fn pages_of_every_order_contain_each_row_once() {
    let dir = tempfile::tempdir().unwrap();
    let (store, writer) = Store::open(dir.path()).unwrap();
    let mut books = Books {
        writer,
        random: Random(7),
        rows: BTreeMap::new(),
        pending: Vec::new(),
        now: 20_000 * MS_PER_DAY,
    };
    books.write(ROWS);
    for turn in 0..200 {
        let parts = books.random.below(1 << PARTS) & books.random.below(1 << PARTS);
        let mut query = LedgerQuery {
            filter: if turn < 30 { LedgerFilter::default() } else { books.filter(parts) },
            sort: SORTS[books.random.below(5) as usize],
            order: [Order::Desc, Order::Asc][books.random.below(2) as usize],
            before: None,
        };
        let expected = expected(&books, &query);
        // A small limit of examined rows, and sometimes no sorting of a few candidates.
        let limits = Limits {
            examined: 1 + books.random.below(900) as usize,
            sorted: [0, 5_000][books.random.below(2) as usize],
        };
        let mut found = Vec::new();
        loop {
            let size = 1 + books.random.below(80) as usize;
            let page = store.page(&query, size, limits).unwrap();
            assert!(page.rows.len() <= size);
            found.extend(page.rows.iter().map(|row| row.id));
            let Some(next) = page.next else { break };
            query.before = Some(next.to_string().parse().unwrap());
        }
        assert_eq!(found, expected, "{query:?}");
    }
}

#[test]
fn a_cursor_is_read_back_or_refused() {
    for text in ["7", "-3:7", "0:7", "none:7"] {
        assert_eq!(text.parse::<LedgerCursor>().unwrap().to_string(), text);
    }
    for text in ["", "x", ":", "x:1", "1:x", "none", "none:x", "1:2:3"] {
        assert!(text.parse::<LedgerCursor>().is_err(), "{text}");
    }
    let dir = tempfile::tempdir().unwrap();
    let (store, _writer) = Store::open(dir.path()).unwrap();
    for (sort, before) in
        [(LedgerSort::Time, LedgerCursor::Value(1, 2)), (LedgerSort::Cost, LedgerCursor::Id(1))]
    {
        let query = LedgerQuery { sort, before: Some(before), ..LedgerQuery::default() };
        assert!(matches!(store.ledger_page(&query, 5), Err(Error::Invalid { .. })));
    }
}

fn fits_origin(filter: &LedgerFilter, origin: &Attribution) -> bool {
    let fits = |filter: &Option<String>, name: &Option<String>| filter.is_none() || filter == name;
    fits(&filter.client, &origin.client)
        && fits(&filter.session, &origin.session)
        && fits(&filter.end_user, &origin.end_user)
        && fits(&filter.project, &origin.project)
}

fn add(sums: &mut Sums, row: &LedgerEntry) {
    let is = |condition: bool| u64::from(condition);
    let is_pending = row.status == CallStatus::Pending;
    let is_billed = row.more.billing.is_none();
    let is_unknown = is_billed && row.total_cost_usd.is_none() && !is_pending;
    let cost = row.total_cost_usd.unwrap_or_default();
    let is_counted = row.usage.source != UsageSource::None;
    let compared = row.more.price_cost_usd.zip(row.more.provider_cost_usd);
    *sums += &Sums {
        calls: 1,
        succeeded: is(row.status == CallStatus::Success),
        failed: is(row.status != CallStatus::Success && !is_pending),
        pending: is(is_pending),
        unpriced_calls: is(is_unknown && is_counted),
        unknown_cost_calls: is(is_unknown && !is_counted),
        estimated_calls: is(row.usage.source == UsageSource::Estimated),
        input_tokens: row.usage.input_tokens,
        cached_input_tokens: row.usage.cached_input_tokens,
        cache_write_tokens: row.usage.cache_write_tokens,
        output_tokens: row.usage.output_tokens,
        reasoning_tokens: row.usage.reasoning_tokens,
        total_cost_usd: if is_billed { cost } else { Usd::ZERO },
        subscription_cost_usd: if is_billed { Usd::ZERO } else { cost },
        cached_calls: is(row.more.cached),
        saved_usd: row.more.saved_usd.unwrap_or_default(),
        compared_calls: is(compared.is_some()),
        compared_price_cost_usd: compared.unwrap_or_default().0,
        compared_provider_cost_usd: compared.unwrap_or_default().1,
        corrected_calls: is(row.more.corrected_cost_usd.is_some()),
        corrected_cost_usd: row.more.corrected_cost_usd.unwrap_or_default(),
    };
}

/// Returns the group keys of a row.
fn keys(row: &LedgerEntry, group: &str) -> Vec<Option<String>> {
    let one = match group {
        "model" => Some(row.model_used.clone()),
        "provider" => Some(row.provider.clone()),
        "flow" => row.flow_id.map(|id| id.to_string()),
        "role" => row.agent_role.clone(),
        "day" => Some(row.timestamp.to_string()[..10].to_owned()),
        "node" => row.node_id.clone(),
        "status" => Some(row.status.to_string()),
        "key" => row.more.key_name.clone(),
        "client" => row.more.attribution.client.clone(),
        "session" => row.more.attribution.session.clone(),
        "end_user" => row.more.attribution.end_user.clone(),
        "project" => row.more.attribution.project.clone(),
        _ => {
            let all = tags(row).into_iter().map(|tag| Some(tag.to_owned()));
            let all: Vec<_> = all.collect();
            return if all.is_empty() { vec![None] } else { all };
        }
    };
    vec![one]
}

fn compare(store: &Store, books: &mut Books) {
    for parts in (0..1 << PARTS).flat_map(|parts| [parts; TURNS]) {
        let filter = books.filter(parts);
        let newest = *books.rows.keys().next_back().unwrap();
        let before = [None, Some(books.random.below(newest as u64 + 99) as i64)]
            [books.random.below(2) as usize];
        let limit = [1, 50, 100, 5_000][books.random.below(4) as usize];
        let fitting = || books.rows.values().rev().filter(|row| fits(&filter, row));
        let expected: Vec<&LedgerEntry> = fitting()
            .filter(|row| before.is_none_or(|before| row.id < before))
            .take(limit)
            .collect();
        let page = store.ledger(&filter, before, limit).unwrap();
        assert!(page.iter().eq(expected.iter().copied()), "{filter:?} before {before:?}");
        let group = GROUPS[books.random.below(GROUPS.len() as u64) as usize].name;
        let mut groups: BTreeMap<Option<String>, Sums> = BTreeMap::new();
        let mut all = Sums::default();
        for row in fitting() {
            for key in keys(row, group) {
                add(groups.entry(key).or_default(), row);
            }
            add(&mut all, row);
        }
        let (found, total) = store.summary(&filter, group).unwrap();
        let found: BTreeMap<_, _> = found.into_iter().map(|one| (one.key, one.sums)).collect();
        assert_eq!(found, groups, "{filter:?} by {group}");
        assert_eq!(total, all, "{filter:?} by {group}");
    }
}

#[test]
fn pages_and_sums_match_a_plain_filter_across_clock_steps() {
    for seed in 1..4 {
        let dir = tempfile::tempdir().unwrap();
        let (store, writer) = Store::open(dir.path()).unwrap();
        let mut books = Books {
            writer,
            random: Random(seed),
            rows: BTreeMap::new(),
            pending: Vec::new(),
            now: 20_000 * MS_PER_DAY,
        };
        books.write(ROWS);
        compare(&store, &mut books);
        books.writer.index_blocks(1_000).unwrap();
        while books.writer.roll_up_day(Timestamp(books.now)).unwrap() {}
        compare(&store, &mut books);
        let mut noted = 0;
        let mut each = |_: i64, _: i64, is_right: bool| {
            assert!(is_right);
            noted += 1;
        };
        store.read(|connection| block_index::check(connection, &mut each)).unwrap();
        assert!(noted >= ROWS / 128 - 3, "{noted}");
    }
}

#[test]
fn a_cursor_visits_all_matching_rows_once() {
    let dir = tempfile::tempdir().unwrap();
    let (store, writer) = Store::open(dir.path()).unwrap();
    let mut books = Books {
        writer,
        random: Random(5),
        rows: BTreeMap::new(),
        pending: Vec::new(),
        now: 20_000 * MS_PER_DAY,
    };
    books.write(ROWS);
    let filter = LedgerFilter { statuses: vec![CallStatus::Failed], ..LedgerFilter::default() };
    let mut ids = Vec::new();
    let mut before = None;
    loop {
        let page = store.ledger(&filter, before, 7).unwrap();
        ids.extend(page.iter().map(|row| row.id));
        match page.last() {
            Some(row) => before = Some(row.id),
            None => break,
        }
    }
    let fitting = books.rows.values().rev().filter(|row| fits(&filter, row));
    assert!(fitting.map(|row| row.id).eq(ids));
}

#[test]
fn rows_are_found_by_time_across_block_boundaries() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut writer) = Store::open(dir.path()).unwrap();
    let mut random = Random(1);
    let ids: Vec<i64> = writer
        .transaction(|batch| {
            let mut write = |at| {
                let opened = batch.apply(&Change::OpenCall(call(&mut random, at)))?;
                let row = testing::row(opened);
                let settled = settlement(&mut random, row.id, at);
                batch.apply(&Change::SettleCall(settled))?;
                Ok(row.id)
            };
            (0..600).map(&mut write).collect()
        })
        .unwrap();
    // Two of the four full blocks.
    assert_eq!(writer.index_blocks(2).unwrap(), 2);
    for (at, id) in ids.into_iter().enumerate() {
        let filter = LedgerFilter {
            from: Some(Timestamp(at as i64)),
            to: Some(Timestamp(at as i64 + 1)),
            ..LedgerFilter::default()
        };
        for (before, expected) in [
            (None, Some(id)),
            (Some(id + 1), Some(id)),
            (Some(id + 130), Some(id)),
            (Some(id), None),
            (Some(id - 130), None),
        ] {
            let page = store.ledger(&filter, before, 50).unwrap();
            let found: Vec<i64> = page.iter().map(|row| row.id).collect();
            assert_eq!(found, Vec::from_iter(expected), "{id} before {before:?}");
        }
    }
}

#[test]
fn a_block_is_indexed_after_its_open_call_settles() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, mut writer) = Store::open(dir.path()).unwrap();
    let mut random = Random(1);
    let (mut first, mut last) = (0, 0);
    while last < 300 {
        let opened = Change::OpenCall(call(&mut random, 5));
        let opened = writer.transaction(|batch| batch.apply(&opened)).unwrap();
        let row = testing::row(opened);
        last = row.id;
        if first == 0 {
            first = row.id;
            continue;
        }
        let settled = Change::SettleCall(settlement(&mut random, row.id, 5));
        writer.transaction(|batch| batch.apply(&settled)).unwrap();
    }
    assert_eq!(writer.index_blocks(9).unwrap(), 2);
    // No new block.
    assert_eq!(writer.index_blocks(9).unwrap(), 0);
    let settled = Change::SettleCall(settlement(&mut random, first, 5));
    writer.transaction(|batch| batch.apply(&settled)).unwrap();
    assert_eq!(writer.index_blocks(9).unwrap(), 1);
    assert_eq!(writer.index_blocks(9).unwrap(), 0);
}

#[test]
fn a_block_is_indexed_only_when_complete() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, mut writer) = Store::open(dir.path()).unwrap();
    let mut random = Random(1);
    for last in 1..=127 {
        let opened = Change::OpenCall(call(&mut random, 5));
        let settled = Change::SettleCall(settlement(&mut random, last, 5));
        writer
            .transaction(|batch| batch.apply(&opened).and_then(|_| batch.apply(&settled)))
            .unwrap();
        assert_eq!(writer.index_blocks(9).unwrap(), usize::from(last == 127));
    }
}

/// Returns the lines of a statement's query plan.
fn plan(store: &Store, sql: &str) -> Vec<String> {
    store
        .read(|connection| {
            let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
            let lines = statement.raw_query().mapped(|row| row.get("detail"));
            Ok(lines.collect::<rusqlite::Result<_>>()?)
        })
        .unwrap()
}

/// Filters with every combination of parts.
fn filters() -> impl Iterator<Item = LedgerFilter> {
    (0..1 << PARTS).map(|parts: u64| {
        let has = |part: u64| parts >> part & 1 == 1;
        LedgerFilter {
            flow_id: has(0).then_some(1),
            run_id: has(1).then(|| "run".to_owned()),
            model: has(2).then(|| "model".to_owned()),
            provider: has(3).then(|| "provider".to_owned()),
            statuses: has(4).then_some(CallStatus::Failed).into_iter().collect(),
            from: has(5).then_some(Timestamp(1)),
            to: has(6).then_some(Timestamp(2)),
            ..LedgerFilter::default()
        }
    })
}

/// A page checks that its queries do not sort, unless few rows are sorted.
#[test]
fn pages_of_all_filters_and_orders_have_an_index() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _writer) = Store::open(dir.path()).unwrap();
    let named = [
        LedgerFilter { session: Some("s".into()), ..LedgerFilter::default() },
        LedgerFilter { end_user: Some("u".into()), ..LedgerFilter::default() },
        LedgerFilter { key: Some("k".into()), ..LedgerFilter::default() },
        LedgerFilter { statuses: vec![CallStatus::Pending], ..LedgerFilter::default() },
        LedgerFilter { cost_min: Some(Usd::ZERO), ..LedgerFilter::default() },
        LedgerFilter { ms_max: Some(7), text: Some("x".into()), ..LedgerFilter::default() },
    ];
    for filter in filters().chain(named) {
        for sort in SORTS {
            for order in [Order::Desc, Order::Asc] {
                let cursors: &[LedgerCursor] = match sort {
                    LedgerSort::Time => &[LedgerCursor::Id(7)],
                    _ => &[LedgerCursor::Value(7, 7), LedgerCursor::NoValue(7)],
                };
                for before in std::iter::once(None).chain(cursors.iter().copied().map(Some)) {
                    let query = LedgerQuery { filter: filter.clone(), sort, order, before };
                    assert!(store.ledger_page(&query, 5).unwrap().rows.is_empty());
                }
            }
        }
    }
}

#[test]
fn sums_of_sessions_and_end_users_use_their_index() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _writer) = Store::open(dir.path()).unwrap();
    let session = LedgerFilter { session: Some("s".into()), ..LedgerFilter::default() };
    let end_user = LedgerFilter { end_user: Some("u".into()), ..LedgerFilter::default() };
    for filter in [session, end_user] {
        let (table, _) = table(&filter, &GROUPS[0], 7);
        let plan = self::plan(&store, &summary_sql(&GROUPS[0], &table));
        let by_index = plan.iter().filter(|line| line.contains("USING INDEX ledger_by_"));
        assert!(by_index.count() >= 2, "{plan:?}");
    }
}

#[test]
fn sum_queries_never_scan_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _writer) = Store::open(dir.path()).unwrap();
    for filter in filters() {
        for rolled_up_until in [Day::MIN, 7] {
            let (table, _) = table(&filter, &GROUPS[0], rolled_up_until);
            let plan = plan(&store, &summary_sql(&GROUPS[0], &table));
            let of_tables: Vec<_> = plan.iter().filter(|line| line.contains(" ledger")).collect();
            assert_eq!(of_tables.len(), 4, "{filter:?}: {plan:?}");
            // Rows are found by their corrections, which are few.
            assert_eq!(of_tables[3], "SEARCH ledger USING INTEGER PRIMARY KEY (rowid=?)");
            let of_tables = &of_tables[..3];
            // The daily rollup has no runs: the condition is `0`, and no row is read.
            let of_tables = &of_tables[usize::from(filter.run_id.is_some())..];
            let index = match &filter.run_id {
                Some(_) => "ledger_by_run (run_id=?)",
                None => "ledger_by_time (timestamp_ms>? AND timestamp_ms<?)",
            };
            let is_found = |line: &&String| {
                line.contains("USING INDEX ledger_days_by_day (day>? AND day<?)")
                    || line.contains(index)
            };
            assert!(of_tables.iter().all(is_found), "{filter:?}: {plan:?}");
        }
    }
}
