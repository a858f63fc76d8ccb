//! `flowledger reprice`: computes the costs of calls whose price was unknown, at the prices known
//! now, and writes them as corrections. The rows stay as they are.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;

use super::table;
use crate::config::Config;
use crate::error::Result;
use crate::money::Usd;
use crate::prices::{COST_MAX, Prices, StoredPrice};
use crate::providers::Providers;
use crate::store::{Change, Correction, ModelNames, Store, UnpricedRow, Writer};
use crate::time::Timestamp;

/// Number of rows read, and of corrections written, at a time.
const STEP: usize = 1_000;

/// The rows of one model.
#[derive(Default)]
struct Group {
    calls: u64,
    input_tokens: u64,
    output_tokens: u64,
    cost: Usd,
    /// The source of the price; none if it is still unknown.
    source: Option<String>,
}

pub fn run(config: &Config, from: Timestamp, dry_run: bool) -> Result<ExitCode> {
    // Never creates a database.
    let reader = Store::open_to_read(&config.data)?;
    let (store, mut writer) = match dry_run {
        true => (reader, None),
        false => {
            let (store, writer) = Store::open(&config.data)?;
            (store, Some(writer))
        }
    };
    let mut prices = Prices::built_in();
    if let Some(path) = &config.prices {
        prices = prices.with_own(path)?;
    }
    let providers = Providers::new(config.providers.clone(), config.timeouts).with_prices(prices);
    let mut groups = BTreeMap::new();
    let mut after = 0;
    loop {
        let rows = store.unpriced_rows(from, after, STEP)?;
        let corrections: Vec<Correction> = rows
            .iter()
            .filter_map(|row| {
                let correction = correction(&providers, row);
                count(&mut groups, row, correction.as_ref());
                correction
            })
            .collect();
        if let Some(writer) = &mut writer {
            write(writer, corrections)?;
        }
        match rows.last() {
            Some(last) if rows.len() == STEP => after = last.id,
            _ => break,
        }
    }
    drop(writer);
    store.close();
    // The reader may close the pipe early.
    let _ = write!(io::stdout().lock(), "{}", text(&groups, dry_run));
    Ok(ExitCode::SUCCESS)
}

/// Returns the cost of a row at the price in force at its time, if that is known.
fn correction(providers: &Providers, row: &UnpricedRow) -> Option<Correction> {
    let ModelNames { provider, model, model_asked } = &row.names;
    let quote = providers.quote(provider, &[model, model_asked], row.timestamp)?;
    if quote.unpriced_tokens(&row.usage).is_some() {
        return None;
    }
    let cost = Some(quote.cost(&row.usage)).filter(|cost| *cost <= COST_MAX)?;
    Some(Correction { ledger_id: row.id, price: quote.text()?.clone(), cost, at: Timestamp::now() })
}

fn count(
    groups: &mut BTreeMap<ModelNames, Group>,
    row: &UnpricedRow,
    correction: Option<&Correction>,
) {
    // Rows of one model with and without a price, by their times, are apart.
    let names = match correction {
        Some(_) => row.names.clone(),
        None => ModelNames { model_asked: String::new(), ..row.names.clone() },
    };
    let group = groups.entry(names).or_default();
    group.calls += 1;
    group.input_tokens += row.usage.input_tokens;
    group.output_tokens += row.usage.output_tokens;
    if let Some(correction) = correction {
        group.cost += correction.cost;
        if group.source.is_none() {
            let stored = StoredPrice::from_json(&correction.price);
            group.source = stored.ok().map(|stored| stored.source);
        }
    }
}

fn write(writer: &mut Writer, corrections: Vec<Correction>) -> Result<()> {
    writer.transaction(|batch| {
        for correction in corrections {
            batch.apply(&Change::CorrectCall(correction))?;
        }
        Ok(())
    })
}

fn text(groups: &BTreeMap<ModelNames, Group>, dry_run: bool) -> String {
    if groups.is_empty() {
        return "No calls of unknown price.\n".to_owned();
    }
    let head = ["Provider", "Model", "Calls", "In", "Out", "Cost", "Price from"];
    let mut rows = table(&head, 2..6);
    for (names, group) in groups {
        let is_priced = group.source.is_some();
        rows.add_row([
            names.provider.clone(),
            names.model.clone(),
            group.calls.to_string(),
            group.input_tokens.to_string(),
            group.output_tokens.to_string(),
            if is_priced { format!("${}", group.cost) } else { "?".to_owned() },
            group.source.clone().unwrap_or_else(|| "unknown price".to_owned()),
        ]);
    }
    let priced = || groups.values().filter(|group| group.source.is_some());
    let calls: u64 = priced().map(|group| group.calls).sum();
    let mut cost = Usd::ZERO;
    priced().for_each(|group| cost += group.cost);
    let done = match dry_run {
        true => "would be corrected; nothing was written",
        false => "corrected",
    };
    format!("{rows}\n{calls} calls, ${cost}: {done}.\n")
}
