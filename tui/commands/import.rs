//! `varve import`: memory images become epochs.

use std::path::PathBuf;

use clap::Args;

use crate::{
    capturing::{Reporter, conclude},
    context::Context,
    exit::{Failure, Status},
    interrupt::Interrupt,
};

/// Make memory image files epochs of a VM, one each, in the order given
///
/// Raw, LiME and ELF core files, Xen's save files and Xen's cores are told apart by what they begin with. An epoch
/// counts as taken when its file was last written.
#[derive(Args)]
#[command(after_help = "Example:\n  varve -r /srv/varve --vm web1 import monday.lime tuesday.lime")]
pub(crate) struct Import {
    /// Memory images: raw, LiME, ELF core, `xl save` or `xl dump-core`
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl Import {
    pub(crate) fn run(&self, context: &Context<'_>) -> Result<Status, Failure> {
        let vm = context.vm_to_write()?;
        let archive = context.open_for_writing()?;
        let interrupt = Interrupt::install()?;
        let reporter = Reporter::new(context, &archive, vm);
        let options = varve_capture::Options::default();
        let ended = varve_capture::import(&self.files, &archive, vm, &options, &interrupt, &reporter);
        let (done, wanted) = (ended.summary.epochs, self.files.len() as u64);
        let status = conclude(context, reporter, ended, done == wanted)?;
        if done < wanted {
            let file = self.files.get(done as usize).map_or(String::new(), |file| file.display().to_string());
            return Err(Failure::new(format_args!(
                "interrupted after {done} of {wanted} files: go on with {file}"
            )));
        }
        Ok(status)
    }
}
