//! The most tokens that a prompt of each model had for its bytes.

use rusqlite::{Connection, params};

use super::reader::Store;
use super::sql::{all, execute};
use crate::error::Result;

impl Store {
    /// Returns provider, model and tokens per million bytes.
    pub fn prompt_densities(&self) -> Result<Vec<(String, String, u64)>> {
        let sql = "SELECT provider, model, per_million FROM prompt_densities";
        self.read(|db| all(db, sql, []))
    }
}

/// Stores a density, unless a higher one is stored.
pub(super) fn raise(db: &Connection, provider: &str, model: &str, density: u64) -> Result<()> {
    let sql = "INSERT INTO prompt_densities (provider, model, per_million) VALUES (?1, ?2, ?3)
        ON CONFLICT (provider, model) DO UPDATE SET per_million = max(per_million, ?3)";
    execute(db, sql, params![provider, model, density]).map(drop)
}
