//! Giving memory back to the system after a burst of connections.
//!
//! The allocator keeps what was freed, and a proxy that once held thousands of connections would look as if it still
//! did. Asking it to return pages walks through all that it has, so that is done once a burst, never once a connection.

/// Connections that must have ended since the last time.
const BURST: i64 = 500;

/// How far the connections that are open have fallen from where they were most.
#[derive(Default)]
pub(crate) struct Tide {
    most: i64,
}

impl Tide {
    /// Takes in how many are `open` now; whether a burst has ended.
    pub(crate) fn has_ebbed(&mut self, open: i64) -> bool {
        self.most = self.most.max(open);
        let ebbed = self.most - open >= BURST;
        if ebbed {
            self.most = open;
        }
        ebbed
    }
}

/// Returns what the allocator keeps and nobody uses.
#[cfg(target_env = "gnu")]
pub(crate) fn give_back() {
    // SAFETY: malloc_trim has no preconditions, and glibc lets any thread call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators do so by themselves.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn give_back() {}

/// Lets go of the pages of the program itself: most of what is mapped after the start was only needed for it (nine of
/// eighteen MiB). What goes on being needed comes back from the page cache, at the cost of one fault.
pub(crate) fn forget_start() {
    give_back();
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    let Ok(program) = std::fs::read_link("/proc/self/exe") else { return };
    for (start, length) in code_of(&maps, &program.to_string_lossy()) {
        // SAFETY: the range is code of the program, mapped from its file, privately and not writable: its pages hold
        // what the file holds, and the kernel reads them again when they are touched. Nothing else lies in it.
        unsafe {
            libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
        }
    }
}

/// Where `program`'s code lies, in `maps` of the form of proc(5): start and length.
///
/// Only what may be executed. What may only be read has partly been written at the start (relocations), and would be
/// lost.
fn code_of(maps: &str, program: &str) -> Vec<(usize, usize)> {
    let code = maps.lines().filter_map(|line| {
        let mut fields = line.splitn(6, ' ');
        let (range, permissions) = (fields.next()?, fields.next()?);
        let path = fields.nth(3)?.trim_start();
        let (start, end) = range.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let length = usize::from_str_radix(end, 16).ok()?.checked_sub(start)?;
        (permissions == "r-xp" && path == program).then_some((start, length))
    });
    code.collect()
}

#[cfg(test)]
mod tests {
    use super::{Tide, code_of, forget_start};

    #[test]
    fn only_code_of_the_program_itself_is_let_go() {
        let maps = "\
55d0c0000000-55d0c0500000 r--p 00000000 fe:00 9 /usr/bin/ambit
55d0c0500000-55d0c1000000 r-xp 00500000 fe:00 9                          /usr/bin/ambit
55d0c1000000-55d0c1100000 r--p 01000000 fe:00 9                          /usr/bin/ambit
55d0c1100000-55d0c1101000 rw-p 01100000 fe:00 9                          /usr/bin/ambit
7f0000000000-7f0000100000 r-xp 00000000 fe:00 7                          /usr/lib/libc.so.6
7f0000200000-7f0000300000 r-xp 00000000 00:00 0
7ffc00000000-7ffc00002000 r-xp 00000000 00:00 0                          [vdso]
";
        assert_eq!(code_of(maps, "/usr/bin/ambit"), [(0x55d0_c050_0000, 0xb0_0000)]);
        assert_eq!(code_of(maps, "/usr/bin/other"), []);
        assert_eq!(code_of("rubbish\n\n-\nz-1 r-xp 0 0 0 x\n5-1 r-xp 0 0 0 x", "x"), []);
    }

    #[test]
    fn a_program_goes_on_after_it_has_forgotten_its_start() {
        let sum = |numbers: &[u64]| numbers.iter().map(|n| n.to_string().len()).sum::<usize>();
        forget_start();
        assert_eq!(sum(&[1, 22, 333]), 6);
    }

    #[test]
    fn memory_is_given_back_once_for_each_burst_that_ends() {
        let mut tide = Tide::default();
        let ebbed: Vec<i64> = [0, 400, 5, 2000, 1501, 1500, 1400, 1000, 3000, 0, 0]
            .into_iter()
            .filter(|open| tide.has_ebbed(*open))
            .collect();
        assert_eq!(ebbed, [1500, 1000, 0]);
    }
}
