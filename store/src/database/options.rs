//! How RocksDB is tuned for an archive.

use rocksdb::{BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, LogLevel, Options};

use super::{COLUMNS, Mode, native};
use crate::columns::Column;
use crate::columns::packs::Packs;
use crate::columns::pages::Pages;

/// Packs in memory before RocksDB begins to write them out. Small, so that a large epoch is on its way to the disk while
/// it is still being compressed: 64 MiB made a first epoch a third slower.
const PACKS_BUFFER_BYTES: usize = 16 << 20;
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
    options.set_paranoid_checks(mode != Mode::Salvage);
    options.set_atomic_flush(true);
    // A reader's files stay open, so that a writer which compacts meanwhile cannot take them away.
    options.set_max_open_files(-1);
    // Threads are started for each column anew; sixteen, the default, cost more than the few files they open.
    options.set_max_file_opening_threads(2);
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
    // Files of one epoch rarely overlap, so that many of them cost a reader little, and a writer need not be held up.
    options.set_level_zero_file_num_compaction_trigger(8);
    options.set_level_zero_slowdown_writes_trigger(64);
    options.set_level_zero_stop_writes_trigger(128);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    if name == Pages::NAME {
        // Most look-ups are for pages the archive does not have.
        table.set_ribbon_filter(10.0);
        // Keys are random, so that a merge rewrites the level it goes to: begin with small levels.
        options.set_max_bytes_for_level_base(32 << 20);
        options.set_target_file_size_base(8 << 20);
    }
    if name == Packs::NAME {
        options.set_write_buffer_size(PACKS_BUFFER_BYTES);
        options.set_max_write_buffer_number(6);
        table.disable_cache();
    }
    options.set_block_based_table_factory(&table);
    options
}
