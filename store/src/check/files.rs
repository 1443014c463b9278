//! The table files: there, of the right size, and with the contents they were written with.

use std::fs::{self, File};
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::{Findings, Stage};
use crate::archive::Shared;
use crate::database::{Database, TableFile, table_files};
use crate::{Access, Place, StoreError};

const BUFFER_BYTES: usize = 1 << 20;

/// Checks the table files, and returns how many there are.
pub(super) fn check(
    shared: &Shared,
    read_data: bool,
    progress: &(dyn Fn(Stage, u64, u64) + Sync),
    findings: &mut Findings,
) -> Result<u64, StoreError> {
    let files = table_files(&shared.database)?;
    let total = files.iter().map(|file| file.size).sum();
    let done = AtomicU64::new(0);
    let check_one = |file: &TableFile| -> Option<(TableFile, String)> {
        let fault = match read_data {
            true => compare_contents(shared, file),
            false => compare_size(shared, file),
        };
        let sum = done.fetch_add(file.size, Ordering::Relaxed) + file.size;
        progress(Stage::Files, sum, total);
        Some((file.clone(), fault.err()?))
    };
    let faulty: Vec<_> = files.par_iter().filter_map(check_one).collect();
    if faulty.is_empty() {
        return Ok(files.len() as u64);
    }
    // A writer may have merged files into others since the list was made.
    let now = list_again(shared)?;
    for (file, fault) in faulty.into_iter().filter(|(file, _)| now.contains(file)) {
        findings.add(Place::File(format!("db/{}", file.name)), fault);
    }
    Ok(files.len() as u64)
}

fn compare_size(shared: &Shared, file: &TableFile) -> Result<(), String> {
    let metadata = fs::metadata(shared.table_path(file)).map_err(said)?;
    match metadata.len() == file.size {
        true => Ok(()),
        false => Err(format!("it has {} bytes, {} were written", metadata.len(), file.size)),
    }
}

fn compare_contents(shared: &Shared, file: &TableFile) -> Result<(), String> {
    compare_size(shared, file)?;
    let mut reader = File::open(shared.table_path(file)).map_err(said)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut found = 0;
    loop {
        match reader.read(&mut buffer).map_err(said)? {
            0 => break,
            len => found = crc32c::crc32c_append(found, buffer.get(..len).unwrap_or_default()),
        }
    }
    match file.crc32c {
        Some(written) if written != found => {
            Err(format!("its contents have the checksum {found:08x}, {written:08x} was written"))
        }
        Some(_) => Ok(()),
        None => Err("no checksum was recorded for it".to_owned()),
    }
}

fn list_again(shared: &Shared) -> Result<Vec<TableFile>, StoreError> {
    match shared.access {
        Access::Write => table_files(&shared.database),
        Access::Read => table_files(&Database::open_beside_writer(&shared.database_path())?),
    }
}

fn said(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it is missing".to_owned(),
        _ => error.to_string(),
    }
}
