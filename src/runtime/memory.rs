//! Owns: that large buffers go back to the system when they are freed. Does not own how many there are (`pool::budget`).
//!
//! SUBTLE: glibc maps large allocations on their own and unmaps them when they are freed, but each time it unmaps one it raises the
//! size from which on it does so, up to 32 MiB. A few large documents later it keeps buffers of that size inside its arenas, one per
//! thread, and the engine holds twice of what it uses (340 MiB instead of 170 in a burst of documents of 9 to 16 MB). Only a size that
//! is set stays. It is read when the process begins, so the process begins once more, under the same id.

use std::ffi::OsStr;

/// Bytes from which on a buffer is mapped on its own. Blocks of 1 MiB stay below it: mapping each of them costs about as much as
/// compressing a tenth of it.
const MMAP_THRESHOLD: &str = "4194304";
/// What glibc reads.
const VARIABLE: &str = "MALLOC_MMAP_THRESHOLD_";
/// The other way to set it.
const TUNABLES: &str = "GLIBC_TUNABLES";

/// Begins this process again with the size set, unless it is set, by us or by somebody who knows better, or the C library is another
/// one. Returns where that is so or cannot be done: the engine is right without it, only larger.
pub fn begin_with_fixed_threshold() {
    if !cfg!(target_env = "gnu") || is_set(|name| std::env::var_os(name).is_some()) {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let failed = again(&program, &name, args);
    tracing::debug!(error = %failed, "could not set the size from which on memory is returned");
}

fn is_set(has: impl Fn(&str) -> bool) -> bool {
    has(VARIABLE) || has(TUNABLES)
}

/// Returns only if it failed.
fn again(program: &std::path::Path, name: &OsStr, args: impl Iterator<Item = std::ffi::OsString>) -> std::io::Error {
    use std::os::unix::process::CommandExt;
    std::process::Command::new(program).arg0(name).args(args).env(VARIABLE, MMAP_THRESHOLD).exec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sets_it_keeps_it_and_it_is_set_once() {
        assert!(is_set(|name| name == VARIABLE) && is_set(|name| name == TUNABLES) && !is_set(|_| false));
    }
}
