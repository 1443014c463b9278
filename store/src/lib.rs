//! The archive of epochs.
//!
//! An archive holds the memory of virtual machines at many moments, each page once. It is a directory with a RocksDB
//! database in it, reached through typed columns; `docs/archive-format.md` describes every byte.
//!
//! ```no_run
//! use varve_store::{Access, Archive, Content, EpochMeta, FrameChange, hash};
//! # fn main() -> Result<(), varve_store::StoreError> {
//! # let (regions, page) = ([], [0u8; 4096]);
//! let archive = Archive::open("archive".as_ref(), Access::Write)?;
//! let mut writer = archive.begin("web1", &regions)?;
//! let digest = hash::digest_page(&page);
//! if writer.previous().digest(0) != digest {
//!     writer.store(&[FrameChange { frame: 0, content: Content::Page { digest, bytes: &page } }])?;
//! }
//! let record = writer.commit(EpochMeta { taken_at_ns: 0, source: "example".into(), ..EpochMeta::default() })?;
//! let memory = archive.epoch("web1", record.number)?;
//! # Ok(())
//! # }
//! ```

mod archive;
mod bytes;
mod cache;
mod check;
mod columns;
mod database;
#[doc(hidden)]
pub mod decoders;
mod directory;
mod error;
mod frames;
pub mod hash;
mod history;
mod memory;
mod page;
mod payload;
mod record;
pub mod root;
pub mod spec;
mod stats;
mod writer;

pub use archive::{Access, Archive};
pub use check::{AffectedEpoch, CheckReport, Problem, Stage};
pub use error::{Place, StoreError};
pub use frames::{FrameLayout, FrameTable};
pub use hash::Digest;
pub use history::{History, Step};
pub use memory::EpochMemory;
pub use page::{PACK_PAGES, PageId};
pub use record::{EpochId, EpochMeta, EpochRecord};
pub use stats::Stats;
pub use writer::{Content, EpochWriter, FrameChange};
