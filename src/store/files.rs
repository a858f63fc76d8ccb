//! Notices that the files of an open database were deleted or replaced: SQLite would go on writing
//! to files that no longer have a name, and every commit would be lost.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The device and the inode of a file.
type FileId = (u64, u64);

pub(super) struct DatabaseFiles {
    database: PathBuf,
    id: Option<FileId>,
    wal: PathBuf,
    /// None until SQLite has created it. It keeps its file as long as the database is open.
    wal_id: Mutex<Option<FileId>>,
}

impl DatabaseFiles {
    /// Remembers the files of a database that was just opened.
    pub fn of(database: &Path) -> Self {
        let id = id_of(database).ok().flatten();
        let mut wal = database.as_os_str().to_owned();
        wal.push("-wal");
        Self { database: database.to_owned(), id, wal: wal.into(), wal_id: Mutex::default() }
    }

    /// Returns the file that was deleted or replaced, if any.
    pub fn lost(&self) -> Option<&Path> {
        let mut wal_id = self.wal_id.lock().unwrap_or_else(PoisonError::into_inner);
        if wal_id.is_none() {
            *wal_id = id_of(&self.wal).ok().flatten();
        }
        let is_same = |path, id: Option<FileId>| id.is_none() || is_at(path, id);
        if !is_same(&self.database, self.id) {
            return Some(&self.database);
        }
        if !is_same(&self.wal, *wal_id) {
            return Some(&self.wal);
        }
        None
    }

    /// Renames the write-ahead log of a lost database and returns its new path. Otherwise SQLite
    /// would apply it to the database that is at the path now.
    pub fn set_log_aside(&self) -> io::Result<Option<PathBuf>> {
        let wal_id = *self.wal_id.lock().unwrap_or_else(PoisonError::into_inner);
        if wal_id.is_none() || !is_at(&self.wal, wal_id) {
            return Ok(None);
        }
        let mut aside = self.wal.as_os_str().to_owned();
        aside.push(".lost");
        fs::rename(&self.wal, &aside)?;
        Ok(Some(aside.into()))
    }
}

/// Returns none if there is no such file.
fn id_of(path: &Path) -> io::Result<Option<FileId>> {
    match fs::metadata(path) {
        Ok(file) => Ok(Some((file.dev(), file.ino()))),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
            _ => Err(error),
        },
    }
}

/// Returns whether the path still names that file. An unreadable directory may come back.
fn is_at(path: &Path, id: Option<FileId>) -> bool {
    id_of(path).map_or(true, |now| now == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deleted_and_replaced_files_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (database, wal) = (dir.path().join("a.db"), dir.path().join("a.db-wal"));
        fs::write(&database, "a").unwrap();
        let files = DatabaseFiles::of(&database);
        assert_eq!(files.lost(), None);
        fs::write(&wal, "log").unwrap();
        assert_eq!(files.lost(), None);
        fs::rename(&wal, dir.path().join("moved")).unwrap();
        assert_eq!(files.lost(), Some(&*wal));
        fs::rename(dir.path().join("moved"), &wal).unwrap();
        assert_eq!(files.lost(), None);
        fs::write(dir.path().join("other"), "b").unwrap();
        fs::rename(dir.path().join("other"), &database).unwrap();
        assert_eq!(files.lost(), Some(&*database));
        fs::remove_file(&database).unwrap();
        assert_eq!(files.lost(), Some(&*database));
        assert_eq!(files.set_log_aside().unwrap(), Some(dir.path().join("a.db-wal.lost")));
        assert_eq!(files.set_log_aside().unwrap(), None);
    }
}
