//! The dataflow in figures: what each stage has done, how full each link is.
//!
//! Owns: this object, as events and the status page have it. Does not own: counting (`telemetry::meters`).

use schemars::JsonSchema;
use serde::Serialize;

use super::api::Api;
use crate::telemetry::meters::{LinkName, Stage};

/// All of it since the process began, but for depths and memory, which are of now.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub(super) struct Pipeline {
    pub stages: Vec<StageView>,
    pub links: Vec<LinkView>,
    pub memory: MemoryView,
}

/// One stage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub(super) struct StageView {
    pub stage: &'static str,
    /// Replies, batches, claims, jobs, groups of commits.
    pub units: u64,
    pub changes: u64,
    pub bytes: u64,
    pub busy_seconds: f64,
}

/// One link.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub(super) struct LinkView {
    pub link: &'static str,
    pub depth: u64,
    pub capacity: u64,
    /// Time that senders have waited for room.
    pub blocked_seconds: f64,
}

/// Bytes of jobs in work, and what they may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct MemoryView {
    pub used: u64,
    pub limit: u64,
}

impl Pipeline {
    pub(super) fn of(api: &Api) -> Self {
        let (meters, pressure) = (api.engine.meters(), api.engine.pressure());
        let stage = |stage: &Stage| {
            let read = meters.stage(*stage).read();
            StageView {
                stage: stage.name(),
                units: read.units,
                changes: read.changes,
                bytes: read.bytes,
                busy_seconds: read.busy.as_secs_f64(),
            }
        };
        let link = |link: &LinkName| {
            let read = meters.link(*link).read();
            // Two of them are no channels of ours.
            let (depth, capacity) = match link {
                LinkName::Claimed => (pressure.claimed, pressure.claimed_limit),
                LinkName::Cpu => (pressure.cpu, pressure.cpu_limit),
                _ => (read.depth, read.capacity),
            };
            LinkView { link: link.name(), depth, capacity, blocked_seconds: read.blocked.as_secs_f64() }
        };
        Self {
            stages: Stage::ALL.iter().map(stage).collect(),
            links: LinkName::ALL.iter().map(link).collect(),
            memory: MemoryView { used: pressure.memory_used, limit: pressure.memory_limit },
        }
    }
}
