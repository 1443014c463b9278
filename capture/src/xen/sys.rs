//! The calls into Xen's libraries: the only place where they are seen.
//!
//! Every handle is closed when dropped. The control handle is used by one thread at a time; memory that is mapped is
//! read by any number.

#![allow(unsafe_code, reason = "calls into libxenctrl, libxenguest, libxenforeignmemory and libxenstore")]

use std::ffi::{CStr, CString, c_void};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, PoisonError};

use varve_formats::{Gfn, PAGE_SIZE};

use super::info::{CpuPolicy, DomainInfo, TscInfo};

mod ffi {
    #![allow(
        non_camel_case_types,
        non_upper_case_globals,
        non_snake_case,
        dead_code,
        missing_docs,
        unreachable_pub,
        clippy::all,
        reason = "generated from Xen's headers"
    )]
    include!(concat!(env!("OUT_DIR"), "/xen.rs"));
}

/// Xen's control interface.
pub(super) struct Control(Mutex<NonNull<ffi::xc_interface>>);

// SAFETY: the handle belongs to no thread, and the mutex lets in one at a time.
unsafe impl Send for Control {}
// SAFETY: as above.
unsafe impl Sync for Control {}

impl Control {
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: null stands for the default logger.
        let handle = unsafe { ffi::xc_interface_open(ptr::null_mut(), ptr::null_mut(), 0) };
        NonNull::new(handle).map(|handle| Self(Mutex::new(handle))).ok_or_else(io::Error::last_os_error)
    }

    fn handle(&self) -> MutexGuard<'_, NonNull<ffi::xc_interface>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls with the handle; a negative result is an error.
    fn call(&self, call: impl FnOnce(*mut ffi::xc_interface) -> i32) -> io::Result<u32> {
        let handle = self.handle();
        u32::try_from(call(handle.as_ptr())).map_err(|_| io::Error::last_os_error())
    }

    /// The domain with this number.
    pub(super) fn domain(&self, id: u32) -> io::Result<Option<DomainInfo>> {
        // SAFETY: the structure is plain numbers, for which zeros are a value.
        let mut info: ffi::xc_domaininfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: there is room for the one entry asked for.
        let found = self.call(|xch| unsafe { ffi::xc_domain_getinfolist(xch, id, 1, &raw mut info) })?;
        if found == 0 || u32::from(info.domain) != id {
            return Ok(None);
        }
        let flag = |flag: u32| info.flags & flag != 0;
        Ok(Some(DomainInfo {
            id,
            uuid: info.handle,
            hvm: flag(ffi::XEN_DOMINF_hvm_guest),
            hap: flag(ffi::XEN_DOMINF_hap),
            dying: flag(ffi::XEN_DOMINF_dying),
            paused: flag(ffi::XEN_DOMINF_paused),
            shutdown: flag(ffi::XEN_DOMINF_shutdown)
                .then_some(info.flags >> ffi::XEN_DOMINF_shutdownshift & ffi::XEN_DOMINF_shutdownmask),
            pages: info.tot_pages,
            shared_info: Gfn(info.shared_info_frame),
        }))
    }

    /// Stops the domain's vCPUs. Each call needs an [`Control::unpause`].
    pub(super) fn pause(&self, id: u32) -> io::Result<()> {
        // SAFETY: numbers only.
        self.call(|xch| unsafe { ffi::xc_domain_pause(xch, id) }).map(drop)
    }

    pub(super) fn unpause(&self, id: u32) -> io::Result<()> {
        // SAFETY: numbers only.
        self.call(|xch| unsafe { ffi::xc_domain_unpause(xch, id) }).map(drop)
    }

    /// Lets a domain go on that has suspended itself: its suspend call returns that it was cancelled.
    pub(super) fn resume(&self, id: u32) -> io::Result<()> {
        // SAFETY: numbers only.
        self.call(|xch| unsafe { ffi::xc_domain_resume(xch, id, 1) }).map(drop)
    }

    /// Pages of the domain's grant table.
    pub(super) fn grant_table_pages(&self, id: u32) -> io::Result<usize> {
        let dom = u16::try_from(id).map_err(io::Error::other)?;
        let mut size = ffi::gnttab_query_size { dom, nr_frames: 0, max_nr_frames: 0, status: 0 };
        // SAFETY: the structure that the call fills.
        self.call(|xch| unsafe { ffi::xc_gnttab_query_size(xch, &raw mut size) })?;
        match size.status {
            0 => usize::try_from(size.nr_frames).map_err(io::Error::other),
            status => Err(io::Error::other(format!("Xen answers {status} (GNTST_*)"))),
        }
    }

    /// The highest frame number of the domain.
    pub(super) fn maximum_gfn(&self, id: u32) -> io::Result<Gfn> {
        let mut gfn = 0;
        // SAFETY: `gfn` receives the number.
        self.call(|xch| unsafe { ffi::xc_domain_maximum_gpfn(xch, id, &raw mut gfn) })?;
        Ok(Gfn(gfn))
    }

    /// Makes Xen record which frames are written to, or no longer.
    pub(super) fn log_dirty(&self, id: u32, on: bool) -> io::Result<()> {
        let operation =
            if on { ffi::XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY } else { ffi::XEN_DOMCTL_SHADOW_OP_OFF };
        // SAFETY: no allocation is asked for, hence none is written back.
        self.call(|xch| unsafe { ffi::xc_shadow_control(xch, id, operation, ptr::null_mut(), 0) }).map(drop)
    }

    /// Fills `bitmap` with the frames written to; with `clean`, recording begins anew.
    pub(super) fn dirty(&self, id: u32, bitmap: &mut Bitmap, clean: bool) -> io::Result<()> {
        let operation = if clean { ffi::XEN_DOMCTL_SHADOW_OP_CLEAN } else { ffi::XEN_DOMCTL_SHADOW_OP_PEEK };
        let handle = self.handle();
        // SAFETY: the buffer holds a bit for each of `frames` frames; statistics are not asked for.
        let done = unsafe {
            let (buffer, frames) = (&raw mut bitmap.buffer, bitmap.frames);
            ffi::xc_logdirty_control(handle.as_ptr(), id, operation, buffer, frames, 0, ptr::null_mut())
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The registers and the virtual devices that Xen emulates, as save records (`xen/hvm/save.h`).
    pub(super) fn hvm_context(&self, id: u32) -> io::Result<Vec<u8>> {
        // SAFETY: without a buffer the call tells how many bytes there are.
        let len = self.call(|xch| unsafe { ffi::xc_domain_hvm_getcontext(xch, id, ptr::null_mut(), 0) })?;
        let mut bytes = vec![0; len as usize];
        // SAFETY: the buffer has `len` bytes.
        let len =
            self.call(|xch| unsafe { ffi::xc_domain_hvm_getcontext(xch, id, bytes.as_mut_ptr(), len) })?;
        bytes.truncate(len as usize);
        Ok(bytes)
    }

    /// A parameter of an HVM or PVH domain (`xen/hvm/params.h`).
    pub(super) fn hvm_param(&self, id: u32, param: u32) -> io::Result<u64> {
        let mut value = 0;
        // SAFETY: `value` receives the parameter.
        self.call(|xch| unsafe { ffi::xc_hvm_param_get(xch, id, param, &raw mut value) })?;
        Ok(value)
    }

    /// Major and minor version of the hypervisor.
    pub(super) fn version(&self) -> io::Result<(u32, u32)> {
        // SAFETY: this question (`XENVER_version` of `xen/version.h`) has no argument.
        let version = self.call(|xch| unsafe { ffi::xc_version(xch, 0, ptr::null_mut()) })?;
        Ok((version >> 16, version & 0xffff))
    }

    /// What the domain's processors can do.
    pub(super) fn cpu_policy(&self, id: u32) -> io::Result<CpuPolicy> {
        let (mut leaves, mut msrs) = (0, 0);
        // SAFETY: each pointer is to a number of its own.
        self.call(|xch| unsafe { ffi::xc_cpu_policy_get_size(xch, &raw mut leaves, &raw mut msrs) })?;
        let leaf = ffi::xen_cpuid_leaf_t { leaf: 0, subleaf: 0, a: 0, b: 0, c: 0, d: 0 };
        let mut leaf_array = vec![leaf; leaves as usize];
        let mut msr_array = vec![ffi::xen_msr_entry_t { idx: 0, flags: 0, val: 0 }; msrs as usize];
        // SAFETY: the arrays have the sizes that were asked for; the policy is given back in any case.
        let done = unsafe {
            let policy = ffi::xc_cpu_policy_init();
            if policy.is_null() {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            let done = self.call(|xch| ffi::xc_cpu_policy_get_domain(xch, id, policy)).and_then(|_| {
                let (leaf, msr) = (leaf_array.as_mut_ptr(), msr_array.as_mut_ptr());
                let (leaves, msrs) = (&raw mut leaves, &raw mut msrs);
                self.call(|xch| ffi::xc_cpu_policy_serialise(xch, policy, leaf, leaves, msr, msrs))
            });
            ffi::xc_cpu_policy_destroy(policy);
            done
        };
        done?;
        leaf_array.truncate(leaves as usize);
        msr_array.truncate(msrs as usize);
        Ok(CpuPolicy {
            leaves: leaf_array
                .iter()
                .flat_map(|leaf| [leaf.leaf, leaf.subleaf, leaf.a, leaf.b, leaf.c, leaf.d])
                .flat_map(u32::to_le_bytes)
                .collect(),
            msrs: msr_array
                .iter()
                .flat_map(|msr| {
                    (u64::from(msr.idx) | u64::from(msr.flags) << 32)
                        .to_le_bytes()
                        .into_iter()
                        .chain(msr.val.to_le_bytes())
                })
                .collect(),
        })
    }

    /// How the domain sees time.
    pub(super) fn tsc_info(&self, id: u32) -> io::Result<TscInfo> {
        let mut tsc = TscInfo::default();
        // SAFETY: each pointer is to a number of its own.
        self.call(|xch| unsafe {
            ffi::xc_domain_get_tsc_info(
                xch,
                id,
                &raw mut tsc.mode,
                &raw mut tsc.elapsed_ns,
                &raw mut tsc.khz,
                &raw mut tsc.incarnation,
            )
        })?;
        Ok(tsc)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // SAFETY: nothing uses the handle afterwards.
        unsafe { ffi::xc_interface_close(self.handle().as_ptr()) };
    }
}

/// A bit for each frame, in memory that Xen can write to.
pub(super) struct Bitmap {
    control: std::sync::Arc<Control>,
    buffer: ffi::xc_hypercall_buffer_t,
    words: NonNull<u64>,
    frames: u64,
}

// SAFETY: the memory is the bitmap's own.
unsafe impl Send for Bitmap {}

impl Bitmap {
    pub(super) fn new(control: &std::sync::Arc<Control>, frames: u64) -> io::Result<Self> {
        let frames = frames.next_multiple_of(64);
        // SAFETY: the structure is numbers and pointers; these values stand for a buffer that is not bounced
        // (`HYPERCALL_BUFFER_INIT_NO_BOUNCE` of xenctrl.h).
        let mut buffer: ffi::xc_hypercall_buffer_t = unsafe { std::mem::zeroed() };
        buffer.sz = usize::MAX;
        buffer.ubuf = usize::MAX as *mut c_void;
        let bitmap_pages = pages_of(frames);
        // SAFETY: the buffer is initialised, and the structure lives as long as its memory.
        let memory = unsafe {
            ffi::xc__hypercall_buffer_alloc_pages(control.handle().as_ptr(), &raw mut buffer, bitmap_pages)
        };
        let words = NonNull::new(memory.cast::<u64>()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { control: std::sync::Arc::clone(control), buffer, words, frames })
    }

    /// The frames whose bit is set, ascending.
    pub(super) fn frames(&self) -> Vec<Gfn> {
        // SAFETY: the memory has a bit for each frame, in whole words, and Xen writes to it during a call only.
        let words = unsafe { std::slice::from_raw_parts(self.words.as_ptr(), (self.frames / 64) as usize) };
        let mut frames = Vec::new();
        for (index, word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
            let bits = (0..64).filter(|bit| word >> bit & 1 == 1);
            frames.extend(bits.map(|bit| Gfn(index as u64 * 64 + bit)));
        }
        frames
    }
}

impl Drop for Bitmap {
    fn drop(&mut self) {
        let (handle, pages) = (self.control.handle(), pages_of(self.frames));
        // SAFETY: the memory was given out for this buffer, with this many pages.
        unsafe {
            ffi::xc__hypercall_buffer_free_pages(handle.as_ptr(), &raw mut self.buffer, pages);
        }
    }
}

/// Pages of a bitmap.
fn pages_of(frames: u64) -> i32 {
    i32::try_from((frames / 8).div_ceil(PAGE_SIZE as u64)).unwrap_or(i32::MAX).max(1)
}

/// The way to other domains' memory.
pub(super) struct ForeignMemory(NonNull<ffi::xenforeignmemory_handle>);

// SAFETY: libxenforeignmemory's functions keep no state in the handle but a file descriptor and a cache for errors' logger.
unsafe impl Send for ForeignMemory {}
// SAFETY: as above.
unsafe impl Sync for ForeignMemory {}

impl ForeignMemory {
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: null stands for the default logger.
        let handle = unsafe { ffi::xenforeignmemory_open(ptr::null_mut(), 0) };
        NonNull::new(handle).map(Self).ok_or_else(io::Error::last_os_error)
    }

    /// Maps frames of a domain, side by side in the given order, to be read. Which of them could not be mapped is told
    /// with the mapping; nothing must touch those.
    pub(super) fn map(self: &std::sync::Arc<Self>, id: u32, frames: &[Gfn]) -> io::Result<Mapping> {
        let mut failed = vec![0; frames.len()];
        let numbers: Vec<u64> = frames.iter().map(|gfn| gfn.0).collect();
        // SAFETY: both arrays have an element for each page; the kernel chooses the place.
        let address = unsafe {
            let (handle, numbers, failed) = (self.0.as_ptr(), numbers.as_ptr(), failed.as_mut_ptr());
            let (place, pages) = (ptr::null_mut(), frames.len());
            ffi::xenforeignmemory_map2(handle, id, place, PROT_READ, 0, pages, numbers, failed)
        };
        let address = NonNull::new(address.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        let mapped = failed.iter().map(|error| *error == 0).collect();
        Ok(Mapping { memory: std::sync::Arc::clone(self), resource: None, address, mapped })
    }

    /// Maps the first `pages` pages of a domain's grant table as what they are, not by where the domain has them in its
    /// memory. They must be there: Xen would make the table grow.
    pub(super) fn map_grant_table(self: &std::sync::Arc<Self>, id: u32, pages: usize) -> io::Result<Mapping> {
        let domain = u16::try_from(id).map_err(io::Error::other)?;
        let (kind, part) = (ffi::XENMEM_resource_grant_table, ffi::XENMEM_resource_grant_table_id_shared);
        let mut address = ptr::null_mut();
        // SAFETY: the kernel chooses the place and writes it to `address`.
        let resource = unsafe {
            let (handle, frames, address) = (self.0.as_ptr(), pages as u64, &raw mut address);
            ffi::xenforeignmemory_map_resource(handle, domain, kind, part, 0, frames, address, PROT_READ, 0)
        };
        let resource = Some(NonNull::new(resource).ok_or_else(io::Error::last_os_error)?);
        let address = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped nowhere"))?;
        Ok(Mapping { memory: std::sync::Arc::clone(self), resource, address, mapped: vec![true; pages] })
    }
}

/// `PROT_READ` of `mmap(2)`.
const PROT_READ: i32 = 1;

impl Drop for ForeignMemory {
    fn drop(&mut self) {
        // SAFETY: nothing uses the handle afterwards; mappings hold a reference to it.
        unsafe { ffi::xenforeignmemory_close(self.0.as_ptr()) };
    }
}

/// Mapped frames. The bytes change while the domain runs: copy what must not change, and believe only the copy.
pub(super) struct Mapping {
    memory: std::sync::Arc<ForeignMemory>,
    /// When it is a resource of the domain and not frames.
    resource: Option<NonNull<ffi::xenforeignmemory_resource_handle>>,
    address: NonNull<u8>,
    mapped: Vec<bool>,
}

// SAFETY: the memory is only read.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// For each frame, whether it could be mapped.
    pub(super) fn mapped(&self) -> &[bool] {
        &self.mapped
    }

    /// `len` bytes at `offset`; `None` when not all of them are mapped.
    pub(super) fn bytes(&self, offset: usize, len: usize) -> Option<&[u8]> {
        let end = offset.checked_add(len)?;
        let pages = self.mapped.get(offset / PAGE_SIZE..end.div_ceil(PAGE_SIZE))?;
        if !pages.iter().all(|mapped| *mapped) {
            return None;
        }
        // SAFETY: the pages are mapped as long as `self` lives, and any bytes are a `[u8]`. That a guest changes them
        // is as with a file that is mapped.
        Some(unsafe { std::slice::from_raw_parts(self.address.as_ptr().add(offset), len) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let (handle, address, pages) = (self.memory.0.as_ptr(), self.address.as_ptr(), self.mapped.len());
        // SAFETY: the mapping has this many pages, and nothing uses it afterwards.
        unsafe {
            match self.resource {
                Some(resource) => ffi::xenforeignmemory_unmap_resource(handle, resource.as_ptr()),
                None => ffi::xenforeignmemory_unmap(handle, address.cast(), pages),
            }
        };
    }
}

/// Xenstore, where the toolstack and the guests' drivers talk to each other.
pub(super) struct Store(Mutex<NonNull<ffi::xs_handle>>);

// SAFETY: the handle belongs to no thread, and the mutex lets in one at a time.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: numbers only.
        let handle = unsafe { ffi::xs_open(0) };
        NonNull::new(handle).map(|handle| Self(Mutex::new(handle))).ok_or_else(io::Error::last_os_error)
    }

    fn handle(&self) -> MutexGuard<'_, NonNull<ffi::xs_handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value at `path`; `None` when there is none.
    pub(super) fn read(&self, path: &str) -> io::Result<Option<String>> {
        self.read_in(0, path)
    }

    /// The same in a transaction; 0 stands for none.
    fn read_in(&self, transaction: u32, path: &str) -> io::Result<Option<String>> {
        let path = CString::new(path)?;
        let mut len = 0;
        // SAFETY: the path is a string. What comes back is malloc'ed and has `len` bytes.
        let bytes = unsafe {
            let value = ffi::xs_read(self.handle().as_ptr(), transaction, path.as_ptr(), &raw mut len);
            if value.is_null() {
                return none_if_missing(io::Error::last_os_error());
            }
            let bytes = std::slice::from_raw_parts(value.cast::<u8>(), len as usize).to_vec();
            ffi::free(value);
            bytes
        };
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The names below `path`; none when there is no such path.
    pub(super) fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let path = CString::new(path)?;
        let mut count = 0;
        // SAFETY: as in `read_in`; one allocation holds the array and the strings.
        unsafe {
            let list = ffi::xs_directory(self.handle().as_ptr(), 0, path.as_ptr(), &raw mut count);
            if list.is_null() {
                return Ok(none_if_missing(io::Error::last_os_error())?.unwrap_or_default());
            }
            let names = std::slice::from_raw_parts(list, count as usize).iter();
            let names = names.map(|name| CStr::from_ptr(*name).to_string_lossy().into_owned()).collect();
            ffi::free(list.cast());
            Ok(names)
        }
    }

    pub(super) fn write(&self, path: &str, value: &str) -> io::Result<()> {
        self.write_in(0, path, value)
    }

    fn write_in(&self, transaction: u32, path: &str, value: &str) -> io::Result<()> {
        let path = CString::new(path)?;
        let (value, len) = (value.as_ptr().cast(), value.len() as u32);
        // SAFETY: `value` has this many bytes.
        succeeded(unsafe { ffi::xs_write(self.handle().as_ptr(), transaction, path.as_ptr(), value, len) })
    }

    /// Writes `to` where `from` is, in a transaction; whether it was there. Would block when others wrote meanwhile.
    pub(super) fn exchange(&self, path: &str, from: &str, to: &str) -> io::Result<bool> {
        // SAFETY: the handle is open; whatever comes of the transaction, it is ended.
        let transaction = unsafe { ffi::xs_transaction_start(self.handle().as_ptr()) };
        succeeded(transaction != 0)?;
        let there = self.read_in(transaction, path).and_then(|value| match value.as_deref() == Some(from) {
            true => self.write_in(transaction, path, to).map(|()| true),
            false => Ok(false),
        });
        let abort = !matches!(there, Ok(true));
        // SAFETY: as above.
        let ended = succeeded(unsafe { ffi::xs_transaction_end(self.handle().as_ptr(), transaction, abort) });
        if abort { there } else { ended.map(|()| true) }
    }

    /// Tells xenstore that a domain which had shut down runs again.
    pub(super) fn resumed(&self, id: u32) -> io::Result<()> {
        // SAFETY: numbers only.
        succeeded(unsafe { ffi::xs_resume_domain(self.handle().as_ptr(), id) })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: nothing uses the handle afterwards.
        unsafe { ffi::xs_close(self.handle().as_ptr()) };
    }
}

fn succeeded(done: bool) -> io::Result<()> {
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn none_if_missing<T>(error: io::Error) -> io::Result<Option<T>> {
    if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) }
}
