//! Owns: what the system says of this process. Does not own: showing it (`http::metrics`).

use std::fs;

/// Memory, CPU time, threads and files of this process; zeros where the system has no /proc.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessFigures {
    pub resident_bytes: u64,
    pub cpu_seconds: u64,
    pub threads: u64,
    pub open_files: u64,
}

impl ProcessFigures {
    pub fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let open_files = fs::read_dir("/proc/self/fd").map_or(0, |dir| dir.count().saturating_sub(1) as u64); // without the one that reads
        Self { open_files, ..Self::parse(&stat, &status) }
    }

    fn parse(stat: &str, status: &str) -> Self {
        let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse().ok());
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // whole seconds, never negative
        let cpu_seconds = cpu_of_stat(stat).unwrap_or(0.0) as u64;
        Self { resident_bytes: status_kib(status, "VmRSS").unwrap_or(0) * 1024, cpu_seconds, threads: threads.unwrap_or(0), open_files: 0 }
    }
}

/// `Name:   123 kB` of /proc/PID/status.
pub(crate) fn status_kib(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

/// Fields 14 and 15 of /proc/PID/stat, in ticks of 1/100 s (the kernel's interface to programs has had that unit on all our platforms).
pub(crate) fn cpu_of_stat(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(") ")?; // the name may contain anything
    let mut fields = after_name.split(' ').skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()?.checked_add(fields.next()?.parse().ok()?)?;
    #[allow(clippy::cast_precision_loss)]
    Some(ticks as f64 / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_whatever_the_process_is_called() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 100 0 0";
        let read = ProcessFigures::parse(stat, "Name:\ta\nVmRSS:\t    2048 kB\nThreads:\t4\n");
        assert_eq!(read, ProcessFigures { resident_bytes: 2 << 20, cpu_seconds: 3, threads: 4, open_files: 0 });
        assert_eq!(ProcessFigures::parse("", ""), ProcessFigures::default());
        let own = ProcessFigures::read();
        assert!(own.resident_bytes > 100_000 && own.threads > 0 && own.open_files > 2, "{own:?}");
    }
}
