//! The page's own files, which are part of the program.

use super::reply::{self, Answer, With};
use crate::error::Error;

/// What the page may do: nothing but its own files and this server's API. `connect-src` names
/// `ws:` because older browsers do not count a WebSocket to the same host as `'self'`.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     img-src 'self' data:; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! files {
    ($($name:literal: $type:expr),+ $(,)?) => {
        &[$(($name, $type, include_bytes!(concat!("../../assets/", $name)))),+]
    };
}

static FILES: &[(&str, &str, &[u8])] = files! {
    "index.html": HTML,
    "style.css": CSS,
    "api.js": SCRIPT,
    "app.js": SCRIPT,
    "attempts.js": SCRIPT,
    "budget-form.js": SCRIPT,
    "budgets.js": SCRIPT,
    "calls.js": SCRIPT,
    "connection.js": SCRIPT,
    "dialogs.js": SCRIPT,
    "dom.js": SCRIPT,
    "fields.js": SCRIPT,
    "flows.js": SCRIPT,
    "format.js": SCRIPT,
    "history.js": SCRIPT,
    "hook.js": SCRIPT,
    "interval.js": SCRIPT,
    "items.js": SCRIPT,
    "key-form.js": SCRIPT,
    "keys.js": SCRIPT,
    "ledger.js": SCRIPT,
    "live.js": SCRIPT,
    "meter.js": SCRIPT,
    "runs.js": SCRIPT,
    "saving-card.js": SCRIPT,
    "saving-change.js": SCRIPT,
    "saving-trial.js": SCRIPT,
    "saving-words.js": SCRIPT,
    "savings.js": SCRIPT,
    "schedule.js": SCRIPT,
    "spending.js": SCRIPT,
    "texts.js": SCRIPT,
    "toasts.js": SCRIPT,
    "token.js": SCRIPT,
    "totals.js": SCRIPT,
    "triggers.js": SCRIPT,
    "icon.svg": "image/svg+xml",
};

/// `GET /`.
pub fn page() -> Answer {
    file("index.html")
}

/// `GET /assets/NAME`.
pub fn file(name: &str) -> Answer {
    let (_, content_type, bytes) = FILES
        .iter()
        .find(|(known, _, _)| *known == name)
        .ok_or_else(|| Error::NotFound(format!("file {name}")))?;
    let reply =
        reply::file(content_type, bytes).with("content-security-policy", CONTENT_SECURITY_POLICY);
    // The connection module is made for other pages, too; it holds nothing that is secret.
    Ok(if name == "live.js" {
        reply.with("access-control-allow-origin", "*")
    } else {
        reply
    })
}
