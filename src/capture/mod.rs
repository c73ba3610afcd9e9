//! Capture: ingest -> assemble -> checkpoint. Follows one source database and feeds one branch.
//!
//! Owns: reading the stream with its own resume loop (`ingest`), closing batches (`assemble`, pure), the durable checkpoint
//! (`checkpoint`), telling why it waits (`waits`), starting a capture (`start`), holding it for a while (`pause`), what is lost (`gap`), reading what is there already (`scan`), and the wiring of the three stages of one capture (`run`).
//! Does not own: what happens to a batch after it is in the queue (`sync`).

mod assemble;
mod batch;
mod checkpoint;
mod faulty;
pub mod feed;
mod gap;
mod ingest;
mod memory;
mod mongo;
mod notice;
mod pause;
mod run;
pub mod scan;
mod select;
pub mod source;
mod start;
mod waits;
mod window;

pub use assemble::{AssemblePolicy, Assembler, Due, Seen};
pub use batch::Batch;
pub use faulty::{FaultyFeed, FeedFaults};
pub use gap::record_gap;
pub use memory::MemoryFeed;
pub use mongo::MongoFeed;
pub use notice::Notice;
pub use pause::set_paused;
pub use run::{CaptureEnd, CaptureRun, CaptureSettings};
pub(crate) use start::put;
pub use start::{StartRequest, Started, start};
