//! A guest that puts another page where one was: Xen does not note it, and whoever has its memory mapped goes on seeing the old one.

use varve_formats::{Gpa, PhysicalMemory};
use varve_store::{Access, Archive};

use super::host::host;

/// Two pages that nobody else uses, and the numbers of their frames (`Documentation/admin-guide/mm/pagemap.rst` of Linux). An
/// object of Python's is where its `id` says, its bytes come 32 further on, and one so large begins a mapping of its own.
const PAGES: &str = "import time; \
    pages = bytes(4096 - 48) + b'the page that was here'.ljust(4096) + b'the page that has come'.ljust(1 << 20); \
    at, rest = divmod(id(pages) + 32 + 4096 - 48, 4096); assert rest == 0; \
    entries = open('/proc/self/pagemap', 'rb', buffering=0); entries.seek(at * 8); \
    numbers = [int.from_bytes(entries.read(8), 'little') & (1 << 55) - 1 for _ in range(2)]; \
    print(*numbers, file=open('/run/pages', 'w'), flush=True); \
    time.sleep(1000000)";

#[test]
fn a_page_that_was_moved_is_seen_where_it_is() {
    let mut host = host();
    let mut guest = host.guest("web1");
    guest.spawn("pages", 0, "/usr/bin/python3", &["-c", PAGES]).unwrap();
    let pages = guest.script("until [ -s /run/pages ]; do sleep 0.1; done; cat /run/pages").unwrap();
    let pages: Vec<u64> = pages.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let at = Gpa(pages[0] * 4096);
    host.begin_capture("web1", "--interval 200ms --recheck 4", 2);
    let come = guest.digests_within(pages[1], 1).unwrap();
    guest.move_page(pages[1], pages[0]).unwrap();
    let now = guest.digests_within(pages[0], 1).unwrap();
    assert_eq!(now[0].1, come[0].1, "Xen has moved it");
    // Every frame has had its turn since.
    host.more_epochs("web1", 6);
    host.end_capture("web1");

    let archive = host.bring("web1");
    let archive = Archive::open(&archive.path(), Access::Read).unwrap();
    let seen = |epoch| {
        let mut text = [0; 22];
        archive.epoch("web1", epoch).unwrap().read(at, &mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    };
    let last = archive.epoch_count("web1").unwrap() - 1;
    assert_eq!([seen(0), seen(last)], ["the page that was here", "the page that has come"]);
}
