//! Costs of rows whose price was unknown, computed from prices that were added later. A row keeps
//! what it was; its correction is a row of its own. Corrections change no budget's use.

use rusqlite::{Connection, params};

use super::audit::Audit;
use super::change::Correction;
use super::prices;
use super::reader::Store;
use super::sql::{FromRow, all, execute};
use crate::error::Result;
use crate::event::Usage;
use crate::time::Timestamp;

/// Limits the models without a price.
const MODELS_MAX: usize = 1_000;

/// Selects billed rows with known tokens and an unknown cost.
const UNPRICED: &str = "billing IS NULL AND cost_nanousd IS NULL AND status NOT IN ('PENDING', 'UNKNOWN') AND usage_source != 'none'";

/// Names of a model, as the lookup of its price needs them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelNames {
    pub provider: String,
    /// The model that answered.
    pub model: String,
    pub model_asked: String,
}

/// The calls of a model with known tokens and an unknown cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnpricedModel {
    pub names: ModelNames,
    pub calls: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub last_seen: Timestamp,
}

#[derive(Clone, Debug)]
pub struct UnpricedRow {
    pub id: i64,
    pub timestamp: Timestamp,
    pub names: ModelNames,
    pub usage: Usage,
}

from_row!(ModelNames; provider, model, model_asked);
from_row!(UnpricedModel; names, calls, input_tokens, output_tokens, last_seen);
from_row!(UnpricedRow; id, timestamp, names, usage);

/// A correction as stored, beside the row that it corrects, if that exists.
#[derive(Clone, Debug)]
pub struct AuditCorrection {
    pub ledger_id: i64,
    /// Nano-dollars.
    pub cost: i64,
    pub price: Option<String>,
    /// Input, cache reads, cache writes, one-hour cache writes, output, reasoning.
    pub tokens: Option<[i64; 6]>,
    /// True if the row has known tokens and an unknown cost.
    pub is_unpriced: bool,
}

impl Store {
    /// Returns the models with calls of unknown price, most tokens first.
    pub fn unpriced_models(&self) -> Result<Vec<UnpricedModel>> {
        let sql = format!(
            "SELECT provider, model_used, coalesce(model_asked, model_used), count(*),
                sum(input_tokens), sum(output_tokens), max(timestamp_ms)
             FROM ledger WHERE {UNPRICED} GROUP BY 1, 2, 3
             ORDER BY sum(input_tokens + output_tokens) DESC, 1, 2, 3 LIMIT {MODELS_MAX}"
        );
        self.read(|db| all(db, &sql, []))
    }

    /// Returns up to `limit` uncorrected rows of unknown price from a time on, with ids above
    /// `after`, oldest first. Rows with a note are left out, because the price of tokens is not
    /// their whole cost, and so are those of earlier versions, which had no notes.
    pub fn unpriced_rows(
        &self,
        from: Timestamp,
        after: i64,
        limit: usize,
    ) -> Result<Vec<UnpricedRow>> {
        let sql = format!(
            "SELECT id, timestamp_ms, provider, model_used, coalesce(model_asked, model_used),
                input_tokens, cached_input_tokens, cache_write_tokens, cache_write_1h_tokens,
                output_tokens, reasoning_tokens, usage_source
             FROM ledger WHERE {UNPRICED} AND cost_note IS NULL AND cost_source IS NOT NULL
                AND +timestamp_ms >= ?1 AND id > ?2
                AND NOT EXISTS (SELECT 1 FROM corrections WHERE ledger_id = ledger.id)
             ORDER BY id LIMIT ?3"
        );
        self.read(|db| all(db, &sql, params![from, after, limit]))
    }
}

pub(super) fn write(db: &Connection, correction: &Correction) -> Result<()> {
    let Correction { ledger_id, price, cost, at } = correction;
    let price_id = prices::id_of(db, price)?;
    let sql = format!(
        "INSERT INTO corrections (ledger_id, at_ms, price_id, cost_nanousd)
         SELECT id, ?2, ?3, ?4 FROM ledger WHERE id = ?1 AND {UNPRICED}
         ON CONFLICT DO NOTHING"
    );
    execute(db, &sql, params![ledger_id, at, price_id, cost]).map(drop)
}

impl FromRow for AuditCorrection {
    fn read(row: &rusqlite::Row<'_>, at: &mut usize) -> rusqlite::Result<Self> {
        let (ledger_id, cost, price) =
            (FromRow::read(row, at)?, FromRow::read(row, at)?, FromRow::read(row, at)?);
        let is_unpriced = Option::<bool>::read(row, at)?;
        let tokens = match is_unpriced {
            Some(_) => Some(FromRow::read(row, at)?),
            None => None,
        };
        Ok(Self { ledger_id, cost, price, tokens, is_unpriced: is_unpriced == Some(true) })
    }
}

impl Audit {
    /// Passes all corrections in the order of their rows.
    pub fn corrections(&self, each: impl FnMut(AuditCorrection)) -> Result<()> {
        let unpriced = UNPRICED.replace("cost_nanousd", "ledger.cost_nanousd");
        let sql = format!(
            "SELECT ledger_id, corrections.cost_nanousd, price, ({unpriced}), input_tokens,
                cached_input_tokens, cache_write_tokens, cache_write_1h_tokens, output_tokens,
                reasoning_tokens
             FROM corrections LEFT JOIN prices ON prices.id = corrections.price_id
                LEFT JOIN ledger ON ledger.id = ledger_id
             ORDER BY ledger_id"
        );
        self.each(&sql, each)
    }
}
