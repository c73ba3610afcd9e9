//! Argon keeps a continuous, compressed, branchable history of a MongoDB database in an object store.
//!
//! It follows the change stream, checkpoints every batch of changes in a durable job queue in MongoDB, and a pool of workers turns the batches into
//! compressed segments in S3 (or a directory, or another store) and commits them to the branch atomically. What a database holds when its capture starts is copied
//! while it is in use. From there the database comes back as it was at any change, and is branched at any change by writing one document and one small object.
//!
//! # Dataflow
//!
//! ```text
//!  MongoDB change stream
//!    │ raw batches
//!  ingest ──▶ assemble ──▶ checkpoint ═══ durable job queue (MongoDB) ═══▶ claim ──▶ encode ──▶ upload ──▶ commit
//!  (async)   (pure core)   (1 txn)                                        (async)   (rayon)    (S3)      (1 txn)
//! ```
//!
//! Blocks of about 1 MiB are compressed once, on the CPU pool, when their batch is queued; the same frames become the segment's blocks. The
//! worker decodes each, which is the proof that it decodes, indexes it, and assembles and hashes the object. Compressing twice, fast for the
//! queue and better for the segment, cost half as much CPU again and made the object depend on which engine made it (see [`segment::PackedBlock`]).
//!
//! # Promises
//!
//! 1. Nothing lost, nothing twice: every change that the server reports after a capture's start is in exactly one committed segment, in order.
//! 2. What comes back is what went in: documents byte for byte, indexes, options, validators, views.
//! 3. A damaged byte is found and named, never used.
//! 4. Memory is bounded by configuration, not by load, backlog or transaction size.
//! 5. Stopping is safe at any moment; `kill -9` costs repeated work, nothing else.
//! 6. The bucket is enough: metadata is made anew from it, and history is read without any.
//! 7. A branch is a pointer: making one costs the same at any size.
//!
//! Promise 1 covers what the server reports: an atomic `applyOps` is invisible in any change stream, and time-series collections are recorded
//! but not restored by this version.
//!
//! # Links
//!
//! Every link is bounded. Across the queue the bound is the backlog (`ARGON_QUEUE_MAX_BYTES`); inside, jobs take their bytes from one budget
//! (`ARGON_MEMORY_BUDGET`), so the links between stages need small counts only.
//!
//! | link | from → to | capacity | why |
//! |---|---|---|---|
//! | `replies` | ingest → assemble | 1 | one reply is read while one is parsed; a reply may hold 16 MiB |
//! | `batches` | assemble → checkpoint | 1 | the slot semaphore allows one checkpoint in flight, the next batch grows meanwhile |
//! | inboxes | claimer → workers of a class | a tenth of a second of work, 2 to 1,000 jobs; none of jobs over a second | hides the round trip of a claim, and leaves the rest of the queue to other engines |
//! | `marks` | workers → marker | 64 | every worker has at most one |
//! | `finishes` | workers → finisher | 1,024 | short jobs end by the thousand a second, and are put on record in groups of 512 |
//! | CPU pool | async stages → rayon | 2 a thread | one unit runs while one waits |
//! | `commits` | workers → committer | 64 | every worker has at most one |
//!
//! # As a library
//!
//! What the commands do can be had as functions. This is `argon restore shop/main --to-db shop_copy --at 2026-11-23T21:02:52Z`, from the store alone:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use argon::branch::history::{History, Progress};
//! use argon::branch::rebuild::{self, Bucket};
//! use argon::branch::restore::{RestoreOptions, restore};
//! use argon::ledger::{ConnectOptions, SharedLedger, connect_client};
//! use argon::store::{self, StoreOptions};
//!
//! # async fn example() -> argon::fault::Result<()> {
//! let store = store::open("s3://my-bucket/argon", &StoreOptions::default()).await?;
//! let bucket = Bucket::open(store.clone(), Arc::default()).await?;
//! let (ledger, _remarks) = rebuild::memory(&bucket, &["shop/main"]).await?;
//! let ledger: SharedLedger = Arc::new(ledger);
//! let history = History::open(ledger, store, "shop/main").await?;
//!
//! let client = connect_client("mongodb://127.0.0.1:27017/?replicaSet=rs0", &ConnectOptions::default()).await?;
//! let options = RestoreOptions::new("2026-11-23T21:02:52Z".parse()?);
//! let report = restore(&history, &client.database("shop_copy"), &options, Arc::new(Progress::default())).await?;
//! println!("{} documents as of change {}", report.documents, report.seq);
//! # Ok(())
//! # }
//! ```
//!
//! And a history without any server, as the tests have it: ports have twins in memory.
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use argon::ledger::{Ledger, MemoryLedger};
//! use argon::store::{self, StoreOptions};
//!
//! let store = store::open("memory:", &StoreOptions::default()).await.unwrap();
//! let probe = store::probe(&*store, "example").await.unwrap();
//! assert!(probe.conditional_put);
//! assert!(MemoryLedger::new().branches().await.unwrap().is_empty());
//! # });
//! ```
//!
//! Faults ([`fault::Fault`]) say by their kind what a caller does about them.
//!
//! # Reading order
//!
//! [`engine`] is the wiring; then [`capture`], [`ledger`], [`queue`], [`pool`], [`jobs`], [`sync`], [`segment`] follow the flow, and [`branch`] is the way back.
//! [`change`] and [`segment`] are pure; [`store`] and [`ledger`] are ports with a memory twin and a faulty wrapper beside the real thing.

pub mod branch;
pub mod capture;
pub mod change;
pub mod cli;
pub mod config;
pub mod devkit;
pub mod engine;
pub mod fault;
pub mod http;
pub mod jobs;
pub mod ledger;
pub mod pool;
pub mod queue;
pub mod runtime;
pub mod segment;
pub mod store;
pub mod sync;
pub mod telemetry;
