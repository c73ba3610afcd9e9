//! Owns: that large buffers go back to the system when they are freed. Does not own how many there are (`pool::budget`).
//!
//! SUBTLE: glibc maps large allocations on their own and unmaps them when they are freed, but each time it unmaps one it raises the
//! size from which on it does so, up to 32 MiB. A few large documents later it keeps buffers of that size inside its arenas, one per
//! thread, and the engine holds twice of what it uses (340 MiB instead of 170 in a burst of documents of 9 to 16 MB). Only sizes that are
//! set stay. They are read when the process begins, so the process begins once more, under the same id.

use std::ffi::OsStr;

/// What glibc reads, and the bytes. Buffers from the first size on are mapped on their own: blocks of 1 MiB and replies of 4 stay below,
/// since mapping one costs a fault for each of its pages. The second goes with it: a size that is set takes the adapted size of what may
/// stay free at an arena's end with it, and with the 128 KiB of the beginning every block would be given back and faulted in again (a
/// third more CPU in all).
const SIZES: [(&str, &str); 2] = [("MALLOC_MMAP_THRESHOLD_", "8388608"), ("MALLOC_TRIM_THRESHOLD_", "33554432")];
/// The same for commands that read history: they take megabytes for each segment and each part of a base, on many threads, and end soon. Everything from the
/// first size on is mapped on its own (a restore of a million documents holds 175 MiB instead of 340, in the same time).
const SMALL_SIZES: [(&str, &str); 2] = [("MALLOC_MMAP_THRESHOLD_", "131072"), ("MALLOC_TRIM_THRESHOLD_", "131072")];
/// The other way to set them.
const TUNABLES: &str = "GLIBC_TUNABLES";

/// Begins this process again with the sizes set, unless one is set, by us or by somebody who knows better, or the C library is another
/// one. Returns where that is so or cannot be done: the engine is right without it, only larger.
pub fn begin_with_fixed_sizes() {
    begin_with(&SIZES);
}

/// As [`begin_with_fixed_sizes`], with the sizes of commands that read history.
pub fn begin_with_small_sizes() {
    begin_with(&SMALL_SIZES);
}

fn begin_with(sizes: &[(&str, &str)]) {
    if !cfg!(target_env = "gnu") || is_set(|name| std::env::var_os(name).is_some()) {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let failed = again(&program, &name, args, sizes);
    tracing::debug!(error = %failed, "could not set the sizes from which on memory is returned");
}

fn is_set(has: impl Fn(&str) -> bool) -> bool {
    SIZES.iter().any(|(name, _)| has(name)) || has(TUNABLES)
}

/// Returns only if it failed.
fn again(
    program: &std::path::Path,
    name: &OsStr,
    args: impl Iterator<Item = std::ffi::OsString>,
    sizes: &[(&str, &str)],
) -> std::io::Error {
    use std::os::unix::process::CommandExt;
    std::process::Command::new(program).arg0(name).args(args).envs(sizes.iter().copied()).exec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sets_it_keeps_it_and_it_is_set_once() {
        assert!(
            SIZES.iter().chain(&SMALL_SIZES).all(|(size, _)| is_set(|name| name == *size))
                && is_set(|name| name == TUNABLES)
                && !is_set(|_| false)
        );
    }
}
