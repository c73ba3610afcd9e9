//! Owns: from committed segments to the delay of every change. Does not own waiting for them.
//!
//! Two clocks per change, both of the server's machine, both from the change's own `wallTime`, which is read from the segment:
//! - *commit*: to `committed_ms` of its segment, the server's clock inside the commit transaction. A few ms before the commit returns.
//! - *visible*: to the moment when this process first saw a head at or past the change by a majority read, every few ms. Later than the
//!   truth by up to one look, and it includes waiting for earlier segments: an upper bound. This is the figure that is judged.
//!
//! When the load ends, fewer changes than a batch are left and wait for the batch timeout (5 s by default), as on any quiet database.
//! They are in `visible`, and left out of `visible_under_load`: the last segment is the one that no further change pushed on.

use argon::fault::{Fault, Result};
use argon::ledger::SegmentRow;
use argon::segment::SegmentFile;
use argon::store::Store;

use crate::load::latency::Latencies;

/// A head and when it was first seen, in ms of this machine's wall clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sighting {
    pub seq: u64,
    pub wall_ms: i64,
}

/// Delays of all changes.
#[derive(Debug)]
pub(super) struct Delays {
    pub commit: Latencies,
    pub visible: Latencies,
    /// Without the last segment.
    pub visible_under_load: Latencies,
    pub changes: u64,
}

/// Reads every segment and weighs each change once.
pub(super) async fn measure(store: &Store, segments: &[SegmentRow], sightings: &[Sighting]) -> Result<Delays> {
    let mut delays = Delays { commit: Latencies::new(), visible: Latencies::new(), visible_under_load: Latencies::new(), changes: 0 };
    let mut seen = sightings.iter().peekable();
    let last_seq = segments.last().map_or(0, |row| row.last_seq);
    for row in segments {
        let file = SegmentFile::parse(&row.key, store.get(&row.key, None).await?)?;
        for i in 0..file.block_count() {
            let block = file.block(i)?;
            for change in block.rows()? {
                let (seq, change) = change?;
                let Some(wall_ms) = change.wall_ms else { return Err(Fault::corrupt(format!("change {seq} has no wallTime"))) };
                while seen.next_if(|sighting| sighting.seq < seq).is_some() {}
                let Some(sighting) = seen.peek() else { return Err(Fault::unknown(format!("change {seq} was never seen"))) };
                delays.commit.record(micros(row.committed_ms - wall_ms), 1);
                let visible = micros(sighting.wall_ms - wall_ms);
                delays.visible.record(visible, 1);
                if row.last_seq < last_seq {
                    delays.visible_under_load.record(visible, 1);
                }
                delays.changes += 1;
            }
        }
    }
    Ok(delays)
}

/// Milliseconds as microseconds; a clock that ticked between the two readings gives less than nothing.
fn micros(ms: i64) -> u64 {
    u64::try_from(ms).unwrap_or(0).saturating_mul(1000)
}
