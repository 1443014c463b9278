//! The archive: opening, and finding epochs in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use varve_formats::Region;

use crate::cache::{self, PackCache};
use crate::columns::VmNumber;
use crate::columns::epochs::Epochs;
use crate::columns::meta::{ARCHIVE, Meta, Settings};
use crate::columns::packs::{Pack, Packs};
use crate::columns::pins::{self, Pins};
use crate::columns::vms::{Vms, check_name};
use crate::database::{Batch, Database, Mode, TableFile};
use crate::directory::{Directory, WriterLock};
use crate::frames::FrameTable;
use crate::memory::EpochMemory;
use crate::record::EpochRecord;
use crate::writer::EpochWriter;
use crate::{EpochId, StoreError};

/// What an archive is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading, also while another process writes: the epochs committed up to now are seen.
    Read,
    /// Reading and writing, by one process at a time.
    Write,
}

/// An archive of epochs.
///
/// Handles are cheap to clone and share everything. Epochs stay readable after the handle they came from is gone.
#[derive(Clone)]
pub struct Archive {
    shared: Arc<Shared>,
}

/// What handles, epochs and the writer share.
pub(crate) struct Shared {
    pub(crate) path: PathBuf,
    pub(crate) database: Database,
    pub(crate) access: Access,
    pub(crate) cache: PackCache,
    state: Mutex<State>,
    /// Declared last, hence released last: after the database is closed.
    _lock: Option<WriterLock>,
}

/// What changes as epochs are committed.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) vms: BTreeMap<String, Vm>,
    /// Number of the last pack written.
    pub(crate) last_pack: u64,
    /// The VM of the epoch that is being written.
    pub(crate) writing: Option<String>,
    /// The write failure after which nothing is written any more.
    pub(crate) poisoned: Option<String>,
}

/// A VM with at least one committed epoch.
#[derive(Clone)]
pub(crate) struct Vm {
    pub(crate) number: VmNumber,
    /// Number of committed epochs.
    pub(crate) epochs: u64,
    /// The latest epoch as its writer left it.
    pub(crate) tip: Option<Tip>,
}

/// What the next epoch builds on.
#[derive(Clone)]
pub(crate) struct Tip {
    pub(crate) id: EpochId,
    /// Depth of its page map.
    pub(crate) depth: u8,
    pub(crate) table: Arc<FrameTable>,
}

impl Archive {
    /// Creates an archive in `path`, a new or empty directory, and opens it for writing.
    ///
    /// # Errors
    /// [`StoreError::NotEmpty`], or what creating files can fail with.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        let directory = Directory::create(path)?;
        let lock = directory.lock()?;
        let database = Database::open(&directory.database(), Mode::Create)?;
        let settings = Settings {
            identity: random_identity(path)?,
            created_at_ns: now_ns(),
            created_by: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let mut batch = Batch::default();
        database.put::<Meta>(&mut batch, &ARCHIVE.to_owned(), &settings.encode())?;
        database.write(batch)?;
        database.flush()?;
        directory.write_format()?;
        Ok(Self::assemble(path, database, Access::Write, State::default(), Some(lock)))
    }

    /// Opens the archive in `path`.
    ///
    /// # Errors
    /// [`StoreError::NoArchive`], [`StoreError::NotAnArchive`], [`StoreError::NewerFormat`], for writing
    /// [`StoreError::Locked`]; [`StoreError::Corrupt`] when damage keeps the archive from being opened.
    pub fn open(path: &Path, access: Access) -> Result<Self, StoreError> {
        let directory = Directory::open(path)?;
        raise_file_limit();
        let (lock, database) = match access {
            Access::Read => (None, Database::open_beside_writer(&directory.database())?),
            Access::Write => {
                let lock = directory.lock()?;
                (Some(lock), Database::open(&directory.database(), Mode::Write)?)
            }
        };
        let state = State::load(&database, access)?;
        Ok(Self::assemble(path, database, access, state, lock))
    }

    fn assemble(
        path: &Path,
        database: Database,
        access: Access,
        state: State,
        lock: Option<WriterLock>,
    ) -> Self {
        let cache = PackCache::new(cache::DEFAULT_LIMIT_BYTES);
        let path = path.to_owned();
        Self {
            shared: Arc::new(Shared { path, database, access, cache, state: Mutex::new(state), _lock: lock }),
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The random identity the archive was given when it was created.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`].
    pub fn identity(&self) -> Result<[u8; 16], StoreError> {
        Ok(self.shared.database.require::<Meta>(&ARCHIVE.to_owned())?.identity)
    }

    /// Limits the memory for decompressed packs, in bytes. It is 128 MiB at first.
    pub fn set_cache_limit(&self, bytes: usize) {
        self.shared.cache.set_limit(bytes);
    }

    /// The names of the VMs that have an epoch, ascending.
    pub fn vms(&self) -> Vec<String> {
        self.shared.state().vms.keys().cloned().collect()
    }

    /// Number of epochs of a VM. They are numbered from 0.
    ///
    /// # Errors
    /// [`StoreError::UnknownVm`].
    pub fn epoch_count(&self, vm: &str) -> Result<u64, StoreError> {
        Ok(self.shared.vm(vm)?.epochs)
    }

    /// The records of a VM's epochs, ascending.
    ///
    /// # Errors
    /// [`StoreError::UnknownVm`], or a record that is damaged or missing.
    pub fn epochs(&self, vm: &str) -> Result<Vec<EpochRecord>, StoreError> {
        let vm = self.shared.vm(vm)?;
        (0..vm.epochs).map(|number| self.shared.database.require::<Epochs>(&(vm.number, number))).collect()
    }

    /// The record of an epoch.
    ///
    /// # Errors
    /// [`StoreError::UnknownVm`], [`StoreError::UnknownEpoch`], [`StoreError::Corrupt`].
    pub fn record(&self, vm: &str, number: u64) -> Result<EpochRecord, StoreError> {
        self.shared.database.require::<Epochs>(&self.shared.epoch_key(vm, number)?)
    }

    /// The memory of an epoch.
    ///
    /// # Errors
    /// [`StoreError::UnknownVm`], [`StoreError::UnknownEpoch`], [`StoreError::Corrupt`].
    pub fn epoch(&self, vm: &str, number: u64) -> Result<EpochMemory, StoreError> {
        let key = self.shared.epoch_key(vm, number)?;
        EpochMemory::load(&self.shared, key)
    }

    /// Begins the next epoch of `vm`, whose memory has these regions: ascending, disjoint, aligned to pages.
    ///
    /// One epoch is written at a time; it ends when the writer is committed or dropped.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`], [`StoreError::Poisoned`], [`StoreError::Busy`], [`StoreError::InvalidName`],
    /// [`StoreError::Regions`], or damage in the epoch before.
    pub fn begin(&self, vm: &str, regions: &[Region]) -> Result<EpochWriter, StoreError> {
        EpochWriter::begin(&self.shared, vm, regions)
    }

    /// The blob pinned for a VM under a name.
    ///
    /// # Errors
    /// [`StoreError::UnknownVm`], [`StoreError::InvalidName`], [`StoreError::Corrupt`].
    pub fn pin(&self, vm: &str, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        check_name(name)?;
        let vm = self.shared.vm(vm)?;
        self.shared.database.get::<Pins>(&(vm.number, name.to_owned()))
    }

    /// Pins a blob of at most 64 MiB for a VM that has an epoch, in place of what was pinned under this name. It is
    /// durable on return.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`], [`StoreError::Poisoned`], [`StoreError::UnknownVm`], [`StoreError::InvalidName`],
    /// [`StoreError::TooLarge`], or a failed write.
    pub fn set_pin(&self, vm: &str, name: &str, blob: &[u8]) -> Result<(), StoreError> {
        check_name(name)?;
        let vm = self.shared.vm(vm)?;
        let value = pins::encode(blob)?;
        self.shared.write(|database| {
            let mut batch = Batch::default();
            database.put::<Pins>(&mut batch, &(vm.number, name.to_owned()), &value)?;
            database.write(batch)?;
            database.flush()
        })
    }
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn vm(&self, name: &str) -> Result<Vm, StoreError> {
        let state = self.state();
        match state.vms.get(name) {
            Some(vm) => Ok(vm.clone()),
            None => {
                Err(StoreError::UnknownVm { vm: name.to_owned(), known: state.vms.keys().cloned().collect() })
            }
        }
    }

    /// The key of a committed epoch.
    pub(crate) fn epoch_key(&self, name: &str, number: u64) -> Result<(VmNumber, u64), StoreError> {
        let vm = self.vm(name)?;
        match number < vm.epochs {
            true => Ok((vm.number, number)),
            false => Err(StoreError::UnknownEpoch { vm: name.to_owned(), number, count: vm.epochs }),
        }
    }

    /// Where RocksDB's files are.
    pub(crate) fn database_path(&self) -> PathBuf {
        Directory::at(&self.path).database()
    }

    /// Where a table file is.
    pub(crate) fn table_path(&self, file: &TableFile) -> PathBuf {
        self.database_path().join(&file.name)
    }

    /// A decompressed pack.
    pub(crate) fn pack(&self, number: u64) -> Result<Arc<Pack>, StoreError> {
        self.cache.get(number, || self.database.require::<Packs>(&number))
    }

    /// Runs a write. After one that failed none is tried again.
    pub(crate) fn write<T>(
        &self,
        write: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.check_writable()?;
        write(&self.database).inspect_err(|error| {
            self.state().poisoned.get_or_insert_with(|| error.to_string());
        })
    }

    pub(crate) fn check_writable(&self) -> Result<(), StoreError> {
        if self.access != Access::Write {
            return Err(StoreError::ReadOnly);
        }
        match &self.state().poisoned {
            Some(reason) => Err(StoreError::Poisoned { reason: reason.clone() }),
            None => Ok(()),
        }
    }
}

impl State {
    fn load(database: &Database, access: Access) -> Result<Self, StoreError> {
        let vms = match listed_vms(database, access) {
            // Each record names its VM too: damage to the list must not keep the epochs from being read.
            Err(StoreError::Corrupt { .. }) if access == Access::Read => recorded_vms(database)?,
            listed => listed?,
        };
        // Nothing but table files holds entries now: there is no write-ahead log.
        let last_pack = database.file_bounds::<Packs>()?.into_iter().max().unwrap_or(0);
        Ok(Self { vms, last_pack, ..Self::default() })
    }
}

/// The VMs that have an epoch, from the list of VMs.
fn listed_vms(database: &Database, access: Access) -> Result<BTreeMap<String, Vm>, StoreError> {
    let mut vms = BTreeMap::new();
    for entry in database.scan::<Vms>(&String::new())? {
        let (name, number) = entry?;
        if let Some(last) = last_epoch(database, number, access)? {
            vms.insert(name, Vm { number, epochs: last + 1, tip: None });
        }
    }
    Ok(vms)
}

/// The same from the records.
fn recorded_vms(database: &Database) -> Result<BTreeMap<String, Vm>, StoreError> {
    let mut vms = BTreeMap::new();
    let mut next = database.next_key::<Epochs>(&(0, 0))?;
    while let Some(first) = next {
        let (number, _) = first;
        let record = database.require::<Epochs>(&first)?;
        let last = last_epoch(database, number, Access::Read)?.unwrap_or(0);
        vms.insert(record.vm, Vm { number, epochs: last + 1, tip: None });
        next = match number.checked_add(1) {
            Some(number) => database.next_key::<Epochs>(&(number, 0))?,
            None => None,
        };
    }
    Ok(vms)
}

/// The number of a VM's last epoch.
fn last_epoch(database: &Database, vm: VmNumber, access: Access) -> Result<Option<u64>, StoreError> {
    let last = match database.last_key::<Epochs>(&(vm, u64::MAX)) {
        // Where damage keeps the records from being listed, the bounds of the files still name the last of most VMs.
        Err(StoreError::Corrupt { .. }) if access == Access::Read => {
            database.file_bounds::<Epochs>()?.into_iter().filter(|(number, _)| *number == vm).max()
        }
        last => last?,
    };
    Ok(last.filter(|(number, _)| *number == vm).map(|(_, epoch)| epoch))
}

/// Every table file stays open, and an archive can have more of them than the usual soft limit of 1,024.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        // Refused at worst; then opening the database says which limit was hit.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

fn random_identity(path: &Path) -> Result<[u8; 16], StoreError> {
    let mut identity = [0; 16];
    rustix::rand::getrandom(&mut identity[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|error| StoreError::io(path, "drawing a random identity", error))?;
    Ok(identity)
}

/// Now, in nanoseconds since 1970-01-01 UTC.
pub(crate) fn now_ns() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}
