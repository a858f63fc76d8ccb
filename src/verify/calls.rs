//! Checks the ledger row by row: ids, statuses and costs.

use std::collections::HashMap;

use super::{Check, money};
use crate::error::Result;
use crate::event::{CallStatus, CostSource, RefusedBy, Usage, UsageSource};
use crate::prices::{Price, StoredPrice};
use crate::store::{Audit, AuditCall};

pub(super) fn check(
    audit: &Audit,
    may_be_free: &dyn Fn(&str) -> bool,
    on_row: &dyn Fn(),
    report: &mut dyn FnMut(Check),
) -> Result<()> {
    let mut calls = Calls {
        audit,
        may_be_free,
        rows: Check::of("ledger rows"),
        costs: Check::of("recomputed costs"),
        prices: HashMap::new(),
        is_before_prices: true,
        last: 0,
        pending: 0,
        unpriced: 0,
        unknown: 0,
        deviating: 0,
        older: 0,
    };
    let is_in_use = audit.is_in_use();
    let mut result = Ok(());
    audit.calls(|call| {
        on_row();
        if result.is_ok() {
            result = calls.row(&call);
        }
    })?;
    result?;
    calls.end(is_in_use)?;
    report(calls.rows);
    report(calls.costs);
    Ok(())
}

struct Calls<'a> {
    audit: &'a Audit,
    may_be_free: &'a dyn Fn(&str) -> bool,
    rows: Check,
    costs: Check,
    prices: HashMap<i64, Option<Price>>,
    /// True while all rows so far are older than stored prices.
    is_before_prices: bool,
    last: i64,
    pending: u64,
    unpriced: u64,
    unknown: u64,
    /// Rows whose provider stated another cost than our own price's.
    deviating: u64,
    older: u64,
}

impl Calls<'_> {
    fn row(&mut self, call: &AuditCall) -> Result<()> {
        self.rows.checked += 1;
        // Every call gets an id before it is made, and no row is ever removed.
        if call.id != self.last + 1 {
            self.rows.add_gap("ledger row", self.last, call.id);
        }
        self.last = call.id;
        let is_pending = call.status == "PENDING";
        self.pending += u64::from(is_pending);
        let is_unknown = call.cost.is_none() && !is_pending;
        let is_counted = call.usage_source != "none";
        self.unpriced += u64::from(is_unknown && is_counted);
        self.unknown += u64::from(is_unknown && !is_counted);
        self.is_before_prices &= call.is_without_reserve;
        if self.is_before_prices && call.price_id.is_none() && call.cost != Some(0) {
            self.older += u64::from(call.cost.is_some());
        }
        let may_be_unpriced = self.is_before_prices || (self.may_be_free)(&call.provider);
        if let Some(fault) = fault_of(call, may_be_unpriced) {
            self.rows.add(format_args!("ledger row {}: {fault}", call.id));
        }
        call.price_id.map_or(Ok(()), |price_id| self.cost(call, price_id))
    }

    fn cost(&mut self, call: &AuditCall, price_id: i64) -> Result<()> {
        self.costs.checked += 1;
        if !self.prices.contains_key(&price_id) {
            let stored = self.audit.price(price_id)?;
            let read = stored.map(|text| StoredPrice::from_json(&text)).transpose();
            let price = read.unwrap_or_else(|error| {
                let costs = &mut self.costs;
                costs.add(format_args!("cannot read price {price_id}: {error}"));
                None
            });
            self.prices.insert(price_id, price.map(|stored| stored.price()));
        }
        let Some(Some(price)) = self.prices.get(&price_id) else {
            self.costs.add(format_args!("ledger row {}: price {price_id} is missing", call.id));
            return Ok(());
        };
        let computed = usage(call.tokens).map(|usage| price.cost(&usage).nanousd);
        let own_cost = match call.provider_cost {
            Some(_) => call.price_cost,
            None => call.cost,
        };
        if own_cost != computed {
            self.costs.add(format_args!(
                "ledger row {}: the cost is {}, but {} according to price {price_id}",
                call.id,
                money(own_cost),
                money(computed)
            ));
        }
        if call.provider_cost.is_some_and(|cost| Some(cost) != own_cost) {
            self.deviating += 1;
        }
        Ok(())
    }

    fn end(&mut self, is_in_use: bool) -> Result<()> {
        let (rows, last, pending) = (&mut self.rows, self.last, self.pending);
        let open = self.audit.open_calls()?.min(pending);
        let assigned = self.audit.last_number("ledger")?;
        if assigned != last {
            rows.add(format_args!(
                "the newest ledger row is {last}, but id {assigned} was assigned: later rows are missing"
            ));
        }
        let description = match is_in_use {
            true => "calls in flight",
            // Their events are compared as well, so a changed status does not hide here.
            false => {
                "rows are PENDING: the database is a copy of one in use, or its process was \
                 killed; the next `flowledger serve` sets them to UNKNOWN"
            }
        };
        rows.notes.push((pending - open, description));
        rows.notes.push((open, "background calls whose end was not read yet"));
        rows.notes.push((self.unpriced, "rows with tokens and an unknown price"));
        rows.notes.push((self.unknown, "failed calls with unknown tokens and an unknown cost"));
        let costs = &mut self.costs.notes;
        costs
            .push((self.deviating, "rows whose provider stated another cost than the price table"));
        rows.notes
            .push((self.older, "rows older than stored prices; their costs are not recomputed"));
        Ok(())
    }
}

/// Returns the first contradiction within a row. `may_be_unpriced`: the row may have a cost without
/// a price.
fn fault_of(call: &AuditCall, may_be_unpriced: bool) -> Option<String> {
    tokens_fault(call).or_else(|| state_fault(call)).or_else(|| match call.status.as_str() {
        "PENDING" => None,
        _ if call.cached => None,
        _ => cost_fault(call, may_be_unpriced),
    })
}

fn tokens_fault(call: &AuditCall) -> Option<String> {
    let tokens = call.tokens;
    let [input, read, write, hour, output, reasoning] = tokens;
    if tokens.iter().any(|count| *count < 0) {
        return Some(format!("a token count is negative: {tokens:?}"));
    }
    if read.saturating_add(write) > input || hour > write || reasoning > output {
        return Some(format!("a token count exceeds the count that includes it: {tokens:?}"));
    }
    match call.usage_source.parse::<UsageSource>() {
        Ok(UsageSource::None) if has_tokens(call) => {
            Some(format!("has tokens without a usage source: {tokens:?}"))
        }
        Ok(_) => None,
        Err(error) => Some(format!("usage source: {error}")),
    }
}

fn has_tokens(call: &AuditCall) -> bool {
    call.tokens != [0; 6]
}

/// Checks that a row without a provider's answer has neither tokens nor a price.
fn state_fault(call: &AuditCall) -> Option<String> {
    let status = call.status.as_str();
    let is_blank = call.price_id.is_none() && !has_tokens(call);
    let (is_correct, kind) = if status == "PENDING" {
        (is_blank && call.cost.is_none(), "a pending call".to_owned())
    } else if status.parse::<CallStatus>().is_err() {
        return Some(format!("unknown status `{status}`"));
    } else if let Some(by) = &call.refused {
        if let Err(error) = by.parse::<RefusedBy>() {
            return Some(format!("refused by: {error}"));
        }
        let is_correct = status == "FAILED" && call.cost == Some(0) && !has_tokens(call);
        let is_correct = is_correct && !call.cached && call.saved.is_none();
        (is_correct, format!("a call refused by a {by}"))
    } else if call.cached {
        let is_correct = is_blank && call.cost == Some(0) && status == "SUCCESS";
        (is_correct && call.saved.unwrap_or(0) >= 0, "a cached response".to_owned())
    } else {
        (call.saved.is_none(), "an uncached call".to_owned())
    };
    (!is_correct).then(|| {
        format!(
            "invalid values of {kind}: status {status}, tokens {:?}, price {}, cost {}, saved {}",
            call.tokens,
            call.price_id.map_or_else(|| "none".to_owned(), |id| id.to_string()),
            money(call.cost),
            call.saved.map_or_else(|| "nothing".to_owned(), |saved| money(Some(saved)))
        )
    })
}

fn source_fault(call: &AuditCall) -> Option<String> {
    let source = call.cost_source.as_ref()?;
    let is_correct = match source.parse::<CostSource>() {
        Ok(CostSource::Price) => call.cost.is_some() && call.price_id.is_some(),
        Ok(CostSource::Provider) => call.cost.is_some() && call.cost == call.provider_cost,
        Ok(CostSource::None) => call.price_id.is_none(),
        Err(why) => return Some(format!("cost_source: {why}")),
    };
    (!is_correct).then(|| {
        format!(
            "cost_source is {source}, but the cost is {}, the stated cost {} and the price {:?}",
            money(call.cost),
            money(call.provider_cost),
            call.price_id
        )
    })
}

fn cost_fault(call: &AuditCall, may_be_unpriced: bool) -> Option<String> {
    let cost = money(call.cost);
    let is_stated = call.provider_cost.is_some();
    let is_charged = |cost: i64| cost != 0 || has_tokens(call) || call.status == "SUCCESS";
    match (call.cost, call.price_id) {
        (Some(0..), None) if is_stated => None,
        (Some(0..), None) if !may_be_unpriced && call.cost.is_some_and(is_charged) => Some(
            format!("the cost is {cost}, but the price is missing; only calls of `echo` have none"),
        ),
        (Some(1..), None) if !call.is_without_reserve => {
            Some(format!("the cost is {cost}, but the price is missing"))
        }
        (Some(..0), _) => Some(format!("the cost is negative: {cost}")),
        // The cost would follow from the tokens and the price.
        (None, Some(price)) => Some(format!("has price {price}, but unknown cost")),
        (_, Some(price)) if call.usage_source == "none" => {
            Some(format!("has price {price}, but unknown tokens"))
        }
        _ => source_fault(call),
    }
}

/// Returns none if a count is negative.
pub(super) fn usage(tokens: [i64; 6]) -> Option<Usage> {
    let counts = tokens.map(|count| u64::try_from(count).ok());
    let [input, read, write, hour, output, reasoning] = counts;
    Some(Usage {
        input_tokens: input?,
        cached_input_tokens: read?,
        cache_write_tokens: write?,
        cache_write_1h_tokens: hour?,
        output_tokens: output?,
        reasoning_tokens: reasoning?,
        ..Usage::default()
    })
}
