//! Gives up the capabilities that the node agent does not need, for good, before it serves anybody.
//!
//! Kept are `CAP_NET_ADMIN` (rules, routes, ending sockets), `CAP_SYS_ADMIN` (entering network namespaces),
//! `CAP_SYS_PTRACE` (the namespaces of processes), `CAP_DAC_OVERRIDE` (directories of the node), and
//! `CAP_NET_RAW` only where iptables writes the rules, whose legacy variant asks the kernel through a raw socket.
//! The others leave all sets, the bounding set too, so that no program that is started regains them; and no program
//! can gain anything by being setuid.
//!
//! Capabilities belong to threads: call [`drop_to`] while the process has one thread only.

use std::io;

/// `CAP_DAC_OVERRIDE`.
pub const DAC_OVERRIDE: u32 = 1;
/// `CAP_NET_ADMIN`.
pub const NET_ADMIN: u32 = 12;
/// `CAP_NET_RAW`.
pub const NET_RAW: u32 = 13;
/// `CAP_SYS_PTRACE`.
pub const SYS_PTRACE: u32 = 19;
/// `CAP_SYS_ADMIN`.
pub const SYS_ADMIN: u32 = 21;

/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// What the node agent needs with a firewall of that kind.
pub fn needed(backend: crate::firewall::Backend) -> Vec<u32> {
    let raw = (backend != crate::firewall::Backend::Nft).then_some(NET_RAW);
    [DAC_OVERRIDE, NET_ADMIN, SYS_PTRACE, SYS_ADMIN].into_iter().chain(raw).collect()
}

/// Keeps those of `wanted` that this thread has, and gives up all others in all sets.
pub fn drop_to(wanted: &[u32]) -> io::Result<()> {
    let mut halves = get()?;
    let keep = wanted.iter().fold(0u64, |mask, capability| mask | 1 << capability);
    // From the bounding set first: that takes CAP_SETPCAP, which is among those that go.
    for capability in (0u32..64).filter(|capability| keep & (1 << capability) == 0) {
        // SAFETY: prctl with these options takes plain numbers.
        let there = unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(capability), 0, 0, 0) };
        if there != 1 {
            continue;
        }
        // SAFETY: as above.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
        if result != 0 {
            let error = io::Error::last_os_error();
            // Without CAP_SETPCAP whoever started us has set the bounds already.
            if error.raw_os_error() != Some(libc::EPERM) {
                return Err(error);
            }
        }
    }
    // SAFETY: as above; a flag that can only take rights away.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for (half, mask) in halves.iter_mut().zip([keep as u32, (keep >> 32) as u32]) {
        half.permitted &= mask;
        half.effective = half.permitted;
        half.inheritable = 0;
    }
    set(&halves)
}

/// The capabilities that this thread has in effect, as a mask.
pub fn effective() -> io::Result<u64> {
    let halves = get()?;
    Ok(u64::from(halves[0].effective) | u64::from(halves[1].effective) << 32)
}

fn get() -> io::Result<[Half; 2]> {
    let (mut header, mut halves) = (Header { version: VERSION, pid: 0 }, [Half::default(); 2]);
    // SAFETY: version 3 of the call writes a header and two halves, which is what the pointers are to.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, halves.as_mut_ptr()) };
    if result == 0 { Ok(halves) } else { Err(io::Error::last_os_error()) }
}

fn set(halves: &[Half; 2]) -> io::Result<()> {
    let mut header = Header { version: VERSION, pid: 0 };
    // SAFETY: version 3 of the call reads a header and two halves, which is what the pointers are to.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, halves.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_is_gone_for_this_thread_and_for_what_it_starts() {
        // Capabilities belong to threads: only this one is changed.
        let line = std::thread::spawn(|| {
            let before = effective().unwrap();
            drop_to(&[NET_ADMIN, SYS_ADMIN]).unwrap();
            let after = effective().unwrap();
            assert_eq!(after, before & (1 << NET_ADMIN | 1 << SYS_ADMIN));
            let output = std::process::Command::new("cat").arg("/proc/self/status").output().unwrap();
            let status = String::from_utf8(output.stdout).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
            (after, u64::from_str_radix(line.trim(), 16).unwrap())
        });
        let (own, of_child) = line.join().unwrap();
        assert_eq!(of_child, own);
    }
}
