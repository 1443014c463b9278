//! `varve export`: an epoch as a file that every tool opens.

use std::{
    fs::File,
    io::{self, Write},
    path::PathBuf,
};

use clap::{Args, ValueEnum};
use serde_json::json;
use varve_analyze::engine::History;
use varve_formats::{
    PhysicalMemory,
    symbols::isf,
    write::{self, CreateError, Existing, WriteError, Written},
    xen::stream::{self, Damaged, SaveState},
};
use varve_store::EpochMemory;

use crate::{
    context::Context,
    exit::{Failure, Status},
    output::bytes,
    scanning::count,
};

/// Write an epoch as a memory image, or its kernel's symbols
///
/// raw: guest physical memory from address 0 on, holes and unreadable frames as zeros. lime: only what there is, with
/// its addresses. isf: a symbol file for Volatility 3, made from the guest's own BTF and kallsyms. xl-save: what `xl restore`
/// starts the domain from, for epochs that are restorable.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  varve -r /srv/varve --vm web1 export 3 --format raw -o web1-3.raw\n  varve -r /srv/varve --vm web1 export latest --format isf -o symbols/linux/web1.json\n  varve -r /srv/varve --vm web1 export 50 --format xl-save -o web1.save"
)]
pub(crate) struct Export {
    /// Which epoch
    epoch: String,
    /// What to write
    #[arg(long, value_enum)]
    format: Format,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

/// The state that a domain can be started from, if the epoch keeps one.
pub(crate) fn restorable(memory: &EpochMemory) -> Result<SaveState, Failure> {
    let record = memory.record();
    let advice = "`varve capture` with --quiesce suspend or --restore-point-every makes epochs that can, and `varve epochs \
                  --json` tells which can";
    match memory.state()? {
        Some(state) if record.restorable => SaveState::decode(&state).map_err(Failure::new),
        Some(_) => Err(Failure::new(format_args!(
            "no domain can be started from epoch {}: it was paused, not suspended, and its devices were at work; {advice}",
            record.number
        ))),
        None => Err(Failure::new(format_args!(
            "no domain can be started from epoch {}: it has memory and registers only; {advice}",
            record.number
        ))),
    }
}

/// What can be written.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Raw,
    Lime,
    Isf,
    XlSave,
}

impl Export {
    pub(crate) fn run(&self, context: &Context<'_>) -> Result<Status, Failure> {
        if self.output.as_os_str() == "-" {
            return Err(Failure::usage(
                "an image cannot go to standard output: name a file, or ./- for one of that name",
            ));
        }
        let archive = context.open()?;
        let vm = context.vm(&archive)?;
        let epoch = context.epoch(&archive, &vm, &self.epoch)?;
        let written = match self.format {
            Format::Raw => self.image(context, &archive.epoch(&vm, epoch)?, write::raw::write),
            Format::Lime => self.image(context, &archive.epoch(&vm, epoch)?, write::lime::write),
            Format::XlSave => self.save(context, &archive.epoch(&vm, epoch)?),
            Format::Isf => {
                let history = History::open(&archive, &vm)?;
                history.learn(epoch)?;
                self.symbols(&history, &history.memory(epoch)?)
            }
        }?;
        let mut out = context.output();
        if out.is_json() {
            out.line(&json!({
                "type": "export", "vm": vm, "epoch": epoch, "path": self.output, "bytes": written.file_bytes,
                "frames_missing": written.frames_missing, "complete": written.is_complete(),
            }))?;
        } else {
            out.text(&format!("{}: {}", self.output.display(), bytes(written.file_bytes)))?;
        }
        out.flush()?;
        if written.is_complete() {
            return Ok(Status::Nothing);
        }
        context.remark(format_args!(
            "{} could not be read and are zeros in the file: `varve check --read-data` says more",
            count(written.frames_missing, "frame")
        ));
        Ok(Status::Incomplete)
    }

    fn image(
        &self,
        context: &Context<'_>,
        memory: &EpochMemory,
        write: fn(&dyn PhysicalMemory, &File, write::Progress<'_>) -> Result<Written, WriteError>,
    ) -> Result<Written, Failure> {
        let total = memory.regions().iter().map(|region| region.len).sum();
        let progress = context.progress_of_bytes(total, "exporting");
        self.create(|file| write(memory, file, &|bytes| progress.advance(bytes)))
    }

    fn save(&self, context: &Context<'_>, memory: &EpochMemory) -> Result<Written, Failure> {
        let state = restorable(memory)?;
        let total = memory.regions().iter().map(|region| region.len).sum();
        let progress = context.progress_of_bytes(total, "exporting");
        self.create(|file| {
            let mut out = io::BufWriter::with_capacity(1 << 20, file);
            let written =
                stream::write(&state, memory, Damaged::Zeros, &mut out, &|bytes| progress.advance(bytes))?;
            let flushed = out.flush();
            let offset = written.file_bytes;
            flushed.map_err(|source| WriteError::Io { doing: "the end of the stream", offset, source })?;
            Ok::<_, WriteError>(written)
        })
    }

    fn symbols(&self, history: &History, memory: &EpochMemory) -> Result<Written, Failure> {
        let guest = history.guest(memory)?;
        let profile = guest.profile();
        let source = isf::Source {
            kallsyms: profile.kallsyms(),
            btf: profile.btf(),
            banner: profile.banner().as_bytes(),
            kernel_offset: profile.kernel_offset(),
        };
        self.create(|file| {
            isf::write(&source, io::BufWriter::new(file))?;
            Ok::<_, io::Error>(Written { file_bytes: file.metadata()?.len(), ..Written::default() })
        })
    }

    /// Writes the file whole or not at all.
    fn create<E: std::error::Error + 'static>(
        &self,
        write: impl FnOnce(&File) -> Result<Written, E>,
    ) -> Result<Written, Failure> {
        let existing = if self.force { Existing::Replace } else { Existing::Refuse };
        write::create(&self.output, existing, write).map_err(|error| match error {
            CreateError::Exists { .. } => Failure::new(format_args!("{error}: --force replaces it")),
            error => Failure::new(error),
        })
    }
}
