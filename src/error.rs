//! What can go wrong, as the one who asked is told it.

use serde::Serialize;

use crate::time::Timestamp;

/// One thing that is wrong with an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Which part of the input, as a path: `data.nodes[2].data.prompt`.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub message: String,
}

impl Fault {
    /// A fault of `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The input cannot be accepted; lists all that is wrong with it.
    #[error("{message}{}", list(.faults))]
    Invalid { message: String, faults: Vec<Fault> },
    /// The thing that was named does not exist.
    #[error("there is no {0}")]
    NotFound(String),
    /// The thing is in a state that does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// A budget does not allow the call.
    #[error("{0}")]
    Budget(String),
    /// A limit is reached; it may work later.
    #[error("{0}")]
    Busy(String),
    /// The server is shutting down, or a part of it has ended.
    #[error("the server is shutting down")]
    Stopping,
    /// The database refused; nothing was changed.
    #[error("the database at fault: {0}")]
    Store(String),
    /// The disk refused, as a full one does; nothing was changed. It may work later.
    #[error("the disk refuses: {0}; nothing was changed, and it works again once there is room")]
    Disk(String),
    /// A file or socket could not be used.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, and with which file or address.
        context: String,
        source: std::io::Error,
    },
    /// A setting cannot be used.
    #[error("{0}")]
    Config(String),
    /// Something that should not happen; the log has more.
    #[error("internal error at {at}: {message}", at = Timestamp::now())]
    Internal { message: String },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether what the journal failed with is the database's trouble (a full disk) and not a change
    /// that can never be written.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Internal { .. } | Self::Store(_) | Self::Disk(_))
    }

    /// An invalid input with one fault.
    pub fn invalid(message: impl Into<String>, field: &str, fault: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), faults: vec![Fault::new(field, fault)] }
    }

    /// An I/O error with what was being done.
    pub fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source }
    }

    /// Something that should not happen.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::Internal { message: message.into() }
    }
}

fn list(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("\n  {}: {}", fault.field, fault.message)).collect()
}
