//! Page maps of epochs: whole every 32nd epoch, the changed frames otherwise.
//!
//! ```text
//! key    0  4  number of the VM, big-endian
//!        4  8  number of the epoch, big-endian
//! value  0  4  "VMAP"
//!        4  1  layout version, 1
//!        5  1  codec of the payload: 0 as is, 1 one zstd frame
//!        6  1  flags, 0
//!        7  1  depth: 0 whole map, otherwise 1 more than the map of the epoch before, at most 31
//!        8  8  number of frames, little-endian
//!       16  4  length of the payload once decompressed, little-endian
//!       20  .  payload: runs, which cover every frame in order
//!
//! run    varint  length × 4 + kind
//!        kind 0  as in the epoch before (not in a whole map)
//!        kind 1  zero pages
//!        kind 2  absent
//!        kind 3  stored pages with ids that follow each other; then a zigzag varint: first id minus the id that
//!                would follow the last run of this kind (0 for the first)
//! ```

use super::{Column, EpochKey, decode_epoch_key, epoch_key, expect_header};
use crate::bytes::{Malformed, Put, Reader, unzigzag, zigzag};
use crate::frames::{MAX_FRAMES, PageMap};
use crate::payload::{self, Codec};
use crate::{PageId, Place, StoreError};

const MAGIC: &[u8; 4] = b"VMAP";
const VERSION: u8 = 1;
const CODEC_AT: usize = 5;

/// Deepest chain of changes above a whole map.
pub(crate) const MAX_DEPTH: u8 = 31;

/// Longest payload, in bytes. A run takes 16 at most.
const MAX_PAYLOAD_LEN: u64 = 1 << 30;
const MAX_RUN_LEN: u64 = 16;

/// (VM, epoch) to page map.
pub(crate) struct Manifests;

impl Column for Manifests {
    const NAME: &'static str = "manifests";
    type Key = EpochKey;
    type KeyBytes = [u8; 12];
    type Value = Manifest;

    fn key(key: &EpochKey) -> [u8; 12] {
        epoch_key(key)
    }

    fn decode_key(bytes: &[u8]) -> Result<EpochKey, Malformed> {
        decode_epoch_key(bytes)
    }

    fn decode(_: &EpochKey, bytes: &[u8]) -> Result<Manifest, Malformed> {
        Manifest::decode(bytes)
    }

    fn place((vm, epoch): &EpochKey) -> Place {
        Place::Manifest(*vm, *epoch)
    }
}

/// What a run of frames holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// What they held in the epoch before.
    Same,
    /// Zero pages.
    Zero,
    /// Nothing.
    Absent,
    /// Stored pages: this one and those that follow it.
    Pages(PageId),
}

impl Content {
    fn of(id: PageId) -> Self {
        match id {
            PageId::ZERO => Self::Zero,
            PageId::ABSENT => Self::Absent,
            id => Self::Pages(id),
        }
    }

    /// What `count` frames further on holds if the run goes on.
    fn following(self, count: u64) -> Option<Self> {
        match self {
            Self::Pages(first) => first.following(count).map(Self::Pages),
            other => Some(other),
        }
    }
}

/// Consecutive frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) len: u64,
    pub(crate) content: Content,
}

/// A page map, or its changes against the epoch before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    depth: u8,
    frames: u64,
    runs: Vec<Run>,
}

impl Manifest {
    /// The whole of `map`.
    pub(crate) fn whole(map: &PageMap) -> Self {
        let mut manifest = Self { depth: 0, frames: map.len(), runs: Vec::new() };
        map.iter().for_each(|id| manifest.push(1, Content::of(id)));
        manifest
    }

    /// The `changes` (ascending by frame) of a map of `frames` frames, `depth` steps above a whole map.
    pub(crate) fn changes(depth: u8, frames: u64, changes: impl IntoIterator<Item = (u64, PageId)>) -> Self {
        let mut manifest = Self { depth, frames, runs: Vec::new() };
        let mut next = 0;
        for (frame, id) in changes {
            manifest.push(frame.saturating_sub(next), Content::Same);
            manifest.push(1, Content::of(id));
            next = frame + 1;
        }
        manifest.push(frames.saturating_sub(next), Content::Same);
        manifest
    }

    /// Steps to the whole map this one builds on.
    pub(crate) fn depth(&self) -> u8 {
        self.depth
    }

    /// Number of frames.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }

    /// The changed runs with their first frames. In a whole map that is every frame.
    pub(crate) fn changed_runs(&self) -> impl Iterator<Item = (u64, Run)> + '_ {
        let with_start = self.runs.iter().scan(0, |next, run| {
            let start = *next;
            *next += run.len;
            Some((start, *run))
        });
        with_start.filter(|(_, run)| run.content != Content::Same)
    }

    /// Changes `map`, the map of the epoch before, into this epoch's. Pages beyond pack `last_pack` do not exist.
    pub(crate) fn apply(&self, map: &mut PageMap, last_pack: u64) -> Result<(), Malformed> {
        for (start, run) in self.changed_runs() {
            match run.content {
                Content::Same => {}
                Content::Zero => map.fill(start, run.len, PageId::ZERO),
                Content::Absent => map.fill(start, run.len, PageId::ABSENT),
                Content::Pages(first) => {
                    let last = first.following(run.len.saturating_sub(1)).and_then(PageId::location);
                    if last.is_none_or(|(pack, _)| pack > last_pack) {
                        return Err(Malformed::new(format!(
                            "frame {start} refers to {first}, behind the last pack"
                        )));
                    }
                    for offset in 0..run.len {
                        map.set(start + offset, first.following(offset).unwrap_or(PageId::ABSENT));
                    }
                }
            }
        }
        Ok(())
    }

    /// Appends a run, joining it to the last where that can go on.
    fn push(&mut self, len: u64, content: Content) {
        match self.runs.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.content.following(last.len) == Some(content) => last.len += len,
            _ => self.runs.push(Run { len, content }),
        }
    }

    /// The bytes of the map.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, StoreError> {
        let mut payload = Vec::with_capacity(self.runs.len() * 4);
        let mut expected = 0i64;
        for run in &self.runs {
            let kind = match run.content {
                Content::Same => 0,
                Content::Zero => 1,
                Content::Absent => 2,
                Content::Pages(_) => 3,
            };
            payload.put_varint(run.len << 2 | kind);
            if let Content::Pages(first) = run.content {
                let first = first.get() as i64;
                payload.put_varint(zigzag(first - expected));
                expected = first + run.len as i64;
            }
        }
        if payload.len() as u64 > MAX_PAYLOAD_LEN {
            return Err(StoreError::TooLarge { what: "a page map", limit: MAX_PAYLOAD_LEN });
        }
        let mut out = MAGIC.to_vec();
        out.put(&[VERSION, 0, 0, self.depth]);
        out.put(&self.frames.to_le_bytes());
        out.put(&(payload.len() as u32).to_le_bytes());
        let codec = payload::encode(&payload, &mut out);
        if let Some(byte) = out.get_mut(CODEC_AT) {
            *byte = codec as u8;
        }
        Ok(out)
    }

    /// The map in `bytes`.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        expect_header(&mut reader, MAGIC, VERSION)?;
        let codec = Codec::from_byte(reader.u8()?)?;
        let flags = reader.u8()?;
        if flags != 0 {
            return Err(Malformed::new(format!("flags {flags:#04x} are unknown to this varve")));
        }
        let depth = reader.u8()?;
        if depth > MAX_DEPTH {
            return Err(Malformed::new(format!("depth {depth} is over the limit of {MAX_DEPTH}")));
        }
        let frames = reader.u64()?;
        if frames == 0 || frames > MAX_FRAMES {
            return Err(Malformed::new(format!(
                "it says it has {frames} frames (1 to {MAX_FRAMES} are possible)"
            )));
        }
        let len = reader.u32()?;
        if u64::from(len) > MAX_PAYLOAD_LEN.min(frames * MAX_RUN_LEN) {
            return Err(Malformed::new(format!("{frames} frames cannot take {len} bytes")));
        }
        let payload = payload::decode(codec, reader.rest(), len as usize)?;
        Ok(Self { depth, frames, runs: decode_runs(&payload, frames, depth == 0)? })
    }
}

fn decode_runs(payload: &[u8], frames: u64, whole: bool) -> Result<Vec<Run>, Malformed> {
    let mut reader = Reader::new(payload);
    let mut runs = Vec::new();
    let mut left = frames;
    let mut expected = 0i64;
    while !reader.is_empty() {
        let head = reader.varint()?;
        let len = head >> 2;
        if len == 0 || len > left {
            return Err(Malformed::new(format!("a run of {len} frames where {left} are left")));
        }
        left -= len;
        let content = match head & 3 {
            0 if whole => return Err(Malformed::new("a whole map refers to the epoch before")),
            0 => Content::Same,
            1 => Content::Zero,
            2 => Content::Absent,
            _ => {
                let (first, last) = decode_ids(expected, unzigzag(reader.varint()?), len)?;
                expected = last.get() as i64 + 1;
                Content::Pages(first)
            }
        };
        runs.push(Run { len, content });
    }
    match left {
        0 => Ok(runs),
        left => Err(Malformed::new(format!("the runs leave {left} frames out"))),
    }
}

/// First and last id of a run of stored pages.
fn decode_ids(expected: i64, difference: i64, len: u64) -> Result<(PageId, PageId), Malformed> {
    let first =
        expected.checked_add(difference).and_then(|raw| u64::try_from(raw).ok()).and_then(PageId::from_raw);
    let last = first.and_then(|first| first.following(len - 1));
    first.zip(last).ok_or_else(|| Malformed::new("a run holds an id that names no page"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PACKS: u64 = 40;

    fn id() -> impl Strategy<Value = PageId> {
        prop_oneof![
            Just(PageId::ZERO),
            Just(PageId::ABSENT),
            (1..=PACKS, 0usize..64).prop_map(|(pack, slot)| PageId::new(pack, slot).unwrap()),
        ]
    }

    fn ids(runs: &[(PageId, u64)]) -> Vec<PageId> {
        let run = |(first, len): &(PageId, u64)| {
            let first = *first;
            (0..*len).map(move |n| if first.is_stored() { first.following(n).unwrap() } else { first })
        };
        runs.iter().flat_map(run).collect()
    }

    fn map(ids: &[PageId]) -> PageMap {
        let mut map = PageMap::absent(ids.len() as u64);
        ids.iter().enumerate().for_each(|(frame, id)| map.set(frame as u64, *id));
        map
    }

    proptest! {
        #[test]
        fn whole_maps_come_back(runs in proptest::collection::vec((id(), 1u64..200), 1..30)) {
            let map = map(&ids(&runs));
            let manifest = Manifest::whole(&map);
            let again = Manifest::decode(&manifest.encode().unwrap()).unwrap();
            prop_assert_eq!(&again, &manifest);
            let mut built = PageMap::absent(again.frames());
            again.apply(&mut built, PACKS + 10).unwrap();
            prop_assert_eq!(built.iter().collect::<Vec<_>>(), map.iter().collect::<Vec<_>>());
        }

        #[test]
        fn changes_come_back(
            runs in proptest::collection::vec((id(), 1u64..200), 1..20),
            changes in proptest::collection::btree_map(0u64..4000, id(), 0..50),
        ) {
            let before = map(&ids(&runs));
            let changes: Vec<_> = changes.into_iter().filter(|(frame, _)| *frame < before.len()).collect();
            let manifest = Manifest::changes(7, before.len(), changes.clone());
            let again = Manifest::decode(&manifest.encode().unwrap()).unwrap();
            prop_assert_eq!(&again, &manifest);
            let mut after = before.clone();
            again.apply(&mut after, PACKS + 10).unwrap();
            let mut expected: Vec<_> = before.iter().collect();
            for (frame, id) in changes {
                expected[frame as usize] = id;
            }
            prop_assert_eq!(after.iter().collect::<Vec<_>>(), expected);
        }

        #[test]
        fn any_payload_is_runs_or_malformed(payload in proptest::collection::vec(any::<u8>(), 0..60), whole: bool) {
            if let Ok(runs) = decode_runs(&payload, 1000, whole) {
                prop_assert_eq!(runs.iter().map(|run| run.len).sum::<u64>(), 1000);
            }
        }

        #[test]
        fn damaged_maps_are_maps_or_malformed(at in 0usize..40, value: u8) {
            let mut bytes = Manifest::whole(&map(&ids(&[(PageId::ZERO, 5), (PageId::new(1, 0).unwrap(), 9)]))).encode().unwrap();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            let _ = Manifest::decode(&bytes).map(|manifest| manifest.apply(&mut PageMap::absent(14), 1));
        }
    }

    fn sample() -> Manifest {
        let first = PageId::new(3, 60).unwrap();
        Manifest::changes(
            2,
            1000,
            [(5, PageId::ZERO), (6, first), (7, first.following(1).unwrap()), (9, PageId::ABSENT)],
        )
    }

    #[test]
    fn the_bytes_of_a_map() {
        let bytes = sample().encode().unwrap();
        // 252 = 3 × 64 + 60, zigzag 504 = varint f8 03; 990 frames stay: 3960 = varint f8 1e.
        let expected =
            b"VMAP\x01\x00\x00\x02\xe8\x03\0\0\0\0\0\0\x09\0\0\0\x14\x05\x0b\xf8\x03\x04\x06\xf8\x1e";
        assert_eq!(bytes[..], *expected, "{bytes:x?}");
        assert_eq!(Manifests::key(&(1, 2)), [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn consecutive_ids_join_across_packs() {
        let runs = Manifest::whole(&map(&ids(&[(PageId::new(1, 60).unwrap(), 8), (PageId::ZERO, 2)]))).runs;
        assert_eq!(runs.len(), 2, "{runs:?}");
    }

    #[test]
    fn lying_headers_are_refused() {
        let bytes = sample().encode().unwrap();
        let refused = |at: usize, with: &[u8]| {
            let mut bytes = bytes.clone();
            bytes[at..at + with.len()].copy_from_slice(with);
            Manifest::decode(&bytes).unwrap_err().to_string()
        };
        assert_eq!(refused(4, &[9]), "layout version 9 is unknown to this varve");
        assert_eq!(refused(5, &[9]), "codec 9 is unknown to this varve");
        assert_eq!(refused(6, &[1]), "flags 0x01 are unknown to this varve");
        assert_eq!(refused(7, &[32]), "depth 32 is over the limit of 31");
        assert_eq!(refused(7, &[0]), "a whole map refers to the epoch before");
        assert_eq!(refused(8, &[0, 0]), "it says it has 0 frames (1 to 1073741824 are possible)");
        assert_eq!(
            refused(8, &[0xff; 8]),
            "it says it has 18446744073709551615 frames (1 to 1073741824 are possible)"
        );
        assert_eq!(refused(8, &[1, 0]), "a run of 5 frames where 1 are left");
        assert_eq!(refused(8, &[0xe9]), "the runs leave 1 frames out");
        assert_eq!(refused(16, &[0xff; 4]), "1000 frames cannot take 4294967295 bytes");
    }

    #[test]
    fn pages_behind_the_last_pack_are_refused() {
        let mut map = PageMap::absent(1000);
        assert!(sample().apply(&mut map, 3).is_ok());
        let error = sample().apply(&mut map, 2).unwrap_err().to_string();
        assert_eq!(error, "frame 6 refers to 3.60, behind the last pack");
    }
}
