//! Where the time of an ingest goes: archives raw images as epochs of one VM and prints the milliseconds of each stage.
//!
//! `stages write ARCHIVE IMAGE…`, where an image may be several files joined with `+`; the archive is opened anew for each
//! epoch, as `varve import` does. `stages read ARCHIVE` reads epochs back, in order and at random, and checks the archive.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Instant;

use rayon::prelude::*;
use varve_formats::{Gpa, PhysicalMemory, Region};
use varve_store::hash::{Page, digest_pages, is_zero};
use varve_store::{Access, Archive, Content, Digest, EpochMeta, FrameChange};

const STAGES: [&str; 9] = ["open", "begin", "scan", "store", "commit", "close", "total", "changed", "stored"];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["write", path, images @ ..] => write(Path::new(path), images),
        ["read", path] => read_back(Path::new(path)),
        _ => Err("usage: stages write ARCHIVE IMAGE… | stages read ARCHIVE".into()),
    }
}

fn write(path: &Path, images: &[&str]) -> Result<(), Box<dyn Error>> {
    if !path.exists() {
        Archive::create(path)?;
    }
    println!("{}", STAGES.map(|stage| format!("{stage:>8}")).join(" "));
    for image in images {
        let mut bytes = Vec::new();
        for part in image.split('+') {
            bytes.extend(fs::read(part)?);
        }
        ingest(path, bytes.as_chunks().0)?;
    }
    Ok(())
}

fn ingest(path: &Path, pages: &[Page]) -> Result<(), Box<dyn Error>> {
    let mut watch = Watch(Instant::now(), Instant::now(), Vec::new());
    let archive = Archive::open(path, Access::Write)?;
    watch.lap();
    let regions = [Region { start: Gpa(0), len: pages.as_flattened().len() as u64 }];
    let mut writer = archive.begin("vm", &regions)?;
    watch.lap();
    let previous = writer.previous().clone();
    let changes: Vec<FrameChange<'_>> = pages
        .par_chunks(512)
        .enumerate()
        .flat_map_iter(|(chunk, pages)| scan(chunk as u64 * 512, pages, previous.digests()))
        .collect();
    drop(previous);
    watch.lap();
    for batch in changes.chunks(4096) {
        writer.store(batch)?;
    }
    watch.lap();
    let record = writer.commit(EpochMeta { source: "stages".into(), ..EpochMeta::default() })?;
    watch.lap();
    drop(archive);
    watch.lap();
    let laps: String = watch.2.iter().map(|lap| format!("{lap:8.1} ")).collect();
    println!(
        "{laps}{:6.1} {:8} {:8}",
        watch.1.elapsed().as_secs_f64() * 1e3,
        record.pages_changed,
        record.pages_stored
    );
    Ok(())
}

fn scan<'a>(first: u64, pages: &'a [Page], previous: &[[u8; 32]]) -> Vec<FrameChange<'a>> {
    let previous = previous.get(first as usize..).unwrap_or_default();
    let live: Vec<(usize, &Page)> = pages.iter().enumerate().filter(|(_, page)| !is_zero(*page)).collect();
    let refs: Vec<&Page> = live.iter().map(|(_, page)| *page).collect();
    let mut digests = vec![Digest::ZERO; refs.len()];
    digest_pages(&refs, &mut digests);
    let mut contents = vec![Content::Zero; pages.len()];
    for ((at, bytes), digest) in live.into_iter().zip(digests) {
        if let Some(content) = contents.get_mut(at) {
            *content = Content::Page { digest, bytes };
        }
    }
    let changed = |(at, content): (usize, Content<'a>)| {
        let now = match content {
            Content::Page { digest, .. } => digest.0,
            Content::Zero => Digest::ZERO.0,
            Content::Absent => Digest::ABSENT.0,
        };
        (previous.get(at) != Some(&now)).then_some(FrameChange { frame: first + at as u64, content })
    };
    contents.into_iter().enumerate().filter_map(changed).collect()
}

fn read_back(path: &Path) -> Result<(), Box<dyn Error>> {
    let archive = Archive::open(path, Access::Read)?;
    let count = archive.epoch_count("vm")?;
    for number in [0, count / 2, count - 1] {
        let start = Instant::now();
        let memory = archive.epoch("vm", number)?;
        let opened = start.elapsed();
        let frames = memory.layout().frames();
        let blocks: Vec<u64> = (0..frames / 256).collect();
        let read = |block: &u64| {
            memory.read(Gpa(block << 20), &mut vec![0; 1 << 20]).map_err(|fault| fault.to_string())
        };
        let start = Instant::now();
        blocks.iter().try_for_each(read)?;
        let one = start.elapsed().as_secs_f64();
        archive.set_cache_limit(0);
        read(&0)?;
        archive.set_cache_limit(128 << 20);
        let start = Instant::now();
        blocks.par_iter().try_for_each(read)?;
        let all = start.elapsed().as_secs_f64();
        let mib = (frames * 4096) as f64 / 1e6;
        println!(
            "epoch {number}: opened in {:.2} ms; read at {:.0} MB/s by one thread, {:.0} MB/s by all",
            opened.as_secs_f64() * 1e3,
            mib / one,
            mib / all
        );
        let start = Instant::now();
        let mut at = 1u64;
        let mut page = [0; 8];
        for _ in 0..20_000 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            memory.read(Gpa(((at >> 33) % frames) << 12), &mut page).map_err(|fault| fault.to_string())?;
        }
        println!(
            "epoch {number}: a random read takes {:.1} us",
            start.elapsed().as_secs_f64() * 1e6 / 20_000.0
        );
    }
    for read_data in [false, true] {
        let start = Instant::now();
        let report = archive.check(read_data, &|_, _, _| {})?;
        println!(
            "check (read_data {read_data}): {:.0} ms, {} pages, clean: {}",
            start.elapsed().as_secs_f64() * 1e3,
            report.pages,
            report.is_clean()
        );
    }
    println!("{:?}", archive.stats()?);
    Ok(())
}

/// Milliseconds between laps.
struct Watch(Instant, Instant, Vec<f64>);

impl Watch {
    fn lap(&mut self) {
        self.2.push(self.0.elapsed().as_secs_f64() * 1e3);
        self.0 = Instant::now();
    }
}
