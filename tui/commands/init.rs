//! `varve init`: creates an archive.

use clap::Args;
use serde_json::json;
use varve_store::Archive;

use crate::{
    context::Context,
    exit::{Failure, Status},
};

/// Create an archive in a new or empty directory
#[derive(Args)]
#[command(after_help = "Example:\n  varve -r /srv/varve init")]
pub(crate) struct Init {}

impl Init {
    pub(crate) fn run(&self, context: &Context<'_>) -> Result<Status, Failure> {
        let path = context.archive_path()?;
        Archive::create(path)?;
        let mut out = context.output();
        if out.is_json() {
            out.line(&json!({"type": "archive", "path": path, "created": true}))?;
        } else {
            out.text(&format!("created archive {}", path.display()))?;
        }
        out.flush()?;
        Ok(Status::Nothing)
    }
}
