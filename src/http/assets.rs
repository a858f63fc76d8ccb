//! The page's own files, embedded in the program.

use super::reply::{self, Answer, With};
use crate::error::Error;

/// Restricts the page to its own files and this server's API. `connect-src` names `ws:` because
/// older browsers do not count a WebSocket to the same host as `'self'`.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     img-src 'self' data:; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

macro_rules! files {
    ($($name:literal)+) => {
        &[$(($name, include_bytes!(concat!("../../assets/", $name)))),+]
    };
}

static FILES: &[(&str, &[u8])] = files! {
    "index.html" "style.css" "api.js" "app.js" "attempts.js" "budget-form.js" "budgets.js"
    "calls.js" "connection.js" "dialogs.js" "dom.js" "fields.js" "flows.js" "format.js"
    "history.js" "interval.js" "json.js" "key-form.js" "keys.js" "ledger.js" "live.js" "map-items.js" "meter.js"
    "runs.js" "saving-card.js" "saving-change.js" "saving-format.js" "saving-trial.js" "savings.js"
    "schedule.js" "spending.js" "texts.js" "toasts.js" "token.js" "totals.js" "triggers.js"
    "webhook.js" "icon.svg"
};

pub fn file(name: &str) -> Answer {
    let (_, bytes) = FILES
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| Error::NotFound(format!("file {name}")))?;
    let content_type = match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/javascript; charset=utf-8",
    };
    let reply =
        reply::file(content_type, bytes).with("content-security-policy", CONTENT_SECURITY_POLICY);
    // Pages of other sites may import the connection module; it contains no secrets.
    Ok(if name == "live.js" { reply.with("access-control-allow-origin", "*") } else { reply })
}
