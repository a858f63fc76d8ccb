//! The user's own prices, from a file that may change while the server runs.
//!
//! A file whose name ends in `.json` has the format of `json_format`; `source` may be omitted. Any
//! other file has the format of `toml_format`. The file prices every provider and model that it
//! lists; the built-in table prices all others.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::table::Table;
use super::{json_format, toml_format};
use crate::error::{Error, Result};

/// The minimum interval between checks for changes of the file.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Limits the file: fifty times the size of the built-in table.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Identifies a version of a file: modification time, length, inode.
type Stamp = (Option<SystemTime>, u64, u64);

/// Returns none if there is no such file.
fn stamp_of(path: &Path) -> Option<Stamp> {
    let data = fs::metadata(path).ok()?;
    Some((data.modified().ok(), data.len(), data.ino()))
}

/// The file, and its last valid content.
pub(super) struct UserPrices {
    path: PathBuf,
    state: Mutex<FileState>,
}

struct FileState {
    table: Arc<Table>,
    stamp: Option<Stamp>,
    checked: Instant,
}

impl UserPrices {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// [`Error::Config`] names the file and line of a fault.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let stamp = stamp_of(path);
        let table = read(path).map_err(|error| {
            Error::Config(format!("cannot read the prices {}: {error}", path.display()))
        })?;
        Ok(Self {
            path: path.to_owned(),
            state: Mutex::new(FileState { table: Arc::new(table), stamp, checked: Instant::now() }),
        })
    }

    /// Returns the last valid content of the file.
    pub(super) fn table(&self) -> Arc<Table> {
        self.table_checked_after(CHECK_INTERVAL)
    }

    fn table_checked_after(&self, interval: Duration) -> Arc<Table> {
        let mut state = self.lock();
        let before = Arc::clone(&state.table);
        if state.checked.elapsed() < interval {
            return before;
        }
        // Meanwhile other threads use the old table, without a check of their own.
        state.checked = Instant::now();
        let known = state.stamp;
        drop(state);
        // Taken before the read, so that the next check notices a change during it.
        let stamp = stamp_of(&self.path);
        if stamp == known {
            return before;
        }
        let read = read(&self.path);
        let path = self.path.display();
        let mut state = self.lock();
        state.stamp = stamp;
        match read {
            // Some editors leave an empty file for a moment while they save.
            Ok(table) if table.is_empty() && !state.table.is_empty() => log::warn!(
                "{path} has no prices any more; the previous ones apply until it has some or the \
                 server restarts"
            ),
            Ok(table) => {
                log::info!("the prices in {path} have changed and now apply");
                state.table = Arc::new(table);
            }
            Err(error) => {
                log::warn!("cannot read the prices {path}: {error}; the previous ones still apply")
            }
        }
        Arc::clone(&state.table)
    }

    fn lock(&self) -> MutexGuard<'_, FileState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> Result<Table, String> {
    let mut text = String::new();
    let bytes = File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|error| error.to_string())?;
    if bytes as u64 > FILE_BYTES_MAX {
        return Err(format!("the file has more than {FILE_BYTES_MAX} bytes"));
    }
    let extension = path.extension();
    let table = match extension.is_some_and(|it| it.eq_ignore_ascii_case("json")) {
        true => json_format::parse(&text)?,
        false => toml_format::parse(&text)?,
    };
    let name = path.file_name().unwrap_or(path.as_os_str());
    Ok(Table {
        source: name.to_string_lossy().into_owned(),
        // Before the start of a price, the built-in one applies.
        is_open_ended: false,
        ..table
    })
}

#[cfg(test)]
mod tests;
