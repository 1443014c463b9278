//! The incremental reader.

use std::io::{self, Read};

use varve_fixtures::synth::xl_save::{HVM, NORMAL, Stream};
use varve_formats::xen::stream::{DomainType, Event, Level, MAX_BATCH_FRAMES, PageType, Reader, SaveState};
use varve_formats::{FormatError, Gfn};

use super::build::*;

/// One line an event.
fn events(bytes: &[u8]) -> (Vec<String>, Option<FormatError>) {
    let mut reader = Reader::new(bytes, "stream");
    let mut seen = Vec::new();
    loop {
        match reader.next_event() {
            Ok(Some(event)) => seen.push(line(&event)),
            Ok(None) => return (seen, None),
            Err(error) => return (seen, Some(error)),
        }
    }
}

fn line(event: &Event<'_>) -> String {
    match event {
        Event::Header(header) => {
            let config = header.config.as_ref().map(|config| String::from_utf8_lossy(&config.bytes));
            format!("header {:?} {:?} {config:?}", header.domain, header.xen)
        }
        Event::Pages(pages) => {
            let frame = |(frame, contents): (varve_formats::xen::stream::Frame, Option<&[u8]>)| {
                let salt = contents.map(|page| (0..=255u8).find(|salt| super::build::page(*salt) == page));
                format!("{}:{:?}={:?}", frame.gfn, frame.kind, salt.flatten())
            };
            format!("pages {}", pages.iter().map(frame).collect::<Vec<_>>().join(" "))
        }
        Event::Record(record) => {
            format!("{:?} {:#x}, {} bytes", record.level, record.kind, record.body.len())
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn a_save_file_comes_apart_in_order() {
    let (seen, error) = events(&pvh());
    assert!(error.is_none(), "{error:?}");
    insta::assert_snapshot!(seen.join("\n"));
}

#[test]
fn page_tables_of_a_pv_domain_keep_their_types() {
    let (seen, error) = events(&pv());
    assert!(error.is_none(), "{error:?}");
    insta::assert_snapshot!(seen.join("\n"));
}

#[test]
fn a_bare_stream_of_libxc_ends_with_its_end() {
    let mut out = Stream::default();
    out.libxc(HVM).record(16, &[]).pages(&[(NORMAL, 0, Some(&page(1)))]).record(0, &[]);
    let mut bytes = out.bytes().to_vec();
    bytes.extend(b"not ours");
    let mut reader = Reader::new(bytes.as_slice(), "stream");
    let mut last = None;
    while let Some(event) = reader.next_event().unwrap() {
        last = Some(line(&event));
    }
    assert_eq!((last.as_deref(), reader.offset()), (Some("End"), out.bytes().len() as u64));
}

/// Gives out a stream byte by byte, and fails when asked for more than there is.
struct Live<'a>(&'a [u8]);

impl Read for Live<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some((first, rest)) = self.0.split_first() else { return Err(io::Error::other("would wait")) };
        buf[0] = *first;
        self.0 = rest;
        Ok(1)
    }
}

#[test]
fn a_checkpoint_is_there_with_its_last_byte_and_not_before() {
    let (bytes, ends) = remus();
    for end in ends {
        let count = |bytes: &[u8]| {
            let mut reader = Reader::new(Live(bytes), "live");
            let mut count = 0;
            while let Ok(event) = reader.next_event() {
                count += usize::from(event == Some(Event::Checkpoint));
            }
            (count, reader.is_at_checkpoint())
        };
        let (whole, at_checkpoint) = count(&bytes[..end]);
        assert!(at_checkpoint);
        assert_eq!(count(&bytes[..end - 1]), (whole - 1, false));
    }
    insta::assert_snapshot!(events(&bytes).0.join("\n"));
    assert_eq!(events(&bytes).1.unwrap().offset, bytes.len() as u64);
}

#[test]
fn no_part_of_a_stream_is_complete_and_what_came_before_the_cut_is_the_same() {
    for bytes in [pvh(), pv()] {
        let whole = events(&bytes).0;
        // Inside pages one place is like another.
        for cut in (0..bytes.len()).filter(|cut| cut % 7 == 0 || bytes.len() - cut < 600 || *cut < 600) {
            let (seen, error) = events(&bytes[..cut]);
            assert_eq!(seen, whole[..seen.len()]);
            assert_eq!(error.unwrap().offset, cut as u64, "{}", seen.join("\n"));
            assert!(!seen.contains(&"End".to_owned()));
        }
    }
}

#[test]
fn a_long_record_of_pages_comes_in_batches() {
    let contents = page(9);
    let frames: Vec<_> = (0..2500u64).map(|frame| (NORMAL, frame, Some(contents.as_slice()))).collect();
    let mut out = Stream::default();
    out.libxc(HVM).pages(&frames).record(0, &[]);
    let mut reader = Reader::new(out.bytes(), "stream");
    let mut batches = Vec::new();
    while let Some(event) = reader.next_event().unwrap() {
        if let Event::Pages(pages) = event {
            assert!(pages.iter().all(|(_, page)| page == Some(&contents)));
            batches.push((pages.frames[0].gfn, pages.frames.len()));
        }
    }
    let full = MAX_BATCH_FRAMES;
    assert_eq!(batches, [(Gfn(0), full), (Gfn(1024), full), (Gfn(2048), 2500 - 2 * full)]);
}

#[test]
fn pages_sent_again_for_comparison_are_passed_over() {
    let mut out = Stream::default();
    out.libxc(HVM).pages(&[(NORMAL, 0, Some(&page(1)))]).record(13, &[]);
    out.pages(&[(NORMAL, 0, Some(&page(2)))]).record(9, &[]).record(0, &[]);
    let seen = events(out.bytes()).0;
    insta::assert_snapshot!(seen.join("\n"), @r"
    header Hvm (4, 17) None
    pages 0x0:Normal=Some(1)
    Libxc 0x9, 0 bytes
    End
    ");
}

#[test]
fn refusals_say_where_and_why() {
    let patched = |at: usize, patch: &[u8]| {
        let mut bytes = pvh();
        bytes[at..at + patch.len()].copy_from_slice(patch);
        bytes
    };
    let domain = |write: &dyn for<'a> Fn(&'a mut Stream) -> &'a mut Stream| {
        let mut out = Stream::default();
        out.libxc(HVM);
        write(&mut out);
        out.bytes().to_vec()
    };
    // Behind xl's header of 48 bytes, a length and the text with its NUL.
    let libxl = 48 + 4 + JSON.len() + 1;
    let libxc = libxl + 16 + 8;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("raw memory", vec![0; 64]),
        ("another tool", b"XenSavedDomain\n\0\0".to_vec()),
        ("xl, other magic", patched(20, b"?")),
        ("xl, byte order", patched(32, &[1, 2, 3, 4])),
        ("xl, legacy", patched(36, &[1])),
        ("xl, newer", patched(36, &[7])),
        ("xl, configuration too long", patched(44, &[0xff; 4])),
        ("xl, configuration longer than its data", patched(48, &[0xff])),
        ("libxl missing", patched(libxl, b"?")),
        ("libxl, version", patched(libxl + 8, &[0, 0, 0, 3])),
        ("libxl, big-endian", patched(libxl + 15, &[1])),
        ("libxl, legacy libxc", patched(libxc, &[0])),
        ("libxl, no domain", patched(libxl + 16, &[0])),
        ("libxc, name", patched(libxc + 8, b"?")),
        ("libxc, version", patched(libxc + 15, &[4])),
        ("libxc, big-endian", patched(libxc + 17, &[1])),
        ("domain type", patched(libxc + 24, &[3])),
        ("page size", patched(libxc + 28, &[21])),
        ("unknown record", domain(&|out| out.record(19, &[]))),
        ("COLO", domain(&|out| out.record(15, &[]))),
        ("no frames", domain(&|out| out.pages(&[]))),
        ("pages, too short", domain(&|out| out.record(1, &[1, 0, 0]))),
        ("pages, count lies", domain(&|out| out.record(1, &[0xff; 16]))),
        ("pages, contents missing", domain(&|out| out.pages(&[(NORMAL, 1, None)]))),
        ("pages, unknown type", domain(&|out| out.pages(&[(5, 1, Some(&page(1)))]))),
        ("pages, far away", domain(&|out| out.pages(&[(NORMAL, 1 << 40, Some(&page(1)))]))),
    ];
    let mut said = String::new();
    for (case, bytes) in cases {
        let error = events(&bytes).1.unwrap();
        said.push_str(&format!("{case}: {:#x}: {}\n", error.offset, error.reason));
    }
    insta::assert_snapshot!(said);
}

#[test]
fn lengths_beyond_the_limit_are_refused_before_the_bytes_come() {
    let mut out = Stream::default();
    out.libxc(HVM);
    let mut bytes = out.bytes().to_vec();
    bytes.extend([9u32.to_le_bytes(), (129u32 << 20).to_le_bytes()].concat());
    insta::assert_snapshot!(events(&bytes).1.unwrap().reason, @"a record of type 0x9 has 135266304 bytes, more than 134217728");
}

#[test]
fn the_state_of_a_domain_is_what_its_stream_had_beside_memory() {
    let mut reader = Reader::new(&*Box::leak(pv().into_boxed_slice()), "stream");
    let mut state = None;
    while let Some(event) = reader.next_event().unwrap() {
        match (event, &mut state) {
            (Event::Header(header), _) => state = Some(SaveState::new(header)),
            (Event::Pages(pages), Some(state)) => state.keep_types(pages.frames).unwrap(),
            (Event::Record(record), Some(state)) => state.keep(record).unwrap(),
            _ => {}
        }
    }
    let state = state.unwrap();
    assert_eq!((state.domain, state.guest_width()), (DomainType::Pv, 8));
    assert_eq!(state.types().get(Gfn(7)), PageType::Table { level: 4, pinned: true });
    assert_eq!(state.types().get(Gfn(6)), PageType::Broken);
    let vcpus = state.vcpus().unwrap();
    assert_eq!((vcpus.len(), vcpus[1].rip, vcpus[1].cr3), (2, 1 << 32 | 1, 1 << 32 | 5));
    assert_eq!((vcpus[0].gs_base, vcpus[1].gs_base), (Some(7), Some(1 << 32 | 7)));
    assert!(state.records().iter().all(|record| record.level == Level::Libxc));
    assert_eq!(SaveState::decode(&state.encode()).unwrap(), state);
}
