//! What a process holds.

/// A line of `/proc/self/status` in MiB, such as `VmHWM`, the most resident memory so far; none where the system does not tell.
pub fn memory_mib(line: &str) -> Option<f64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':')?.split_whitespace().next());
    kib?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_holds_more_says_so() {
        let before = memory_mib("VmHWM").unwrap();
        let held = std::hint::black_box(vec![1u8; 1 << 28]);
        let after = memory_mib("VmHWM").unwrap();
        assert!(after - before > 200.0 && after < before + 400.0, "{before} {after} {}", held.len());
        assert!(memory_mib("Vm").is_none() && memory_mib("Nothing").is_none());
    }
}
