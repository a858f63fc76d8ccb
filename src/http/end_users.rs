//! `/api/end-users`: the data of one end user of the gateway's clients.

use std::sync::Arc;

use percent_encoding::percent_decode_str;
use serde_json::json;

use super::Context;
use super::bodies;
use super::ledger::{self, RowFormat};
use super::reply::{self, Answer, With};
use super::request::Query;
use crate::error::{Error, Result};
use crate::store::{Bodies, Change, LedgerFilter, LedgerQuery, Receipt};

/// `GET /api/end-users/{name}/export`: all rows of an end user, newest first.
pub fn export(context: &Context, name: &str, mut query: Query) -> Answer {
    let format: Option<String> = query.take("format");
    query.finish()?;
    let (format, content_type) = match format.as_deref() {
        None | Some("ndjson") => (RowFormat::NdJson, "application/x-ndjson"),
        Some("csv") => (RowFormat::Csv, "text/csv; charset=utf-8"),
        Some(_) => {
            let message = "cannot read the query";
            return Err(Error::invalid(message, "format", "must be `ndjson` or `csv`").into());
        }
    };
    let filters = context.end_users.forms(&decoded(name)?).into_iter();
    let filters = filters
        .map(|name| LedgerFilter { end_user: Some(name), ..LedgerFilter::default() })
        .map(|filter| LedgerQuery { filter, ..LedgerQuery::default() })
        .collect();
    let rows = ledger::all_rows(Arc::clone(&context.store), filters, format)?;
    Ok(reply::stream(content_type, rows).with("content-disposition", "attachment"))
}

/// `DELETE /api/end-users/{name}`: removes the name and the bodies; the rows stay.
pub fn erase(context: &Context, name: &str) -> Answer {
    let names = context.end_users.forms(&decoded(name)?);
    // First in small steps, because they may be large. The change below removes those of calls that
    // end meanwhile.
    bodies::delete_each(context, &Bodies::OfEndUser(names.clone()))?;
    match context.journal.commit_one(Change::EraseEndUser { names })? {
        Receipt::Erased(rows) => Ok(reply::json(200, &json!({"rows": rows}))),
        _ => Err(Error::internal("the journal returned no number of rows").into()),
    }
}

/// Decodes a segment of a path.
fn decoded(segment: &str) -> Result<String> {
    match percent_decode_str(segment).decode_utf8() {
        Ok(name) if !name.is_empty() => Ok(name.into_owned()),
        _ => Err(Error::NotFound("end user without a name".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_path_is_decoded() {
        for (segment, name) in
            [("ann", "ann"), ("a+b&c=@d.e", "a+b&c=@d.e"), ("Ann%20B%2FC", "Ann B/C"), ("%3D", "=")]
        {
            assert_eq!(decoded(segment).unwrap(), name);
        }
        assert!(decoded("").is_err());
    }
}
