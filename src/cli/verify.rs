//! `flowledger verify`: whether all that the database says agrees with itself.
//!
//! It reads the database as it is at one moment, from one end to the other, and changes nothing. What
//! it finds goes to standard output, its progress to standard error.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::value::RawValue;

use super::FAILED;
use crate::config::Config;
use crate::error::Result;
use crate::event::{LedgerEntry, RefusedBy, Timestamp, Usage, UsageSource, Usd};
use crate::providers::Kind;
use crate::providers::prices::{Price, StoredPrice};
use crate::store::{Audit, AuditCall, AuditDay, AuditNames, AuditRun, AuditSums, add_to_day};

/// How many discrepancies of one kind are told; of the others, how many there are.
const TOLD_MAX: u64 = 50;
const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;
/// The line of progress moves after so many rows.
const PROGRESS_STEP: u64 = 4_096;

/// Checks all, and tells what it finds. The status is 0 where there is no discrepancy, else 1.
pub fn run(config: &Config) -> Result<ExitCode> {
    let audit = Audit::open(&config.data)?;
    let in_use = audit.is_in_use();
    let extent = audit.extent()?;
    let while_used = if in_use {
        ", while a flowledger has it open"
    } else {
        ""
    };
    say(format_args!("{}{while_used}", config.data.display()));
    let progress = progress(extent.calls + extent.runs + extent.events);
    let mut verify = Verify {
        config,
        audit: &audit,
        in_use,
        progress,
        done: 0,
        found: 0,
    };
    verify.file()?;
    verify.calls()?;
    verify.runs()?;
    verify.events(extent.calls)?;
    verify.progress.finish_and_clear();
    Ok(match verify.found {
        0 => {
            say("no discrepancy");
            ExitCode::SUCCESS
        }
        1 => {
            say("1 discrepancy");
            ExitCode::from(FAILED)
        }
        found => {
            say(format_args!("{} discrepancies", grouped(found)));
            ExitCode::from(FAILED)
        }
    })
}

/// Whoever started it may not read what it says.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn progress(length: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{percent:>3} % {wide_bar} {msg}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

/// `1,234,567`.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// An amount that may not be known.
fn money(cost: Option<i64>) -> String {
    cost.map_or_else(
        || "unknown".to_owned(),
        |cost| format!("{} USD", Usd::from_nanousd(cost)),
    )
}

fn sums(sums: &AuditSums) -> String {
    format!(
        "{} tokens in, {} out, {}",
        sums.input_tokens,
        sums.output_tokens,
        money(sums.cost)
    )
}

/// What one check has found.
struct Check {
    /// What is looked at, in the plural.
    what: &'static str,
    /// How many were.
    checked: u64,
    /// How many discrepancies there are.
    found: u64,
}

impl Check {
    fn of(what: &'static str) -> Self {
        Self {
            what,
            checked: 0,
            found: 0,
        }
    }

    fn wrong(&mut self, fault: impl Display) {
        self.found += 1;
        if self.found <= TOLD_MAX {
            say(format_args!("  wrong: {fault}"));
        }
    }
}

struct Verify<'a> {
    config: &'a Config,
    audit: &'a Audit,
    in_use: bool,
    progress: ProgressBar,
    done: u64,
    found: u64,
}

impl Verify<'_> {
    fn advance(&mut self) {
        self.done += 1;
        if self.done.is_multiple_of(PROGRESS_STEP) {
            self.progress.set_position(self.done);
        }
    }

    /// Says what came of a check.
    fn end(&mut self, check: &Check) {
        if let Some(more @ 1..) = check.found.checked_sub(TOLD_MAX) {
            say(format_args!("  wrong: and {} more", grouped(more)));
        }
        let result = match check.found {
            0 => "ok".to_owned(),
            found => format!("{} WRONG", grouped(found)),
        };
        say(format_args!(
            "{}: {}, {result}",
            check.what,
            grouped(check.checked)
        ));
        self.found += check.found;
    }

    fn note(&self, count: u64, what: &str) {
        if count > 0 {
            say(format_args!("  note: {} {what}", grouped(count)));
        }
    }

    /// The file as SQLite sees it.
    fn file(&mut self) -> Result<()> {
        let mut check = Check::of("database files");
        check.checked = 1;
        for fault in self.audit.quick_check()? {
            check.wrong(fault);
        }
        self.end(&check);
        Ok(())
    }

    /// The ledger, row by row: numbers, states, costs.
    fn calls(&mut self) -> Result<()> {
        let mut rows = Check::of("ledger rows");
        let mut costs = Check::of("costs computed again");
        let mut prices: HashMap<i64, Option<Price>> = HashMap::new();
        let (says, until) = self.audit.days()?;
        let mut days: HashMap<AuditNames, AuditDay> = HashMap::new();
        let mut is_before_prices = true;
        let (mut last, mut pending, mut unpriced, mut older) = (0_i64, 0, 0, 0);
        let mut broken = None;
        let audit = self.audit;
        audit.calls(|call| {
            self.advance();
            rows.checked += 1;
            // Every call gets a number before it is made, and no row is ever removed.
            if call.id != last + 1 {
                rows.wrong(match call.id - last {
                    2 => format_args!("ledger row {} is missing", last + 1).to_string(),
                    _ => format!("ledger rows {} to {} are missing", last + 1, call.id - 1),
                });
            }
            last = call.id;
            if call.names.status == "PENDING" {
                pending += 1;
            }
            is_before_prices &= call.is_without_reserve;
            if is_before_prices && call.price_id.is_none() && call.cost != Some(0) {
                older += u64::from(call.cost.is_some());
            }
            unpriced += u64::from(call.cost.is_none() && call.names.status != "PENDING");
            if call.names.day < until {
                add_to_day(&mut days, &call.names, &call.counts());
            }
            let may_be_unpriced = is_before_prices || self.may_be_free(&call.names.provider);
            if let Some(fault) = fault_of(&call, may_be_unpriced) {
                rows.wrong(format_args!("ledger row {}: {fault}", call.id));
            }
            let Some(price_id) = call.price_id else {
                return;
            };
            costs.checked += 1;
            let price = prices.entry(price_id).or_insert_with(|| {
                match audit.price(price_id) {
                    Ok(Some(text)) => match StoredPrice::from_json(&text) {
                        Ok(stored) => return Some(stored.price()),
                        Err(error) => {
                            costs.wrong(format_args!("price {price_id} cannot be read: {error}"));
                        }
                    },
                    Ok(None) => {}
                    Err(error) => broken = Some(error),
                }
                None
            });
            let Some(price) = price else {
                costs.wrong(format_args!(
                    "ledger row {}: price {price_id} is not there",
                    call.id
                ));
                return;
            };
            let computed = usage(&call).map(|usage| price.cost(&usage).nanousd);
            if call.cost != computed {
                costs.wrong(format_args!(
                    "ledger row {}: cost is {}, but {} by price {price_id}",
                    call.id,
                    money(call.cost),
                    money(computed)
                ));
            }
        })?;
        if let Some(error) = broken {
            return Err(error);
        }
        let given = self.audit.last_number("ledger")?;
        if given != last {
            rows.wrong(format_args!(
                "the newest ledger row is {last}, but {given} was given: what comes after is missing"
            ));
        }
        if pending > 0 && !self.in_use {
            rows.wrong(format_args!(
                "{pending} rows are PENDING, though no flowledger runs; the next `flowledger serve` \
                 makes them UNKNOWN"
            ));
        } else {
            self.note(pending, "calls under way");
        }
        self.note(unpriced, "rows whose cost is not known");
        self.note(
            older,
            "rows from before prices were kept; their costs are not computed again",
        );
        self.end(&rows);
        self.end(&costs);
        self.blocks()?;
        self.days(&says, &days);
        self.budget_days()
    }

    /// Whether calls of that provider may be free by their nature: it is an `echo`, or nobody knows any
    /// more what it was.
    fn may_be_free(&self, provider: &str) -> bool {
        let provider = self.config.providers.get(provider);
        provider.is_none_or(|provider| provider.kind == Kind::Echo)
    }

    /// What is noted of blocks of ledger rows, by which filters find theirs, against the rows.
    fn blocks(&mut self) -> Result<()> {
        let mut check = Check::of("blocks of ledger rows that are noted");
        self.audit.blocks(|first, last, is_right| {
            check.checked += 1;
            if !is_right {
                check.wrong(format_args!(
                    "ledger rows {first} to {last} hold other names or times than are noted: \
                     filters may not find them"
                ));
            }
        })?;
        self.end(&check);
        Ok(())
    }

    /// What budgets count of days against their rows.
    fn budget_days(&mut self) -> Result<()> {
        let mut check = Check::of("days that are summed up for budgets");
        self.audit.budget_days(|day, is_right| {
            check.checked += 1;
            if !is_right {
                let date = Timestamp(day.saturating_mul(MS_PER_DAY)).to_string();
                let date = date.get(..10).unwrap_or(&date);
                check.wrong(format_args!(
                    "budgets count something else of {date} than its ledger rows come to"
                ));
            }
        })?;
        self.end(&check);
        Ok(())
    }

    /// What is summed up of days against their rows, name by name.
    fn days(&mut self, says: &HashMap<AuditNames, AuditDay>, rows: &HashMap<AuditNames, AuditDay>) {
        let mut check = Check::of("sums of days");
        let all: BTreeSet<&AuditNames> = says.keys().chain(rows.keys()).collect();
        for names in all {
            check.checked += 1;
            let (says, rows) = (says.get(names), rows.get(names));
            if says != rows {
                let counts = |counts: Option<&AuditDay>| match counts {
                    Some(counts) => format!("{counts:?}"),
                    None => "nothing".to_owned(),
                };
                check.wrong(format_args!(
                    "the day of {}: its sums say {}, its ledger rows {}",
                    named(names),
                    counts(says),
                    counts(rows)
                ));
            }
        }
        self.end(&check);
    }

    /// Runs and nodes against their ledger rows.
    fn runs(&mut self) -> Result<()> {
        let mut runs = Check::of("runs");
        let mut nodes = Check::of("nodes");
        let (mut open, mut deleted) = (0, 0);
        let audit = self.audit;
        audit.runs(|run| {
            if run.stored.is_some() {
                self.advance();
                runs.checked += 1;
            } else {
                deleted += 1;
            }
            nodes.checked += run.nodes.len() as u64;
            open += u64::from(check_run(&run, &mut runs));
            check_nodes(&run, &mut nodes);
        })?;
        self.note(open, "runs that are not over");
        self.note(deleted, "runs were deleted, whose ledger rows are kept");
        self.end(&runs);
        self.end(&nodes);
        Ok(())
    }

    /// The event log: without gaps, and the newest that it says of each ledger row is the row.
    fn events(&mut self, calls: u64) -> Result<()> {
        let mut events = Check::of("events");
        let mut updates = Check::of("ledger rows that the event log tells of");
        let mut seen = Seen::default();
        let mut above = None;
        let audit = self.audit;
        let given = audit.last_number("events")?;
        audit.events_backwards(|event| {
            self.advance();
            events.checked += 1;
            let seq = i64::try_from(event.seq).unwrap_or(i64::MAX);
            match above {
                None if seq != given => events.wrong(format_args!(
                    "the newest event is {seq}, but {given} was given: what comes after is missing"
                )),
                Some(above) if seq + 1 != above => events.wrong(match above - seq {
                    2 => format!("event {} is missing", seq + 1),
                    _ => format!("events {} to {} are missing", seq + 1, above - 1),
                }),
                _ => {}
            }
            above = Some(seq);
            let Some(body) = event.update else {
                return Ok(());
            };
            let Some(id) = ledger_row(&body) else {
                events.wrong(format_args!("event {seq} tells of no ledger row: {body}"));
                return Ok(());
            };
            if !seen.insert(id) {
                return Ok(());
            }
            updates.checked += 1;
            match audit.entry(id) {
                Ok(None) => updates.wrong(format_args!(
                    "ledger row {id} is missing, but event {seq} tells of it"
                )),
                Ok(Some(entry)) => {
                    if let Some((told, stored)) = difference(&body, &entry) {
                        updates.wrong(format_args!(
                            "ledger row {id}: the newest event, {seq}, says {told}, the row {stored}"
                        ));
                    }
                }
                Err(error) => updates.wrong(format_args!(
                    "ledger row {id}: is not as event {seq} says: {error}"
                )),
            }
            Ok(())
        })?;
        // Only where the log goes back to its beginning is it known that it tells of all rows.
        if above == Some(1) && updates.checked < calls {
            updates.wrong(format_args!(
                "{} ledger rows, of which no event tells, though the log is whole",
                grouped(calls - updates.checked)
            ));
        }
        self.end(&events);
        self.end(&updates);
        Ok(())
    }
}

/// `2026-11-22T00:00:00.000Z, SUCCESS of openai/gpt-4o in flow 1 as writer`.
fn named(names: &AuditNames) -> String {
    let midnight = Timestamp(names.day.saturating_mul(MS_PER_DAY));
    let flow = names.flow_id.map(|id| format!(" in flow {id}"));
    let role = names.role.as_ref().map(|role| format!(" as {role}"));
    format!(
        "{midnight}, {} of {}/{}{}{}",
        names.status,
        names.provider,
        names.model,
        flow.unwrap_or_default(),
        role.unwrap_or_default()
    )
}

/// What of a row contradicts itself. `may_be_unpriced` says whether it may have a cost without a price.
fn fault_of(call: &AuditCall, may_be_unpriced: bool) -> Option<String> {
    const SETTLED: [&str; 5] = ["SUCCESS", "FAILED", "TIMEOUT", "CANCELLED", "UNKNOWN"];
    let status = call.names.status.as_str();
    let has_tokens = call.tokens != [0; 6];
    if call.tokens.iter().any(|tokens| *tokens < 0) {
        return Some(format!("a number of tokens is negative: {:?}", call.tokens));
    }
    let [input, read, write, hour, output, reasoning] = call.tokens;
    if read.saturating_add(write) > input || hour > write || reasoning > output {
        return Some(format!(
            "tokens are more than what they are a part of: {:?}",
            call.tokens
        ));
    }
    match call.usage_source.parse::<UsageSource>() {
        Ok(UsageSource::None) if has_tokens => {
            return Some(format!("has tokens from nowhere: {:?}", call.tokens));
        }
        Ok(_) => {}
        Err(why) => return Some(format!("the source of its tokens: {why}")),
    }
    if status == "PENDING" {
        let is_blank = call.cost.is_none() && call.price_id.is_none() && !has_tokens;
        return (!is_blank).then(|| {
            format!(
                "is PENDING, but has tokens, a price or a cost: {:?}, {:?}, {}",
                call.tokens,
                call.price_id,
                money(call.cost)
            )
        });
    }
    if !SETTLED.contains(&status) {
        return Some(format!("`{status}` is no status"));
    }
    if let Some(by) = &call.refused {
        if let Err(why) = by.parse::<RefusedBy>() {
            return Some(format!("what refused it: {why}"));
        }
        if status != "FAILED" || call.cost != Some(0) || has_tokens {
            return Some(format!(
                "was refused by a {by} before it left, but is {status}, with {:?} tokens and a cost \
                 of {}",
                call.tokens,
                money(call.cost)
            ));
        }
    }
    if call.cached {
        let is_free = call.cost == Some(0) && call.price_id.is_none() && !has_tokens;
        let is_right = is_free && status == "SUCCESS" && call.saved.unwrap_or(0) >= 0;
        return (!is_right).then(|| {
            format!(
                "came from the cache, but is {status}, with {:?} tokens, price {:?} and a cost of \
                 {}; it saved {}",
                call.tokens,
                call.price_id,
                money(call.cost),
                money(call.saved)
            )
        });
    }
    if call.saved.is_some() {
        let saved = money(call.saved);
        return Some(format!("did not come from the cache, but saved {saved}"));
    }
    match (call.cost, call.price_id) {
        (Some(cost), _) if cost < 0 => Some(format!("its cost is {}", money(Some(cost)))),
        // What was never sent or was refused has no tokens, and no price.
        (Some(cost), None)
            if !may_be_unpriced && (cost != 0 || has_tokens || status == "SUCCESS") =>
        {
            Some(format!(
                "its cost is {}, but it has no price, which only calls of `echo` do without",
                money(Some(cost))
            ))
        }
        (Some(cost), None) if cost != 0 && !call.is_without_reserve => Some(format!(
            "its cost is {}, but it has no price",
            money(Some(cost))
        )),
        // With the tokens and the price its cost would be known.
        (None, Some(price)) => Some(format!("it has price {price}, but its cost is not known")),
        (_, Some(price)) if call.usage_source == "none" => Some(format!(
            "it has price {price}, but its tokens are not known"
        )),
        _ => None,
    }
}

/// None where a count is negative.
fn usage(call: &AuditCall) -> Option<Usage> {
    let mut counts = [0_u64; 6];
    for (count, stored) in counts.iter_mut().zip(call.tokens) {
        *count = u64::try_from(stored).ok()?;
    }
    let [input, read, write, hour, output, reasoning] = counts;
    Some(Usage {
        input_tokens: input,
        cached_input_tokens: read,
        cache_write_tokens: write,
        cache_write_1h_tokens: hour,
        output_tokens: output,
        reasoning_tokens: reasoning,
        ..Usage::default()
    })
}

/// Checks the run by itself. Gives whether it is not over.
fn check_run(run: &AuditRun, check: &mut Check) -> bool {
    let Some(stored) = &run.stored else {
        return false;
    };
    let id = &run.id;
    let status = stored.status.as_str();
    match status {
        "COMPLETED" | "FAILED" | "CANCELLED" => {}
        "QUEUED" | "RUNNING" => return true,
        _ => {
            check.wrong(format_args!("run {id}: `{status}` is no status"));
            return false;
        }
    }
    if stored.sums != run.sums {
        check.wrong(format_args!(
            "run {id}: says {}; its {} ledger rows {}",
            sums(&stored.sums),
            run.calls,
            sums(&run.sums)
        ));
    }
    if !stored.is_finished {
        check.wrong(format_args!("run {id}: is {status}, but has no end"));
    }
    if run.running_items > 0 {
        check.wrong(format_args!(
            "run {id}: is {status}, but {} items of maps are RUNNING",
            run.running_items
        ));
    }
    match stored.graph_nodes {
        None => check.wrong(format_args!("run {id}: its graph is missing")),
        Some(count) if status == "COMPLETED" && count != run.nodes.len() => {
            check.wrong(format_args!(
                "run {id}: is COMPLETED, but of its {count} nodes {} have begun",
                run.nodes.len()
            ));
        }
        Some(_) => {}
    }
    false
}

/// Checks the nodes of a run.
fn check_nodes(run: &AuditRun, check: &mut Check) {
    let id = &run.id;
    let Some(stored) = &run.stored else {
        if !run.nodes.is_empty() || run.items > 0 {
            check.wrong(format_args!(
                "run {id}: is not there, but {} nodes and {} items of it are",
                run.nodes.len(),
                run.items
            ));
        }
        return;
    };
    let is_over = !matches!(stored.status.as_str(), "QUEUED" | "RUNNING");
    for node in &run.nodes {
        let name = &node.id;
        let status = node.status.as_str();
        let is_known = matches!(
            status,
            "WAITING" | "RUNNING" | "COMPLETED" | "FAILED" | "CANCELLED" | "SKIPPED"
        );
        if !is_known {
            check.wrong(format_args!(
                "run {id}, node {name}: `{status}` is no status"
            ));
        }
        let fits = match stored.status.as_str() {
            "COMPLETED" => matches!(status, "COMPLETED" | "SKIPPED"),
            _ => !is_over || status != "RUNNING",
        };
        if is_known && !fits {
            check.wrong(format_args!(
                "run {id}, node {name}: is {status}, but its run {}",
                stored.status
            ));
        }
        let of_calls = run.node_sums.get(name).copied();
        let of_calls = of_calls.unwrap_or(AuditSums {
            cost: Some(0),
            ..AuditSums::default()
        });
        // Others get their sums when they end.
        if matches!(status, "COMPLETED" | "FAILED" | "CANCELLED") && node.sums != of_calls {
            check.wrong(format_args!(
                "run {id}, node {name}: says {}; its ledger rows {}",
                sums(&node.sums),
                sums(&of_calls)
            ));
        }
    }
    for name in run.node_sums.keys() {
        if !run.nodes.iter().any(|node| node.id == *name) {
            check.wrong(format_args!(
                "run {id}, node {name}: has ledger rows, but never began"
            ));
        }
    }
}

/// The message of an update, as far as it is needed.
#[derive(serde::Deserialize)]
struct Update<'a> {
    #[serde(borrow)]
    payload: Payload<'a>,
}

#[derive(serde::Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    entry: &'a RawValue,
}

#[derive(serde::Deserialize)]
struct EntryId {
    id: i64,
}

/// Which ledger row a message is about.
fn ledger_row(body: &str) -> Option<i64> {
    // Where it has the usual form, it need not be read.
    const BEFORE: &str = "\"entry\":{\"id\":";
    let usual = body.rfind(BEFORE).and_then(|at| {
        let rest = body.get(at + BEFORE.len()..)?;
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        rest.get(..end)?.parse().ok()
    });
    usual.or_else(|| {
        let update: Update<'_> = serde_json::from_str(body).ok()?;
        let entry: EntryId = serde_json::from_str(update.payload.entry.get()).ok()?;
        Some(entry.id)
    })
}

/// What a message says of a row and what the row says, where that is not the same.
fn difference(body: &str, entry: &LedgerEntry) -> Option<(String, String)> {
    let stored = serde_json::to_string(entry).unwrap_or_default();
    // Messages are written by the same hand, and the row is the last that they say.
    let told = body.strip_suffix("}}");
    if !stored.is_empty() && told.is_some_and(|told| told.ends_with(&stored)) {
        return None;
    }
    let update: Option<Update<'_>> = serde_json::from_str(body).ok();
    let told = update.map_or_else(String::new, |update| update.payload.entry.get().to_owned());
    // One written by another version may say the same in another way.
    let same = serde_json::from_str::<LedgerEntry>(&told).is_ok_and(|told| told == *entry);
    (!same).then(|| first_difference(&told, &stored))
}

/// The first field that is not the same in two objects, as JSON.
fn first_difference(told: &str, stored: &str) -> (String, String) {
    let read = |text: &str| serde_json::from_str::<HashMap<String, Box<RawValue>>>(text).ok();
    if let (Some(told), Some(stored)) = (read(told), read(stored)) {
        let mut names: Vec<&String> = told.keys().chain(stored.keys()).collect();
        names.sort();
        for name in names {
            let field = |of: &HashMap<String, Box<RawValue>>| {
                let value = of.get(name).map_or("nothing", |value| value.get());
                format!("{name}: {value}")
            };
            if field(&told) != field(&stored) {
                return (field(&told), field(&stored));
            }
        }
    }
    (told.to_owned(), stored.to_owned())
}

/// How many numbers have their bits together.
const SEEN_BITS: i64 = 512;

/// Which numbers were seen: a bit for each, and nothing for ranges in which none was.
#[derive(Default)]
struct Seen(HashMap<i64, [u64; SEEN_BITS as usize / 64]>);

impl Seen {
    /// Whether it is new.
    fn insert(&mut self, number: i64) -> bool {
        let bits = self.0.entry(number.div_euclid(SEEN_BITS)).or_default();
        // Below SEEN_BITS.
        let at = number.rem_euclid(SEEN_BITS) as usize;
        let (word, bit) = (&mut bits[at / 64], 1_u64 << (at % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_in_groups_of_three_digits() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }

    #[test]
    fn a_number_is_new_once() {
        let mut seen = Seen::default();
        assert!(seen.insert(70) && seen.insert(3) && seen.insert(0));
        assert!(!seen.insert(70) && !seen.insert(3));
        assert!(seen.insert(-1) && seen.insert(i64::MAX) && seen.insert(i64::MIN));
        assert!(!seen.insert(i64::MAX));
    }

    #[test]
    fn the_row_that_a_message_is_about_is_found_in_any_form() {
        let usual = r#"{"type":"LEDGER_UPDATE","payload":{"flowId":1,"entry":{"id":17,"x":1}}}"#;
        assert_eq!(ledger_row(usual), Some(17));
        let other = r#"{"payload": {"entry": {"x": {"id": 3}, "id": 18}}}"#;
        assert_eq!(ledger_row(other), Some(18));
        assert_eq!(ledger_row("{}"), None);
    }
}
