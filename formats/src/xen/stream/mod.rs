//! Save streams of Xen's tools: what `xl save` writes, and `xl migrate` and `xl remus` send.
//!
//! ```text
//! xl      "Xen saved domain, xl format\n \0 \r", byte order, flags, the domain's configuration as JSON
//! libxl   "LibxlFmt", version 2; records: LIBXC_CONTEXT …
//! libxc     marker, "XENF", version 2 or 3; domain header; records: static data, PAGE_DATA …, registers, END
//! libxl   … records of the emulator, END
//! ```
//! Each layer is optional towards the outside: a stream may begin with any of the three. The inner two are described
//! in Xen's `docs/specs/libxl-migration-stream.pandoc` and `libxc-migration-stream.pandoc`, the outer one in
//! `tools/xl/xl.h` (`struct save_file_header`). All numbers are little-endian except those in the headers of libxl and
//! libxc, which are big-endian.
//!
//! A **checkpointed** stream (Remus) has no END in sight: after every round of pages and registers libxc writes
//! CHECKPOINT, libxl its emulator's records and CHECKPOINT_END, and libxc goes on with the pages that changed. A
//! checkpoint counts only when its CHECKPOINT_END has come.
//!
//! [`Reader`] takes a stream apart as it comes, [`FrameSet`] tells which frames there are, [`SaveState`] keeps what is not
//! memory, and [`write()`] makes a stream of memory and state again.

mod frame_set;
mod headers;
mod input;
mod page_type;
mod pages;
mod reader;
mod record;
mod state;
mod write;

pub use frame_set::{FrameSet, MAX_FRAME_RUNS};
pub(crate) use headers::looks_like_stream;
pub use headers::{Config, DomainType, Header, MAX_CONFIG_BYTES};
pub use page_type::{MAX_TYPE_RUNS, PageType, PageTypes};
pub use pages::{Frame, MAX_BATCH_FRAMES, Pages};
pub use reader::{Event, Reader};
pub use record::{Level, MAX_RECORD_BYTES, Record, libxc, libxl};
pub use state::{MAX_RECORDS, MAX_STATE_BYTES, SaveState};
pub use write::{Damaged, write};
