//! Checks that each correction belongs to a row of unknown cost, and computes its cost again.

use super::{Check, calls, money};
use crate::error::Result;
use crate::prices::StoredPrice;
use crate::store::{Audit, AuditCorrection};

pub(super) fn check(audit: &Audit) -> Result<Check> {
    let mut check = Check::of("corrections");
    audit.corrections(|correction| {
        check.checked += 1;
        if let Some(fault) = fault_of(&correction) {
            check.add(format_args!("correction of ledger row {}: {fault}", correction.ledger_id));
        }
    })?;
    Ok(check)
}

fn fault_of(correction: &AuditCorrection) -> Option<String> {
    let Some(tokens) = correction.tokens else {
        return Some("the row is missing".to_owned());
    };
    if !correction.is_unpriced {
        return Some("the row has a cost or unknown tokens".to_owned());
    }
    let Some(price) = &correction.price else {
        return Some("the price is missing".to_owned());
    };
    let price = match StoredPrice::from_json(price) {
        Ok(stored) => stored.price(),
        Err(error) => return Some(format!("cannot read the price: {error}")),
    };
    let computed = calls::usage(tokens).map(|usage| price.cost(&usage).nanousd);
    (computed != Some(correction.cost)).then(|| {
        let (stored, computed) = (money(Some(correction.cost)), money(computed));
        format!("the cost is {stored}, but {computed} according to its price")
    })
}
