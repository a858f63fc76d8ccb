//! `flowledger verify`: checks that the database is consistent, and changes nothing.
//!
//! Faults go to standard output, the progress to standard error.

use std::cell::Cell;
use std::fmt::Display;
use std::io;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::FAILED;
use super::output::{print_result, write_result};
use crate::config::Config;
use crate::error::Result;
use crate::providers::Kind;
use crate::store::Audit;
use crate::verify::{Check, verify};

/// Number of rows between updates of the progress bar.
const PROGRESS_STEP: u64 = 4_096;

/// Prints lines of the result as soon as they are known.
#[derive(Default)]
struct Output {
    /// The first failed write.
    error: Option<io::Error>,
}

impl Output {
    fn say(&mut self, line: impl Display) {
        let written = write_result(|out| writeln!(out, "{line}"));
        self.error = self.error.take().or(written.err());
    }
}

/// Runs all checks and prints each fault. The exit status is 0 if there is none, else 1.
pub fn run(config: &Config) -> Result<ExitCode> {
    let audit = Audit::open(&config.data)?;
    let while_used = match audit.is_in_use() {
        true => ", in use by a running flowledger",
        false => "",
    };
    let mut output = Output::default();
    output.say(format_args!("{}{while_used}", config.data.display()));
    let extent = audit.extent()?;
    let progress = progress(extent.calls + extent.runs + extent.events);
    let done = Cell::new(0_u64);
    let on_row = || {
        done.set(done.get() + 1);
        if done.get().is_multiple_of(PROGRESS_STEP) {
            progress.set_position(done.get());
        }
    };
    // A provider that is no longer configured may have been an echo.
    let may_be_free = |provider: &str| {
        let provider = config.providers.get(provider);
        provider.is_none_or(|provider| provider.kind == Kind::Echo)
    };
    let mut fault_count = 0;
    verify(&audit, &may_be_free, &on_row, &mut |check| {
        fault_count += check.fault_count;
        show(&mut output, &check);
    })?;
    progress.finish_and_clear();
    match fault_count {
        0 => output.say("No discrepancies"),
        1 => output.say("1 discrepancy"),
        _ => output.say(format_args!("{} discrepancies", grouped(fault_count))),
    }
    Ok(match (fault_count, output.error) {
        (0, None) => ExitCode::SUCCESS,
        (_, None) => ExitCode::from(FAILED),
        (_, Some(error)) => print_result(|_| Err(error)),
    })
}

fn show(output: &mut Output, check: &Check) {
    for fault in &check.faults {
        output.say(format_args!("  error: {fault}"));
    }
    let more = check.fault_count - check.faults.len() as u64;
    if more > 0 {
        output.say(format_args!("  error: and {} more", grouped(more)));
    }
    for (count, description) in check.notes.iter().filter(|(count, _)| *count > 0) {
        output.say(format_args!("  note: {} {description}", grouped(*count)));
    }
    let result = match check.fault_count {
        0 => "ok".to_owned(),
        1 => "1 error".to_owned(),
        count => format!("{} errors", grouped(count)),
    };
    output.say(format_args!("{}: {}, {result}", check.subject, grouped(check.checked)));
}

fn progress(length: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{percent:>3} % {wide_bar} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Formats a number as `1,234,567`.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups: Vec<_> = groups.map(String::from_utf8_lossy).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_in_groups_of_three_digits() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
