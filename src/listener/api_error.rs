//! The error response that clients receive.

use serde_json::json;

use crate::error::Fault;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: u16,
    pub code: &'static str,
    pub message: String,
    pub faults: Vec<Fault>,
    pub headers: Vec<(&'static str, String)>,
}

impl ApiError {
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        let error =
            Self { status, code, message: message.into(), faults: Vec::new(), headers: Vec::new() };
        match status {
            401 => error.with("www-authenticate", "Bearer"),
            429 | 503 => error.with("retry-after", "1"),
            _ => error,
        }
    }

    pub fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(400, code, message)
    }

    /// Sets a header of the response.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.into()));
        self
    }

    /// Returns `{"error": {"code", "message", "details"}}`.
    pub fn to_json(&self) -> Vec<u8> {
        let mut error = json!({"code": self.code, "message": self.message});
        if !self.faults.is_empty() {
            error["details"] = json!(self.faults);
        }
        json!({"error": error}).to_string().into_bytes()
    }
}
