//! What `tests/browser.rs` takes from the harness of the tests.

use std::time::Duration;

pub const DEADLINE: Duration = Duration::from_secs(20);
