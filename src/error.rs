//! Errors, with the messages that users see.

use serde::Serialize;

use crate::time::Timestamp;

/// One fault in an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Path to the invalid part of the input: `data.nodes[2].data.prompt`.
    pub field: String,
    /// Names the fault and the accepted values.
    pub message: String,
}

impl Fault {
    /// Creates a fault of `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The input is invalid; lists all its faults.
    #[error("{message}{}", list(.faults))]
    Invalid { message: String, faults: Vec<Fault> },
    /// The named resource, such as `flow 12`, does not exist.
    #[error("{0} not found")]
    NotFound(String),
    /// The resource's state does not allow the action.
    #[error("{0}")]
    Conflict(String),
    /// A budget does not allow the call.
    #[error("{0}")]
    Budget(String),
    /// A budget does not allow the call, but may once calls in flight have ended.
    #[error("{0}")]
    BudgetHeld(String),
    /// A limit is reached; a retry may succeed.
    #[error("{0}")]
    Busy(String),
    /// The server is shutting down, or one of its threads has ended.
    #[error("the server is shutting down")]
    Stopping,
    /// The database failed; nothing was saved.
    #[error("database error: {0}")]
    Store(String),
    /// The disk failed, for example because it is full; nothing was saved. A retry may succeed.
    #[error("disk error: {0}; nothing was saved. Free some space and retry.")]
    Disk(String),
    /// A file or socket failed.
    #[error("{context}: {source}")]
    Io {
        /// The failed action, with its file or address.
        context: String,
        source: std::io::Error,
    },
    /// A setting is invalid.
    #[error("{0}")]
    Config(String),
    /// A bug or an unexpected failure; the log has more.
    #[error("internal error at {at}: {message}", at = Timestamp::now())]
    Internal { message: String },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns true if a failed write may succeed later, such as after a full disk. Returns false
    /// for a change that can never be written.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Internal { .. } | Self::Store(_) | Self::Disk(_))
    }

    /// Creates an error for an invalid input with one fault.
    pub fn invalid(message: impl Into<String>, field: &str, fault: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), faults: vec![Fault::new(field, fault)] }
    }

    /// Returns a conversion that adds the failed action to an I/O error.
    pub fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source }
    }

    /// Creates an error for a bug or an unexpected failure.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::Internal { message: message.into() }
    }
}

fn list(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("\n  {}: {}", fault.field, fault.message)).collect()
}
