//! The C functions of RocksDB that the `rocksdb` crate does not wrap: checksums over whole table files.
//!
//! RocksDB protects each block of a table file with a checksum, but no read touches every byte of a file. With a
//! checksum generator set, it also records one CRC-32C over each finished file in its MANIFEST; `check` compares.

#![allow(unsafe_code, reason = "calls into RocksDB's C API for functions without a safe wrapper")]

use std::ffi::CStr;
use std::ptr;

use librocksdb_sys as ffi;
use rocksdb::{AsRawPtr, DB, Options};

use super::Database;
use crate::StoreError;

/// What RocksDB calls CRC-32C over a file.
const CRC32C: &CStr = c"FileChecksumCrc32c";

/// A table file RocksDB says is part of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableFile {
    /// Name within the database directory.
    pub(crate) name: String,
    /// Size in bytes.
    pub(crate) size: u64,
    /// CRC-32C over the whole file, if recorded.
    pub(crate) crc32c: Option<u32>,
}

/// Makes RocksDB record a CRC-32C over each table file it finishes.
pub(super) fn checksum_whole_files(options: &mut Options) {
    // SAFETY: the pointer of `options` is valid while it lives; the options keep their own reference to the
    // generator factory (a `shared_ptr`), so that ours is released right away.
    unsafe {
        let factory = ffi::rocksdb_file_checksum_gen_crc32c_factory_create();
        ffi::rocksdb_options_set_file_checksum_gen_factory(options.as_raw_ptr(), factory);
        ffi::rocksdb_file_checksum_gen_factory_destroy(factory);
    }
}

/// The table files of the database.
pub(crate) fn table_files(database: &Database) -> Result<Vec<TableFile>, StoreError> {
    let files = LiveFiles::list(&database.db)?;
    Ok((0..files.len()).filter_map(|index| files.table_file(index)).collect())
}

/// RocksDB's list of the files it needs.
struct LiveFiles(*mut ffi::rocksdb_livefiles_storage_info_t);

impl LiveFiles {
    fn list(db: &DB) -> Result<Self, StoreError> {
        let mut error = ptr::null_mut();
        // SAFETY: `db` is open; the options live until the call returned; `error` receives null or a malloc'ed string.
        let files = unsafe {
            let options = ffi::rocksdb_livefiles_storage_info_options_create();
            ffi::rocksdb_livefiles_storage_info_options_set_include_checksum_info(options, 1);
            // Asking must not flush an epoch that is being written.
            ffi::rocksdb_livefiles_storage_info_options_set_wal_size_for_flush(options, u64::MAX);
            let files = ffi::rocksdb_get_livefiles_storage_info(db.as_raw_ptr(), options, &raw mut error);
            ffi::rocksdb_livefiles_storage_info_options_destroy(options);
            files
        };
        if error.is_null() && !files.is_null() {
            return Ok(Self(files));
        }
        Err(StoreError::corrupt(crate::Place::File("db".into()), take_error(error)))
    }

    fn len(&self) -> usize {
        // SAFETY: `self.0` is a list RocksDB gave out and not yet destroyed.
        unsafe { ffi::rocksdb_livefiles_storage_info_count(self.0) }
    }

    /// The file at `index`, which is below `len`, if it is a table file.
    fn table_file(&self, index: usize) -> Option<TableFile> {
        // SAFETY: as in `len`, and the index is in range; the strings live as long as the list and end with a zero.
        // A CRC-32C checksum is a string of four bytes, which may be zero themselves.
        let (name, function, size, checksum) = unsafe {
            let name = CStr::from_ptr(ffi::rocksdb_livefiles_storage_info_relative_filename(self.0, index));
            let function =
                CStr::from_ptr(ffi::rocksdb_livefiles_storage_info_file_checksum_func_name(self.0, index));
            let size = ffi::rocksdb_livefiles_storage_info_size(self.0, index);
            let checksum = ffi::rocksdb_livefiles_storage_info_file_checksum(self.0, index);
            let checksum = (function == CRC32C).then(|| checksum.cast::<[u8; 4]>().read());
            (name.to_string_lossy(), function, size, checksum)
        };
        let _ = function;
        let name = name.trim_start_matches('/').to_owned();
        name.ends_with(".sst").then_some(TableFile { name, size, crc32c: checksum.map(u32::from_be_bytes) })
    }
}

impl Drop for LiveFiles {
    fn drop(&mut self) {
        // SAFETY: as in `len`; nothing uses the list afterwards.
        unsafe { ffi::rocksdb_livefiles_storage_info_destroy(self.0) }
    }
}

/// Takes over an error string of RocksDB.
fn take_error(error: *mut std::ffi::c_char) -> String {
    if error.is_null() {
        return "RocksDB gave no list of its files".to_owned();
    }
    // SAFETY: RocksDB hands out error strings as malloc'ed, zero-terminated text for the caller to free.
    unsafe {
        let text = CStr::from_ptr(error).to_string_lossy().into_owned();
        ffi::rocksdb_free(error.cast());
        text
    }
}
