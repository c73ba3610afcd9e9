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
        // The name of the process may hold anything, parentheses too: fields are counted from the last one on.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        // The kernel's interface counts in hundredths on every platform that this runs on.
        Self { resident_bytes: of("VmRSS") * 1024, cpu_seconds: (ticks(14) + ticks(15)) / 100, threads: of("Threads"), open_files: 0 }
    }
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
