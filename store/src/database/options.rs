//! How RocksDB is tuned for an archive.

use rocksdb::{BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, LogLevel, Options};

use super::{COLUMNS, Mode, native};
use crate::columns::Column;
use crate::columns::packs::Packs;
use crate::columns::pages::Pages;

/// Memory for packs before RocksDB begins to write them out behind the capture's back.
const PACKS_BUFFER_BYTES: usize = 64 << 20;
/// The same for the other columns, of which the index of pages is the largest.
const BUFFER_BYTES: usize = 32 << 20;
/// Cache of index, digest and map blocks. Packs have a cache of their own.
const BLOCK_CACHE_BYTES: usize = 32 << 20;

/// Options of the database as a whole.
pub(super) fn database(mode: Mode) -> Options {
    let mut options = Options::default();
    options.create_if_missing(mode == Mode::Create);
    options.create_missing_column_families(mode == Mode::Create);
    options.set_error_if_exists(mode == Mode::Create);
    // A file that is missing or cut off must not keep the rest from being read; a writer stops at once.
    options.set_paranoid_checks(mode != Mode::Read);
    options.set_atomic_flush(true);
    // A reader's files stay open, so that a writer which compacts meanwhile cannot take them away.
    options.set_max_open_files(-1);
    options.set_skip_stats_update_on_db_open(true);
    options.set_max_background_jobs(4);
    options.set_max_manifest_file_size(4 << 20);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    native::checksum_whole_files(&mut options);
    options
}

/// The columns with their options.
pub(super) fn columns() -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
    COLUMNS.iter().map(|name| ColumnFamilyDescriptor::new(*name, column(name, &cache))).collect()
}

fn column(name: &str, cache: &Cache) -> Options {
    let mut options = Options::default();
    // Values that can be compressed are, by us.
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(BUFFER_BYTES);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    if name == Pages::NAME {
        // Most look-ups are for pages the archive does not have.
        table.set_ribbon_filter(10.0);
    }
    if name == Packs::NAME {
        options.set_write_buffer_size(PACKS_BUFFER_BYTES);
        table.disable_cache();
    }
    options.set_block_based_table_factory(&table);
    options
}
