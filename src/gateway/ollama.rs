//! The gateway's own answers in Ollama's API (<https://docs.ollama.com/api>). Pure.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::models::Model;
use crate::ids::hex;
use crate::listener::ApiError;

/// The version of Ollama's API that clients may expect: the first one with all the routes that
/// flowledger accepts (<https://github.com/ollama/ollama/releases>). Some clients refuse servers
/// before 0.6.4.
const VERSION: &str = "0.14.0";
/// The date of a model whose age is unknown.
const DATE: &str = "1970-01-01T00:00:00Z";

pub fn version() -> Value {
    json!({"version": VERSION})
}

/// Returns the models in memory; only the provider knows them.
pub fn running() -> Value {
    json!({"models": []})
}

/// Returns the models in the form of those on the server's disk.
pub fn list(models: &[Model]) -> Value {
    let models: Vec<Value> = models
        .iter()
        .map(|model| {
            let name = &model.id;
            json!({
                "name": name, "model": name, "modified_at": modified_at(model), "size": 0,
                "digest": hex(&Sha256::digest(name)), "details": details(),
            })
        })
        .collect();
    json!({"models": models})
}

/// Describes a model of `echo`.
pub fn show() -> Value {
    json!({
        "modelfile": "", "parameters": "", "template": "", "license": "", "modified_at": DATE,
        "details": details(), "model_info": {"general.architecture": "echo"},
        "capabilities": ["completion", "embedding"],
    })
}

pub fn no_model_changes(path: &str) -> ApiError {
    let message = format!(
        "flowledger does not support {path}; change the models at the Ollama server itself"
    );
    ApiError::new(404, "not_found", message)
}

fn modified_at(model: &Model) -> String {
    model.created_at.map_or_else(|| DATE.to_owned(), |at| at.to_string())
}

fn details() -> Value {
    json!({
        "parent_model": "", "format": "", "family": "", "families": [], "parameter_size": "",
        "quantization_level": "",
    })
}
