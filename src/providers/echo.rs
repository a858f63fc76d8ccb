//! The built-in provider: offline, deterministic, free. It repeats its prompt after a label.

use std::time::{Duration, Instant};

use super::call::Call;
use super::cancel::Cancel;
use super::failure::{FailureKind, Fault};
use super::wire::ResponseAccumulator;
use crate::event::UsageSource;

/// A slow model, so that users can watch and cancel an answer while it arrives.
const SLOW_MODEL: &str = "echo-slow";
/// The pause before each word of [`SLOW_MODEL`].
const SLOW_PAUSE: Duration = Duration::from_millis(50);

/// Answers with the prompt after a label, word by word. Tokens are words separated by white space:
/// those of the system text and the prompt are the input, those of the answer the output. This
/// module is the provider, so these are the provider's own counts.
pub(super) fn answer(
    call: &Call,
    cancel: &Cancel,
    deadline: Instant,
    partial: &mut ResponseAccumulator,
    on_piece: &mut dyn FnMut(&str),
) -> Result<(), Fault> {
    let text = format!("[echo of {}] {}", call.model, call.prompt);
    partial.usage.source = UsageSource::Provider;
    partial.usage.input_tokens = words(call.system.as_deref().unwrap_or("")) + words(&call.prompt);
    for piece in text.split_inclusive(char::is_whitespace) {
        let is_word = !piece.trim().is_empty();
        if is_word {
            pause(&call.model, cancel, deadline)?;
        }
        partial.push(piece)?;
        partial.usage.output_tokens += u64::from(is_word);
        on_piece(piece);
    }
    partial.finish_reason = Some("stop".into());
    partial.is_complete = true;
    Ok(())
}

fn words(text: &str) -> u64 {
    text.split_whitespace().count() as u64
}

/// Waits before a word of the slow model.
///
/// # Errors
/// Fails when the call is cancelled or its time is over.
fn pause(model: &str, cancel: &Cancel, deadline: Instant) -> Result<(), Fault> {
    let is_cancelled = match model {
        SLOW_MODEL => cancel.wait(SLOW_PAUSE),
        _ => cancel.is_cancelled(),
    };
    if is_cancelled {
        return Err(Fault::cancelled());
    }
    if Instant::now() >= deadline {
        let message = "timed out (total timeout)";
        return Err(Fault::new(FailureKind::Timeout, message));
    }
    Ok(())
}
