//! What the gate and its scanner say to each other, over a pair of sockets.
//!
//! A frame is a length of text and a length of bytes, `u32` little-endian each, the text (JSON of one value) and the bytes. The first
//! may carry a file. Neither end believes the other: the scanner has read what a hostile guest wrote.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use varve_analyze::engine::Change;
use varve_formats::{Gfn, Gpa, Region, TableRegister, Vcpu, image::Segment};

/// Longest text of a frame, in bytes.
const TEXT_MAX: usize = 16 << 20;

/// Most bytes of a frame.
const BYTES_MAX: usize = 64 << 20;

/// Most frames of memory asked for at a time.
pub(super) const PAGES_MAX: u64 = 64;

/// Most reasons of a verdict, and most characters of each.
const REASONS_MAX: usize = 64;
const REASON_CHARS: usize = 300;

/// What the scanner is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// What to look for; with the pinned boots as bytes, if there are any.
    Begin { policy: String, scans: Vec<String>, epochs: u64 },
    /// The memory to look at from now on is in the file that comes with this.
    Mirror { segments: Vec<(u64, u64, u64)> },
    /// Look at it: it is this epoch's now. Unless `fresh`, what has changed since the last look follows as bytes.
    Look { epoch: u64, vcpus: Vec<WireVcpu>, absent: Vec<u64>, fresh: bool },
    /// The answer to [`Report::WantEpoch`].
    Epoch { regions: Vec<(u64, u64)>, vcpus: Vec<WireVcpu> },
    /// The answer to [`Report::WantPages`]: those that are there follow as bytes.
    Pages { there: Vec<bool> },
    /// What was wanted cannot be had.
    Refused { reason: String },
}

/// What the scanner says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// It has looked at that many epochs of the past.
    Learned { epochs: u64 },
    /// It is ready for questions.
    Ready,
    /// It cannot begin.
    Cannot { reason: String },
    /// It needs an epoch of the past.
    WantEpoch { epoch: u64 },
    /// It needs pages of it.
    WantPages { epoch: u64, gfn: u64, count: u64 },
    /// Its verdict; with the boots it knows, to be pinned, as bytes.
    Verdict { epoch: u64, verdict: WireVerdict, because: Vec<String>, took_us: u64 },
}

/// A verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum WireVerdict {
    Passed,
    Bad,
    Incomplete,
}

/// The registers of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WireVcpu {
    index: u32,
    general: [u64; 3],
    control: [u64; 3],
    efer: Option<u64>,
    gs_base: Option<u64>,
    idtr: Option<(u64, u16)>,
    gdtr: Option<(u64, u16)>,
    lstar: Option<u64>,
}

impl From<&Vcpu> for WireVcpu {
    fn from(vcpu: &Vcpu) -> Self {
        let table = |table: TableRegister| (table.base, table.limit);
        Self {
            index: vcpu.index,
            general: [vcpu.rip, vcpu.rsp, vcpu.rflags],
            control: [vcpu.cr0, vcpu.cr3, vcpu.cr4],
            efer: vcpu.efer,
            gs_base: vcpu.gs_base,
            idtr: vcpu.idtr.map(table),
            gdtr: vcpu.gdtr.map(table),
            lstar: vcpu.lstar,
        }
    }
}

impl From<&WireVcpu> for Vcpu {
    fn from(vcpu: &WireVcpu) -> Self {
        let table = |(base, limit)| TableRegister { base, limit };
        let ([rip, rsp, rflags], [cr0, cr3, cr4]) = (vcpu.general, vcpu.control);
        Self {
            index: vcpu.index,
            rip,
            rsp,
            rflags,
            cr0,
            cr3,
            cr4,
            efer: vcpu.efer,
            gs_base: vcpu.gs_base,
            idtr: vcpu.idtr.map(table),
            gdtr: vcpu.gdtr.map(table),
            lstar: vcpu.lstar,
        }
    }
}

/// Regions as they are sent.
pub(super) fn regions(regions: &[Region]) -> Vec<(u64, u64)> {
    regions.iter().map(|region| (region.start.0, region.len)).collect()
}

/// Segments as they are sent.
pub(super) fn segments(segments: &[Segment]) -> Vec<(u64, u64, u64)> {
    segments.iter().map(|segment| (segment.start.0, segment.len, segment.offset)).collect()
}

/// Segments as they were sent.
pub(super) fn segments_of(sent: &[(u64, u64, u64)]) -> Vec<Segment> {
    sent.iter()
        .map(|(start, len, offset)| Segment { start: Gpa(*start), len: *len, offset: *offset })
        .collect()
}

/// Changes as they are sent: the number of a frame, and a bit for each of its lines.
pub(super) fn changes(changes: impl Iterator<Item = (Gfn, u64)>) -> Vec<u8> {
    changes.flat_map(|(gfn, lines)| [gfn.0.to_le_bytes(), lines.to_le_bytes()]).flatten().collect()
}

/// Changes as they were sent.
pub(super) fn changes_of(sent: &[u8]) -> Vec<Change> {
    let (numbers, _) = sent.as_chunks::<8>();
    let (pairs, _) = numbers.as_chunks::<2>();
    let change = |[gfn, lines]: &[[u8; 8]; 2]| Change {
        gfn: Gfn(u64::from_le_bytes(*gfn)),
        lines: u64::from_le_bytes(*lines),
    };
    pairs.iter().map(change).collect()
}

/// The first of these reasons, and of each the beginning: the journal has them all.
pub(super) fn shortened(reasons: impl IntoIterator<Item = String>) -> Vec<String> {
    let reasons = reasons.into_iter().take(REASONS_MAX);
    reasons.map(|reason| reason.chars().take(REASON_CHARS).collect()).collect()
}

/// Sends a frame.
pub(super) fn send(
    to: &UnixStream,
    text: &impl Serialize,
    bytes: &[u8],
    file: Option<&File>,
) -> io::Result<()> {
    let text = serde_json::to_vec(text)?;
    let too_long = || io::Error::other("too long for a frame");
    let text_len = u32::try_from(text.len()).ok().filter(|_| text.len() <= TEXT_MAX).ok_or_else(too_long)?;
    let bytes_len =
        u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= BYTES_MAX).ok_or_else(too_long)?;
    let head = [text_len.to_le_bytes(), bytes_len.to_le_bytes()].concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::Error::other("no room for a file"));
    }
    let sent = rustix::io::retry_on_intr(|| {
        sendmsg(to, &[IoSlice::new(&head)], &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    let mut to = to;
    to.write_all(head.get(sent..).unwrap_or_default())?;
    to.write_all(&text)?;
    to.write_all(bytes)
}

/// A frame that was received.
pub(super) struct Frame<T> {
    pub(super) text: T,
    pub(super) bytes: Vec<u8>,
    pub(super) file: Option<File>,
}

/// Receives a frame without a file; `None` when the other end is gone.
///
/// A file that came with it would be kept as long as the rest takes: it might be the sender's own end of the line, which then is never
/// gone.
pub(super) fn receive<T: DeserializeOwned>(from: &UnixStream) -> io::Result<Option<Frame<T>>> {
    let mut head = [0; 8];
    let received = rustix::io::retry_on_intr(|| rustix::io::read(from, &mut head))?;
    if received == 0 { Ok(None) } else { rest(from, head, received, None).map(Some) }
}

/// The same with a file, if one comes with it: from somebody who is trusted.
pub(super) fn receive_file<T: DeserializeOwned>(from: &UnixStream) -> io::Result<Option<Frame<T>>> {
    let mut head = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(from, &mut [IoSliceMut::new(&mut head)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let files = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let file = files.flatten().next().map(File::from);
    rest(from, head, received.bytes, file).map(Some)
}

/// Receives what is behind the first `received` bytes of a frame's head.
fn rest<T: DeserializeOwned>(
    mut from: &UnixStream,
    mut head: [u8; 8],
    received: usize,
    file: Option<File>,
) -> io::Result<Frame<T>> {
    from.read_exact(head.get_mut(received..).unwrap_or_default())?;
    let [text_len, bytes_len] = [head.first_chunk::<4>(), head.last_chunk::<4>()]
        .map(|len| len.map_or(0, |len| u32::from_le_bytes(*len) as usize));
    if text_len > TEXT_MAX || bytes_len > BYTES_MAX {
        return Err(io::Error::other("a frame that is too long"));
    }
    let mut text = vec![0; text_len];
    from.read_exact(&mut text)?;
    let mut bytes = vec![0; bytes_len];
    from.read_exact(&mut bytes)?;
    Ok(Frame { text: serde_json::from_slice(&text)?, bytes, file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_as_they_were_sent_with_their_file() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"memory").unwrap();
        let vcpu =
            Vcpu { rip: 7, cr3: 9, lstar: Some(1), idtr: Some(TableRegister::default()), ..Vcpu::default() };
        let vcpus = vec![WireVcpu::from(&vcpu)];
        let look = Order::Look { epoch: 3, vcpus, absent: vec![5], fresh: false };
        let changed = [(Gfn(7), 1 << 63), (Gfn(9), 2)];
        send(&ours, &look, &changes(changed.into_iter()), None).unwrap();
        send(&ours, &Order::Mirror { segments: vec![(0, 4096, 0)] }, b"bytes", Some(&file)).unwrap();
        drop(ours);
        let frame = receive_file::<Order>(&theirs).unwrap().unwrap();
        let Order::Look { epoch: 3, vcpus, absent, fresh: false } = frame.text else {
            panic!("{:?}", frame.text)
        };
        let change = |(gfn, lines)| Change { gfn, lines };
        assert_eq!(changes_of(&frame.bytes), changed.map(change));
        assert_eq!((Vcpu::from(&vcpus[0]), absent), (vcpu, vec![5]));
        assert!(frame.file.is_none());
        let frame = receive_file::<Order>(&theirs).unwrap().unwrap();
        assert!(matches!(frame.text, Order::Mirror { .. }));
        assert_eq!(frame.bytes, b"bytes");
        let mut seen = [0; 6];
        std::os::unix::fs::FileExt::read_exact_at(&frame.file.unwrap(), &mut seen, 0).unwrap();
        assert_eq!(&seen, b"memory");
        assert!(receive_file::<Order>(&theirs).unwrap().is_none());
    }

    #[test]
    fn a_scanner_that_sends_its_own_end_of_the_line_is_gone_when_it_is() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let end = File::from(std::os::fd::OwnedFd::from(theirs.try_clone().unwrap()));
        send(&theirs, &Report::Ready, b"", Some(&end)).unwrap();
        drop((theirs, end));
        let frame = receive::<Report>(&ours).unwrap().unwrap();
        assert!(matches!(frame.text, Report::Ready));
        assert!(receive::<Report>(&ours).unwrap().is_none());
    }

    #[test]
    fn nonsense_is_an_error() {
        for bytes in [
            &[255; 8][..],
            &[4, 0, 0, 0, 0, 0, 0, 0, b'n', b'o', b'p', b'e'],
            &[9, 0, 0, 0, 0, 0, 0, 0, b'1'],
        ] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(bytes).unwrap();
            drop(ours);
            assert!(receive::<Report>(&theirs).is_err(), "{bytes:?}");
        }
    }
}
