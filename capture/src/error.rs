//! What can go wrong with a source.

use std::time::Duration;

use varve_formats::FormatError;

use crate::output::OutputError;

/// A source that cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// No kind of source reads this spec.
    #[error("{spec:?} is no source; there is {known}")]
    UnknownSpec {
        /// The spec.
        spec: String,
        /// The kinds there are.
        known: String,
    },
    /// Nobody listens at the socket, or there is none.
    #[error("nobody listens at {socket}: {reason}")]
    Absent {
        /// The socket.
        socket: String,
        /// What the system says.
        reason: String,
    },
    /// Whoever listens at the socket does not talk to us.
    #[error("cannot connect to {socket}: {reason}")]
    Connect {
        /// The socket.
        socket: String,
        /// Why not.
        reason: String,
    },
    /// The guest ended, or its hypervisor did.
    #[error("the guest is gone: {how}")]
    Gone {
        /// How that shows.
        how: String,
    },
    /// No answer in time.
    #[error("no answer to {doing} within {} s", limit.as_secs_f32())]
    Timeout {
        /// What was being asked for.
        doing: String,
        /// How long we waited.
        limit: Duration,
    },
    /// The other end refused.
    #[error("{doing} was refused: {reason}")]
    Refused {
        /// What was being asked for.
        doing: String,
        /// What it said.
        reason: String,
    },
    /// The other end does not speak the protocol.
    #[error("{doing}: the answer makes no sense: {reason}")]
    Protocol {
        /// What was being asked for.
        doing: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The connection failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The guest was not started in a way that lets it be captured; says what to do.
    #[error("{reason}")]
    Unsuitable {
        /// What is missing and how to provide it.
        reason: String,
    },
    /// Somebody else let the guest run while we held it: what was read is not the memory of one moment.
    #[error("somebody else resumed the guest while it was held: the epoch would be torn")]
    Disturbed,
    /// Frames came into the guest's memory that were not there when the epoch was begun.
    #[error("the guest's memory was laid out anew during the epoch, which would lack a part of it")]
    Relaid,
    /// Others look at what the guest writes to.
    #[error(
        "the domain is being saved, migrated or replicated by Xen's tools: no epoch is taken meanwhile, because one record of what it \
         writes to serves one reader"
    )]
    Saved,
    /// A stream that ends, or makes no sense, in the middle.
    #[error("{0}; what came since its last checkpoint is dropped, every epoch before is kept")]
    CutOff(FormatError),
    /// The memory file.
    #[error(transparent)]
    Memory(#[from] FormatError),
    /// What the guest sends could not be held as it should.
    #[error(transparent)]
    Output(#[from] OutputError),
}
