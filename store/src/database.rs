//! RocksDB, seen as typed columns.
//!
//! **Invariant.** Nothing is written to a write-ahead log. Writes go to memory in batches, and RocksDB flushes all
//! columns atomically (`atomic_flush`), so what survives a crash is a prefix of the batches: every batch before some
//! point, whole, and none after it. Each batch alone keeps the archive consistent: index entries and digests stand in
//! the batch of their pack, a page map and its record stand in a batch behind those of all packs they refer to.

mod native;
mod options;
mod tidy;

use std::fs;
use std::path::Path;

use rocksdb::{
    DB, DBPinnableSlice, Direction, ErrorKind, IteratorMode, ReadOptions, WriteBatch, WriteOptions,
};

use crate::columns::{Column, digests, epochs, manifests, meta, packs, pages, pins, states, vms};
use crate::{Place, StoreError};

pub(crate) use native::{TableFile, table_files};

/// The opened column families.
pub(crate) struct Database {
    db: DB,
}

/// Entries that become durable together.
#[derive(Default)]
pub(crate) struct Batch {
    entries: WriteBatch,
}

/// A key and its value, or why there is none.
type Entry<C> = Result<(<C as Column>::Key, <C as Column>::Value), StoreError>;

/// What a look-up found.
type Found<C> = Result<Option<<C as Column>::Value>, StoreError>;

/// How to open the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Create,
    Write,
    Read,
    /// Reading what damage has left: a table file that is missing or cut off does not keep the rest from being read.
    Salvage,
}

impl Database {
    /// Opens the columns at `path`.
    pub(crate) fn open(path: &Path, mode: Mode) -> Result<Self, StoreError> {
        let options = options::database(mode);
        let columns = options::columns();
        let opened = match mode {
            Mode::Create | Mode::Write => DB::open_cf_descriptors(&options, path, columns),
            Mode::Read | Mode::Salvage => DB::open_cf_descriptors_read_only(&options, path, columns, false),
        };
        match opened {
            Ok(db) => Ok(Self { db }),
            Err(error) if error.kind() == ErrorKind::Corruption => {
                Err(StoreError::corrupt(Place::File("db".into()), error.into_string()))
            }
            Err(source) => Err(StoreError::Database { doing: "opening the database", source }),
        }
    }

    /// Opens the columns at `path` for reading, which another process may be writing.
    ///
    /// That process may replace table files between our reading of their list and our opening of them. It writes the new
    /// list before it deletes a file, so a file that is missing from an unchanged list is damage, and one that is
    /// missing from a list that has changed meanwhile is not: then the list is read again.
    pub(crate) fn open_beside_writer(path: &Path) -> Result<Self, StoreError> {
        const ATTEMPTS: usize = 100;
        for _ in 0..ATTEMPTS {
            let list = file_list(path);
            match Self::open(path, Mode::Read) {
                Err(_) if list == file_list(path) => {}
                Err(_) => continue,
                opened => return opened,
            }
            let opened = Self::open(path, Mode::Salvage);
            if list == file_list(path) {
                return opened;
            }
        }
        Self::open(path, Mode::Read)
    }

    /// The entry with `key`.
    pub(crate) fn get<C: Column>(&self, key: &C::Key) -> Result<Option<C::Value>, StoreError> {
        let options = Self::read_options::<C>();
        let found = self.db.get_pinned_cf_opt(self.family::<C>()?, C::key(key), &options);
        decode::<C>(key, found)
    }

    /// The entry with `key`, which must be there.
    pub(crate) fn require<C: Column>(&self, key: &C::Key) -> Result<C::Value, StoreError> {
        self.get::<C>(key)?.ok_or_else(|| StoreError::corrupt(C::place(key), "it is missing"))
    }

    /// The entries with `keys`, which are ascending.
    pub(crate) fn get_many<C: Column>(&self, keys: &[C::Key]) -> Result<Vec<Option<C::Value>>, StoreError> {
        let results = self.try_get_many::<C>(keys)?;
        results.into_iter().collect()
    }

    /// The entries with `keys`, which are ascending, each with its own success.
    pub(crate) fn try_get_many<C: Column>(&self, keys: &[C::Key]) -> Result<Vec<Found<C>>, StoreError> {
        let family = self.family::<C>()?;
        let options = Self::read_options::<C>();
        let encoded: Vec<C::KeyBytes> = keys.iter().map(C::key).collect();
        let found = self.db.batched_multi_get_cf_opt(family, &encoded, true, &options);
        Ok(keys.iter().zip(found).map(|(key, found)| decode::<C>(key, found)).collect())
    }

    /// The entries from `from` on, ascending.
    pub(crate) fn scan<'a, C: Column + 'a>(
        &'a self,
        from: &C::Key,
    ) -> Result<impl Iterator<Item = Entry<C>> + 'a, StoreError> {
        let start = C::key(from);
        let mode = IteratorMode::From(start.as_ref(), Direction::Forward);
        let entries = self.db.iterator_cf_opt(self.family::<C>()?, Self::read_options::<C>(), mode);
        Ok(entries.map(|entry| {
            let (key, value) = entry.map_err(|error| column_failure::<C>(error))?;
            let key = decode_key::<C>(&key)?;
            let value = C::decode(&key, &value)
                .map_err(|error| StoreError::corrupt(C::place(&key), error.to_string()))?;
            Ok((key, value))
        }))
    }

    /// The keys from `from` on, ascending, without looking at values.
    pub(crate) fn keys<'a, C: Column + 'a>(
        &'a self,
        from: &C::Key,
    ) -> Result<impl Iterator<Item = Result<C::Key, StoreError>> + 'a, StoreError> {
        let start = C::key(from);
        let mode = IteratorMode::From(start.as_ref(), Direction::Forward);
        let entries = self.db.iterator_cf_opt(self.family::<C>()?, Self::read_options::<C>(), mode);
        Ok(entries.map(|entry| decode_key::<C>(&entry.map_err(|error| column_failure::<C>(error))?.0)))
    }

    /// The first key at or behind `from`.
    pub(crate) fn next_key<C: Column>(&self, from: &C::Key) -> Result<Option<C::Key>, StoreError> {
        self.keys::<C>(from)?.next().transpose()
    }

    /// The smallest and the largest key of each table file, by RocksDB's list of files, which damage to the files does
    /// not change.
    pub(crate) fn file_bounds<C: Column>(&self) -> Result<Vec<C::Key>, StoreError> {
        let files = self
            .db
            .live_files()
            .map_err(|source| StoreError::Database { doing: "listing table files", source })?;
        let of_column = files.into_iter().filter(|file| file.column_family_name == C::NAME);
        of_column
            .flat_map(|file| [file.start_key, file.end_key])
            .flatten()
            .map(|key| decode_key::<C>(&key))
            .collect()
    }

    /// The last key at or before `at`.
    pub(crate) fn last_key<C: Column>(&self, at: &C::Key) -> Result<Option<C::Key>, StoreError> {
        let end = C::key(at);
        let mode = IteratorMode::From(end.as_ref(), Direction::Reverse);
        let mut entries = self.db.iterator_cf_opt(self.family::<C>()?, Self::read_options::<C>(), mode);
        match entries.next() {
            None => Ok(None),
            Some(Ok((key, _))) => decode_key::<C>(&key).map(Some),
            Some(Err(error)) => Err(column_failure::<C>(error)),
        }
    }

    /// Adds an entry to a batch.
    pub(crate) fn put<C: Column>(
        &self,
        batch: &mut Batch,
        key: &C::Key,
        value: &[u8],
    ) -> Result<(), StoreError> {
        batch.entries.put_cf(self.family::<C>()?, C::key(key), value);
        Ok(())
    }

    /// Makes a batch visible to reads through this handle. It is durable after the next [`Database::flush`].
    pub(crate) fn write(&self, batch: Batch) -> Result<(), StoreError> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.db
            .write_opt(batch.entries, &options)
            .map_err(|source| StoreError::Database { doing: "writing to the database", source })
    }

    /// Makes everything written durable, all columns in one step.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        let families = COLUMNS.iter().filter_map(|name| self.db.cf_handle(name)).collect::<Vec<_>>();
        let mut options = rocksdb::FlushOptions::new();
        options.set_wait(true);
        self.db
            .flush_cfs_opt(&families, &options)
            .map_err(|source| StoreError::Database { doing: "making the epoch durable", source })
    }

    /// The column's handle.
    fn family<C: Column>(&self) -> Result<&rocksdb::ColumnFamily, StoreError> {
        self.db.cf_handle(C::NAME).ok_or_else(|| StoreError::corrupt(Place::Column(C::NAME), "it is missing"))
    }

    /// Packs are cached decompressed, in the archive's own cache: RocksDB's would hold them a second time.
    fn read_options<C: Column>() -> ReadOptions {
        let mut options = ReadOptions::default();
        options.fill_cache(C::NAME != packs::Packs::NAME);
        options
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // Closing waits for running compactions; what they have done so far is discarded anyway.
        self.db.cancel_all_background_work(true);
    }
}

/// The names of all columns.
pub(crate) const COLUMNS: [&str; 9] = [
    meta::Meta::NAME,
    vms::Vms::NAME,
    pages::Pages::NAME,
    packs::Packs::NAME,
    digests::Digests::NAME,
    manifests::Manifests::NAME,
    epochs::Epochs::NAME,
    pins::Pins::NAME,
    states::States::NAME,
];

/// The name and the length of RocksDB's list of table files, which only ever grows or is replaced by one of another name.
fn file_list(path: &Path) -> Option<(String, u64)> {
    let name = fs::read_to_string(path.join("CURRENT")).ok()?;
    let length = fs::metadata(path.join(name.trim_end())).ok()?.len();
    Some((name, length))
}

fn decode<C: Column>(
    key: &C::Key,
    found: Result<Option<DBPinnableSlice<'_>>, rocksdb::Error>,
) -> Result<Option<C::Value>, StoreError> {
    match found {
        Ok(None) => Ok(None),
        Ok(Some(bytes)) => match C::decode(key, &bytes) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(StoreError::corrupt(C::place(key), error.to_string())),
        },
        Err(error) => Err(damage_or_failure::<C>(key, error)),
    }
}

fn decode_key<C: Column>(bytes: &[u8]) -> Result<C::Key, StoreError> {
    C::decode_key(bytes).map_err(|error| StoreError::corrupt(Place::Column(C::NAME), error.to_string()))
}

fn damage_or_failure<C: Column>(key: &C::Key, error: rocksdb::Error) -> StoreError {
    match error.kind() {
        ErrorKind::Corruption => StoreError::corrupt(C::place(key), error.into_string()),
        _ => StoreError::Database { doing: "reading from the database", source: error },
    }
}

fn column_failure<C: Column>(error: rocksdb::Error) -> StoreError {
    match error.kind() {
        ErrorKind::Corruption => StoreError::corrupt(Place::Column(C::NAME), error.into_string()),
        _ => StoreError::Database { doing: "reading from the database", source: error },
    }
}
