//! Writes the changes of calls, budgets and keys.

use rusqlite::{Connection, params};

use super::budgets::{Budgets, HeldAmount, Reservation};
use super::change::{Applied, NewCall, ObjectName, Receipt, Settlement};
use super::daily_rollup;
use super::days::{self, Day};
use super::end_users;
use super::keys;
use super::ledger::ENTRY_COLUMNS;
use super::prices;
use super::sql::{execute, one, require_row};
use super::stored_objects;
use crate::error::{Error, Result};
use crate::event::{CallStatus, Event, EventContext, LedgerEntry, RefusedBy};
use crate::money::Usd;
use crate::time::Timestamp;

/// Writes calls. It keeps state in memory, so that it need not read the ledger for each call. If a
/// transaction is rolled back, a clone from before it is restored.
#[derive(Clone)]
pub(super) struct CallWriter {
    pub(super) budgets: Budgets,
    /// All days before this one are summed up.
    pub(super) rolled_up_until: Day,
}

impl CallWriter {
    pub(super) fn load(db: &Connection) -> Result<Self> {
        Ok(Self { budgets: Budgets::load(db)?, rolled_up_until: days::rolled_up_until(db)? })
    }

    pub(super) fn delete_key(
        &mut self,
        db: &Connection,
        id: i64,
        with_budgets: bool,
    ) -> Result<Applied> {
        let name = keys::delete(db, id)?;
        if with_budgets {
            self.budgets.remove_of_key(db, &name)?;
        }
        Ok(Receipt::Done.into())
    }

    pub(super) fn erase_end_user(&mut self, db: &Connection, names: &[String]) -> Result<Applied> {
        let applied = end_users::erase(db, names)?;
        // Budgets of an end user count the remaining rows.
        self.budgets.forget_counts();
        Ok(applied)
    }

    /// # Errors
    /// [`Error::Budget`](crate::error::Error::Budget) for a call that a hard budget does not allow.
    pub(super) fn open(&mut self, db: &Connection, call: &NewCall) -> Result<Applied> {
        let Reservation { reserve, output_limit } = self.budgets.open(db, call)?;
        let mut applied = match reserve == call.reserve {
            true => self.insert(db, call, None, None)?,
            false => self.insert(db, &NewCall { reserve, ..call.clone() }, None, None)?,
        };
        if let (Some(limit), Receipt::Call(row)) = (output_limit, &applied.receipt) {
            applied.receipt = Receipt::LoweredCall(row.clone(), limit);
        }
        Ok(applied)
    }

    /// Inserts the row of a call that is about to be made, was `refused`, or was `cached` (by a
    /// model, with the cost that this saves).
    pub(super) fn insert(
        &self,
        db: &Connection,
        call: &NewCall,
        refused: Option<(RefusedBy, &str)>,
        cached: Option<(&str, Option<Usd>)>,
    ) -> Result<Applied> {
        let status = match (refused, cached) {
            (None, None) => CallStatus::Pending,
            (Some(_), _) => CallStatus::Failed,
            (None, Some(_)) => CallStatus::Success,
        };
        let model = cached.map_or(call.model.as_str(), |(model, _)| model);
        let reserve = cached.is_none().then_some(&call.reserve);
        let whose = &call.attribution;
        let sql =
            "INSERT INTO ledger (timestamp_ms, flow_id, run_id, node_id, attempt, operation_id,
                provider, model_used, agent_role, prompt_hash, status, key_name, tags,
                cost_nanousd, reserved_nanousd, reserved_tokens, refused, error_message,
                latency_ms, cached, saved_nanousd, model_asked, client, session, end_user, project,
                billing)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
                ?18, CASE WHEN ?19 THEN 0 END, ?19, ?20, CASE WHEN ?21 != ?8 THEN ?21 END,
                ?22, ?23, ?24, ?25, ?26)";
        execute(
            db,
            sql,
            params![
                call.at,
                call.flow_id,
                call.run_id,
                call.node_id,
                call.attempt,
                call.operation_id,
                call.provider,
                model,
                call.role,
                call.prompt_hash,
                status,
                call.key_name,
                call.tags,
                (status != CallStatus::Pending).then_some(0),
                reserve.and_then(|reserve| reserve.cost),
                reserve.map(|reserve| reserve.tokens),
                refused.map(|(by, _)| by),
                refused.map(|(_, why)| why),
                cached.is_some(),
                cached.and_then(|(_, saved)| saved),
                call.model,
                whose.client,
                whose.session,
                whose.end_user,
                whose.project,
                call.billing
            ],
        )?;
        let mut applied = self.written_row(db, call.at)?;
        applied.events.extend(self.budgets.loop_warning(db, call)?);
        Ok(applied)
    }

    pub(super) fn settle(&mut self, db: &Connection, settlement: &Settlement) -> Result<Applied> {
        self.settle_call(db, settlement, HeldAmount::Kept)
    }

    /// Closes an object whose end stays unknown; see [`Change::ExpireObject`](super::Change).
    pub(super) fn expire(
        &mut self,
        db: &Connection,
        name: &ObjectName,
        settlement: Option<&Settlement>,
    ) -> Result<Applied> {
        let closed = stored_objects::close(db, name)?;
        match settlement.map(|it| self.settle_call(db, it, HeldAmount::Freed)) {
            // Its call was settled in another way.
            None | Some(Err(Error::NotFound(_))) => Ok(closed),
            Some(settled) => settled,
        }
    }

    fn settle_call(
        &mut self,
        db: &Connection,
        settlement: &Settlement,
        held: HeldAmount,
    ) -> Result<Applied> {
        let usage = &settlement.usage;
        let charge = &settlement.charge;
        let price_id = match &charge.price {
            Some(price) => Some(prices::id_of(db, price)?),
            None => None,
        };
        let sql = "UPDATE ledger SET model_used = coalesce(?2, model_used), input_tokens = ?3,
                cached_input_tokens = ?4, cache_write_tokens = ?5, output_tokens = ?6,
                reasoning_tokens = ?7, usage_source = ?8, cost_nanousd = ?9, latency_ms = ?10,
                status = ?11, error_message = ?12, cache_write_1h_tokens = ?13,
                first_token_ms = ?14, price_id = ?15, cost_source = ?16, cost_note = ?17,
                price_cost_nanousd = ?18, provider_cost_nanousd = ?19,
                model_asked = CASE WHEN ?2 != model_used THEN model_used END
             WHERE id = ?1 AND status = 'PENDING'";
        let changed = execute(
            db,
            sql,
            params![
                settlement.id,
                settlement.model,
                usage.input_tokens,
                usage.cached_input_tokens,
                usage.cache_write_tokens,
                usage.output_tokens,
                usage.reasoning_tokens,
                usage.source,
                charge.cost,
                settlement.latency_ms,
                settlement.status,
                settlement.error,
                usage.cache_write_1h_tokens,
                settlement.first_token_ms,
                price_id,
                charge.source,
                charge.note,
                charge.price_cost,
                charge.provider_cost
            ],
        )?;
        require_row(changed, || format!("pending ledger row {}", settlement.id))?;
        let row = ledger_row(db, settlement.id)?;
        let warnings = self.budgets.settle(db, &row, held)?;
        let context = context(&row, settlement.at);
        let mut applied = updated(row, settlement.at);
        let warned = warnings
            .into_iter()
            .map(|warning| Event::BudgetWarning { context: context.clone(), warning });
        applied.events.extend(warned);
        Ok(applied)
    }

    fn written_row(&self, db: &Connection, at: Timestamp) -> Result<Applied> {
        let id = db.last_insert_rowid();
        let day = days::day_of(at);
        if day < self.rolled_up_until {
            // The clock was set back. These sums may already be removed.
            daily_rollup::delete_from(db, day)?;
        }
        Ok(updated(ledger_row(db, id)?, at))
    }
}

/// Returns the current row. A separate `SELECT`, here as elsewhere, because `RETURNING` builds a
/// table in memory, which costs more than all the rest.
fn ledger_row(db: &Connection, id: i64) -> Result<LedgerEntry> {
    let sql = format!("SELECT {ENTRY_COLUMNS} FROM ledger WHERE id = ?1");
    one(db, &sql, [id])?.ok_or_else(|| Error::NotFound(format!("ledger row {id}")))
}

fn updated(row: LedgerEntry, at: Timestamp) -> Applied {
    let entry = Box::new(row);
    let update = Event::LedgerUpdate { context: context(&entry, at), entry: entry.clone() };
    Applied { receipt: Receipt::Call(entry), events: vec![update] }
}

fn context(row: &LedgerEntry, at: Timestamp) -> EventContext {
    EventContext {
        flow_id: row.flow_id,
        run_id: row.run_id.clone(),
        node_id: row.node_id.clone(),
        timestamp: at,
    }
}
