//! A state as bytes, and back. The parent module shows the layout.

use super::{
    Config, DomainType, Level, MAX_RECORDS, MAX_STATE_BYTES, PageType, PageTypes, Record, SaveState, bad,
};
use crate::xen::stream::{MAX_CONFIG_BYTES, MAX_RECORD_BYTES, MAX_TYPE_RUNS};
use crate::{FormatError, Gfn, PAGE_SHIFT};

const MAGIC: &[u8; 8] = b"vxenstat";
const VERSION: u8 = 1;

/// First frame past the physical address space.
const FRAMES_END: u64 = crate::image::PHYSICAL_END >> PAGE_SHIFT;

impl SaveState {
    /// The state as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.record_bytes.saturating_add(1024));
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        out.push(self.domain.number() as u8);
        put(&mut out, self.xen.0.into());
        put(&mut out, self.xen.1.into());
        match &self.config {
            None => out.push(0),
            Some(config) => {
                out.push(1 + u8::from(config.is_json));
                put_bytes(&mut out, &config.bytes);
            }
        }
        put(&mut out, self.types.len() as u64);
        let mut end = 0;
        for (first, count, kind) in self.types.iter() {
            put(&mut out, first.0 - end);
            put(&mut out, count - 1);
            out.push(kind.bits());
            end = first.0 + count;
        }
        put(&mut out, self.records.len() as u64);
        for record in &self.records {
            out.push(match record.level {
                Level::Libxc => 0,
                Level::Libxl => 1,
            });
            out.extend_from_slice(&record.kind.to_le_bytes());
            put_bytes(&mut out, &record.body);
        }
        out
    }

    /// The state that [`SaveState::encode`] made these bytes of.
    ///
    /// # Errors
    /// [`FormatError`] with an offset: they are cut off, of another version, or not what that wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields { bytes, at: 0 };
        if fields.array()? != *MAGIC {
            return Err(bad(0, "no state of a Xen domain"));
        }
        let version = fields.u8()?;
        if version != VERSION {
            return Err(bad(8, format!("version {version} of the state of a Xen domain, not {VERSION}")));
        }
        let domain =
            DomainType::from_number(fields.u8()?.into()).ok_or_else(|| bad(9, "a domain of unknown type"))?;
        let xen = (fields.u32("a version")?, fields.u32("a version")?);
        let config = fields.config()?;
        let types = fields.types()?;
        let mut state = Self { domain, xen, config, types, records: Vec::new(), record_bytes: 0 };
        let count = fields.number(MAX_RECORDS as u64, "the number of records")?;
        for index in 0..count {
            let at = fields.at;
            state.keep(fields.record()?)?;
            if state.records.len() as u64 != index + 1 {
                return Err(bad(at, "a record that is there already"));
            }
        }
        match bytes.len() - fields.at {
            0 => Ok(state),
            left => Err(bad(fields.at, format!("{left} bytes follow the state"))),
        }
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let end = self.at.checked_add(len);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| bad(self.at, "the state is cut off"))?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let at = self.at;
        self.take(N)?.first_chunk().copied().ok_or_else(|| bad(at, "the state is cut off"))
    }

    fn u8(&mut self) -> Result<u8, FormatError> {
        self.array().map(|[byte]| byte)
    }

    fn varint(&mut self) -> Result<u64, FormatError> {
        let at = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                return Err(bad(at, "a number is longer than it needs to be"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(bad(at, "a number is longer than it can be"))
    }

    fn number(&mut self, max: u64, what: &str) -> Result<u64, FormatError> {
        let at = self.at;
        let number = self.varint()?;
        if number > max {
            return Err(bad(at, format!("{what} is {number}, more than {max}")));
        }
        Ok(number)
    }

    fn u32(&mut self, what: &str) -> Result<u32, FormatError> {
        self.number(u32::MAX.into(), what).map(|number| number as u32)
    }

    fn run_of_bytes(&mut self, max: usize, what: &str) -> Result<Vec<u8>, FormatError> {
        let len = self.number(max as u64, what)? as usize;
        self.take(len).map(<[u8]>::to_owned)
    }

    fn config(&mut self) -> Result<Option<Config>, FormatError> {
        let at = self.at;
        let is_json = match self.u8()? {
            0 => return Ok(None),
            1 => false,
            2 => true,
            _ => return Err(bad(at, "a configuration of unknown kind")),
        };
        let bytes = self.run_of_bytes(MAX_CONFIG_BYTES, "the length of the configuration")?;
        Ok(Some(Config { is_json, bytes }))
    }

    fn types(&mut self) -> Result<PageTypes, FormatError> {
        let mut types = PageTypes::default();
        let count = self.number(MAX_TYPE_RUNS as u64 - 1, "the number of runs of page types")?;
        let mut end = 0u64;
        for index in 0..count {
            let at = self.at;
            let gap = self.number(FRAMES_END, "the distance of a run")?;
            let frames = self.number(FRAMES_END, "the length of a run")? + 1;
            let kind = PageType::from_bits(self.u8()?)
                .filter(|kind| !matches!(kind, PageType::Normal | PageType::Absent));
            let kind = kind.ok_or_else(|| bad(at, "a run of pages of unknown type"))?;
            let first = end + gap;
            end = first + frames;
            if end > FRAMES_END {
                return Err(bad(at, "a run of page types past the 52-bit physical address space"));
            }
            types.set(Gfn(first), frames, kind).map_err(|error| bad(at, error.to_string()))?;
            if types.len() as u64 != index + 1 {
                return Err(bad(at, "two runs of page types that are one"));
            }
        }
        Ok(types)
    }

    fn record(&mut self) -> Result<Record, FormatError> {
        let at = self.at;
        let level = match self.u8()? {
            0 => Level::Libxc,
            1 => Level::Libxl,
            _ => return Err(bad(at, "a record of an unknown level")),
        };
        let kind = u32::from_le_bytes(self.array()?);
        let max = MAX_RECORD_BYTES.min(MAX_STATE_BYTES);
        Ok(Record { level, kind, body: self.run_of_bytes(max, "the length of a record")? })
    }
}
