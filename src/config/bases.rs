//! Owns: the settings of bases, drills and of what is removed: name, unit, default, range, what raising it costs. Does not own: what they lead to (`engine::keeper`, `jobs`).

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{size, time};

/// How long a branch lives on after its deletion.
const YEAR_MS: u64 = 31_536_000_000;

/// Settings of bases and drills (`argon run`).
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Bases and drills")]
pub struct BaseSettings {
    /// How often the history of a branch is folded into a new base, so that a restore does not take longer as history grows; 0: never. Less: more work
    /// for this engine, more objects.
    #[arg(long = "base-interval", env = "ARGON_BASE_INTERVAL", default_value = "24h", value_name = "TIME", value_parser = |s: &str| time(s, 0, YEAR_MS))]
    pub base_interval: Duration,
    /// Bytes of documents a second that one base copy reads from its source at most; 0: as fast as it goes. More: sooner done, more load on the source.
    #[arg(long = "base-rate", env = "ARGON_BASE_RATE", default_value = "0", value_name = "SIZE", value_parser = |s: &str| size(s, 0, 1 << 40))]
    pub base_rate: u64,
    /// Collections that one base copy reads at a time. More: sooner done, more load on the source, about 64 MiB each.
    #[arg(long = "base-readers", env = "ARGON_BASE_READERS", default_value = "2", value_name = "1..16", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub base_readers: u16,
    /// Members of the source that base copies read from.
    #[arg(long = "base-read-from", env = "ARGON_BASE_READ_FROM", default_value = "primary", value_name = "MEMBER")]
    pub base_read_from: ReadFrom,
    /// How often the catalogue of a source is compared with history, for what its stream does not tell; 0: never.
    #[arg(long = "catalogue-interval", env = "ARGON_CATALOGUE_INTERVAL", default_value = "10m", value_name = "TIME", value_parser = |s: &str| time(s, 0, YEAR_MS))]
    pub catalogue_interval: Duration,
    /// How often a branch is restored to a random recent point and compared; 0: never. It takes as much as a restore.
    #[arg(long = "drill-interval", env = "ARGON_DRILL_INTERVAL", default_value = "0", value_name = "TIME", value_parser = |s: &str| time(s, 0, YEAR_MS))]
    pub drill_interval: Duration,
    /// Where drills restore to, into a database argon_drill_... that is dropped again: env:NAME, file:PATH or a URI. ARGON_MONGODB_URI, if not given.
    #[arg(long = "drill-uri", env = "ARGON_DRILL_URI", value_name = "REF", hide_env_values = true)]
    pub drill_uri: Option<String>,
    /// How long the objects of a deleted branch, and objects that nothing refers to, are kept.
    #[arg(long = "delete-grace", env = "ARGON_DELETE_GRACE", default_value = "24h", value_name = "TIME", value_parser = |s: &str| time(s, 0, YEAR_MS))]
    pub delete_grace: Duration,
    /// Where folding spills to.
    #[arg(long = "temp-dir", env = "ARGON_TEMP_DIR", value_name = "DIR")]
    pub temp_dir: Option<PathBuf>,
}

/// Members of a replica set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ReadFrom {
    #[default]
    Primary,
    /// A secondary if there is one.
    Secondary,
    /// The nearest.
    Nearest,
}

impl Default for BaseSettings {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        Self {
            base_interval: DAY,
            base_rate: 0,
            base_readers: 2,
            base_read_from: ReadFrom::Primary,
            catalogue_interval: Duration::from_secs(600),
            drill_interval: Duration::ZERO,
            drill_uri: None,
            delete_grace: DAY,
            temp_dir: None,
        }
    }
}

impl BaseSettings {
    /// Where temporary files go.
    pub fn spill_dir(&self) -> PathBuf {
        self.temp_dir.clone().unwrap_or_else(std::env::temp_dir)
    }
}
