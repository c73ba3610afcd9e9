//! The memory twin is faithful: the same random calls against it and against a real server give the same answers and leave the same rows.

use std::time::Duration;

use argon::ledger::*;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::bench::{Bench, beat, commit, lease, new_capture, segment};

const HOUR: Duration = Duration::from_secs(3_600);
const ENGINES: [&str; 3] = ["e0", "e1", "e2"];

#[derive(Debug, Clone)]
enum Call {
    Put {
        line: usize,
        changes: u64,
    },
    Claim {
        engine: usize,
        limit: usize,
        alone: bool,
    },
    /// Commit of the leases with these numbers (of all ever given).
    Commit {
        line: usize,
        leases: Vec<usize>,
    },
    Fail {
        lease: usize,
        how: Failed,
    },
    Start {
        lease: usize,
    },
    Suspects,
    Die {
        engine: usize,
    },
    Promote,
    Retry {
        job: usize,
    },
    Discard {
        job: usize,
    },
    State {
        line: usize,
        state: CaptureState,
    },
    Own {
        line: usize,
        engine: usize,
    },
    Sweep,
    Enqueue {
        kind: JobKind,
        keyed: bool,
        branch: Option<usize>,
        delay: Duration,
    },
    ClaimAll {
        engine: usize,
        limit: usize,
        start: usize,
    },
    Finish {
        engine: usize,
        leases: Vec<usize>,
    },
    Cancel {
        job: usize,
    },
    Bulk {
        action: Bulk,
        filter: JobFilter,
        dry_run: bool,
    },
    Pause {
        what: PauseTarget,
        paused: bool,
    },
    Lead {
        engine: usize,
    },
    Retire {
        engine: usize,
    },
}

fn draw(rng: &mut SmallRng) -> Call {
    let delay = *[Duration::ZERO, HOUR].choose(rng).unwrap();
    let (line, engine, n) = (rng.random_range(0..2), rng.random_range(0..3), rng.random_range(0..40));
    match rng.random_range(0..54) {
        0..7 => Call::Put { line, changes: rng.random_range(1..4) },
        7..12 => Call::Claim { engine, limit: rng.random_range(1..5), alone: rng.random_bool(0.4) },
        12..16 => Call::Commit { line, leases: (0..rng.random_range(1..4)).map(|i| n + i).collect() },
        16 => Call::Fail { lease: n, how: Failed::Retry { delay, error: "r".to_owned() } },
        17 => Call::Fail { lease: n, how: Failed::GiveBack { delay, error: Some("g".to_owned()) } },
        18 => Call::Fail { lease: n, how: Failed::Dead { error: "d".to_owned() } },
        19 | 20 => Call::Die { engine },
        21 => Call::Promote,
        22 => Call::Retry { job: n },
        23 => Call::Discard { job: n },
        24 => Call::State { line, state: *[CaptureState::Running, CaptureState::Stopped, CaptureState::Failed].choose(rng).unwrap() },
        25 if rng.random_bool(0.5) => Call::Own { line, engine },
        26..31 => Call::Start { lease: n },
        31 => Call::Suspects,
        32..37 => Call::Enqueue {
            kind: *[JobKind::Noop, JobKind::Cleanup].choose(rng).unwrap(),
            keyed: rng.random_bool(0.3),
            branch: rng.random_bool(0.3).then_some(line),
            delay,
        },
        37..42 => Call::ClaimAll { engine, limit: rng.random_range(1..6), start: rng.random_range(0..4) },
        42..45 => Call::Finish { engine, leases: (0..rng.random_range(1..6)).map(|i| n + i).collect() },
        45 | 46 => Call::Cancel { job: n },
        47 => Call::Fail { lease: n, how: Failed::Cancelled },
        48 => Call::Bulk {
            action: *[Bulk::Retry, Bulk::Cancel].choose(rng).unwrap(),
            filter: JobFilter {
                state: *[None, Some(JobState::Dead), Some(JobState::Scheduled), Some(JobState::Running)].choose(rng).unwrap(),
                kind: *[None, Some(JobKind::Noop), Some(JobKind::Sync)].choose(rng).unwrap(),
                error: rng.random_bool(0.3).then(|| "DIE".to_owned()),
                ..JobFilter::default()
            },
            dry_run: rng.random_bool(0.3),
        },
        49..52 => Call::Pause {
            what: [PauseTarget::Kind(JobKind::Noop), PauseTarget::Branch(format!("b{line}"))].choose(rng).unwrap().clone(),
            paused: rng.random_bool(0.4),
        },
        52 => Call::Lead { engine },
        53 if rng.random_bool(0.3) => Call::Retire { engine },
        _ => Call::Sweep,
    }
}

/// One of the two, with what it has given out.
struct Twin {
    bench: Bench,
    next_seq: [u64; 2],
    given: Vec<Job>,
    jobs: Vec<Job>,
}

impl Twin {
    async fn new(bench: Bench) -> Self {
        for (n, engine) in ENGINES.iter().enumerate().take(2) {
            bench.ledger.create_capture(&new_capture(&format!("c{n}"), &format!("b{n}"), &format!("shop/b{n}"))).await.unwrap();
            bench.beat(engine).await;
            bench.ledger.own_capture(&format!("c{n}"), engine).await.unwrap();
        }
        Self { bench, next_seq: [1; 2], given: Vec::new(), jobs: Vec::new() }
    }

    /// The answer as text, without what is random or a time.
    async fn call(&mut self, call: &Call, ids: &[String; 2]) -> String {
        let ledger = self.bench.ledger.clone();
        match call {
            Call::Put { line, changes } => {
                let fence = ledger.capture(&format!("c{line}")).await.unwrap().unwrap().fence;
                let (capture, branch) = (format!("c{line}"), format!("b{line}"));
                let at = crate::bench::Line { ledger: ledger.clone(), capture, branch, fence, next_seq: self.next_seq[*line] };
                let mut write = at.checkpoint(*changes);
                let batch = write.batch.as_mut().unwrap();
                (batch.job, batch.spec.batch) = (ids[0].clone(), ids[1].clone());
                let outcome = ledger.checkpoint(&write).await.unwrap();
                if outcome == Checkpointed::Stored {
                    self.next_seq[*line] += changes;
                    self.jobs.push(self.bench.job(&ids[0]).await);
                }
                format!("{outcome:?}")
            }
            Call::Claim { engine, limit, alone } => {
                self.bench.beat(ENGINES[*engine]).await;
                let got = self.bench.claim_with(&ClaimRequest::new(ENGINES[*engine], &[JobKind::Sync], *limit).alone(*alone)).await;
                self.given.extend(got.clone());
                format!("{:?}", got.iter().map(bare).collect::<Vec<_>>())
            }
            Call::Commit { line, leases } => {
                let mut jobs: Vec<&Job> =
                    leases.iter().filter_map(|n| self.given.get(*n)).filter(|j| j.branch == format!("b{line}")).collect();
                jobs.retain(|j| j.kind == JobKind::Sync);
                jobs.dedup_by_key(|j| j.id.clone());
                let commits: Vec<_> = jobs.iter().map(|j| commit(j)).collect();
                outcome(ledger.commit(&commits).await)
            }
            Call::Fail { lease: n, how } => match self.given.get(*n) {
                Some(job) => outcome(ledger.fail(&lease(job), how).await),
                None => String::new(),
            },
            Call::Start { lease: n } => match self.given.get(*n) {
                Some(job) => {
                    let started = outcome(ledger.start(&lease(job)).await);
                    self.bench.settle().await;
                    started
                }
                None => String::new(),
            },
            Call::Suspects => outcome(ledger.suspect_waits(&[JobKind::Sync], Duration::ZERO).await),
            Call::Die { engine } => {
                outcome(ledger.rescue("rescuer", crate::bench::silent_for(&*ledger, HOUR).await, &[ENGINES[*engine].to_owned()]).await)
            }
            Call::Promote => outcome(ledger.promote().await),
            Call::Retry { job } => match self.jobs.get(*job) {
                Some(job) => outcome(ledger.retry_job(&job.id).await),
                None => String::new(),
            },
            Call::Discard { job } => match self.jobs.get(*job).filter(|job| job.kind == JobKind::Sync) {
                Some(job) => outcome(ledger.discard_job(&job.id, &segment(job, SegmentKind::Gap)).await),
                None => String::new(),
            },
            Call::State { line, state } => outcome(ledger.set_capture_state(&format!("c{line}"), *state, Some("why")).await),
            Call::Own { line, engine } => {
                ledger.heartbeat(&beat(ENGINES[*engine]), true).await.unwrap();
                let owned = ledger.own_capture(&format!("c{line}"), ENGINES[*engine]).await.unwrap();
                format!("{:?}", owned.map(|c| (c.fence, c.owner)))
            }
            Call::Enqueue { kind, keyed, branch, delay } => {
                let new = NewJob {
                    branch: branch.map(|line| format!("b{line}")),
                    delay: *delay,
                    unique_key: keyed.then(|| "key".to_owned()),
                    ..NewJob::new(ids[0].clone(), *kind)
                };
                let outcomes = ledger.enqueue(&[new]).await.unwrap();
                if outcomes == [Enqueued::Stored] {
                    self.jobs.push(self.bench.job(&ids[0]).await);
                }
                format!("{outcomes:?}")
            }
            Call::ClaimAll { engine, limit, start } => {
                self.bench.beat(ENGINES[*engine]).await;
                let request = ClaimRequest::new(ENGINES[*engine], &JobKind::ALL, *limit).start(*start);
                let got = self.bench.claim_with(&request.pauses(ledger.pauses().await.unwrap())).await;
                self.given.extend(got.clone());
                format!("{:?}", got.iter().map(bare).collect::<Vec<_>>())
            }
            Call::Finish { engine, leases } => {
                let mut jobs: Vec<&Job> = Vec::new();
                for job in leases.iter().filter_map(|n| self.given.get(*n)).filter(|j| j.kind != JobKind::Sync) {
                    if !jobs.iter().any(|other| other.id == job.id) {
                        jobs.push(job);
                    }
                }
                let ends: Vec<_> = jobs.iter().map(|job| Finish { lease: lease(job), kind: job.kind }).collect();
                outcome(ledger.finish(ENGINES[*engine], &ends).await)
            }
            Call::Cancel { job } => match self.jobs.get(*job) {
                Some(job) => outcome(ledger.cancel_job(&job.id).await),
                None => String::new(),
            },
            Call::Bulk { action, filter, dry_run } => outcome(ledger.bulk(*action, filter, 1_000, *dry_run).await.map(|mut done| {
                done.sample.sort();
                done.discard.sort();
                done
            })),
            Call::Pause { what, paused } => outcome(ledger.set_pause(what, *paused, "me").await),
            Call::Lead { engine } => {
                let led = ledger.lead(ENGINES[*engine], HOUR).await.unwrap();
                format!("{led} {:?}", ledger.leader().await.unwrap())
            }
            Call::Retire { engine } => outcome(ledger.retire(ENGINES[*engine]).await),
            Call::Sweep => outcome(ledger.sweep_jobs(Duration::ZERO, 1_000).await),
        }
    }

    /// Everything that is stored, without what is random or a time.
    async fn rows(&self) -> Vec<String> {
        let ledger = &self.bench.ledger;
        let mut rows = Vec::new();
        for job in ledger.jobs(&JobFilter::default(), 1_000).await.unwrap() {
            let payload = ledger.payload(&job.id).await.map(|p| p.len()).map_err(|f| f.kind);
            rows.push(format!("{} {payload:?}", bare(&job)));
        }
        rows.extend(ledger.captures().await.unwrap().into_iter().map(|c| format!("{:?}", Capture { checkpoint_ms: 0, ..c })));
        for branch in ledger.branches().await.unwrap() {
            rows.extend(
                ledger
                    .segments(&branch.id, 0, 1_000)
                    .await
                    .unwrap()
                    .into_iter()
                    .map(|s| format!("{:?}", SegmentRow { committed_ms: 0, ..s })),
            );
            rows.push(format!("{:?}", Branch { created_ms: 0, ..branch }));
        }
        rows.extend(ledger.engines().await.unwrap().into_iter().map(|e| e.id));
        rows.push(format!("{:?}", ledger.depth().await.unwrap()));
        let stats = ledger.queue_stats().await.unwrap();
        rows.push(format!("{:?}", QueueStats { oldest_ready: stats.oldest_ready.keys().map(|k| (*k, Duration::ZERO)).collect(), ..stats }));
        rows.push(format!("{:?} {:?}", ledger.pauses().await.unwrap().0.keys().collect::<Vec<_>>(), ledger.leader().await.unwrap()));
        for engine in ENGINES {
            rows.push(format!(
                "{:?}",
                ledger.cancel_requests(engine).await.map(|mut ids| {
                    ids.sort();
                    ids
                })
            ));
        }
        rows
    }
}

fn outcome<T: std::fmt::Debug>(result: argon::fault::Result<T>) -> String {
    match result {
        Ok(answer) => format!("{answer:?}"),
        Err(fault) => format!("{:?}", fault.kind),
    }
}

fn bare(job: &Job) -> String {
    let mut job = job.clone();
    (job.run_at_ms, job.sched_key, job.created_ms) = (0, 0, 0);
    job.finished_ms = job.finished_ms.map(|_| 0);
    job.errors.iter_mut().for_each(|e| e.at_ms = 0);
    if let Some(lease) = &mut job.lease {
        (lease.token, lease.claimed_ms) = (String::new(), 0);
        lease.started_ms = lease.started_ms.map(|_| 0);
    }
    format!("{job:?}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_calls_give_the_same_answers_from_both() {
    for seed in 4..8 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut memory = Twin::new(Bench::memory()).await;
        let mut mongo = Twin::new(Bench::mongo().await).await;
        let mut said = Vec::new();
        for step in 0..160 {
            let call = draw(&mut rng);
            // Ids sort by creation, as those of real jobs do.
            let ids = [format!("job-{seed}-{step:04}"), format!("batch-{seed}-{step}")];
            let (a, b) = (memory.call(&call, &ids).await, mongo.call(&call, &ids).await);
            assert_eq!(a, b, "seed {seed}, step {step}: {call:?} after {said:#?}");
            said.push(format!("{call:?} -> {a}"));
            for twin in [&memory, &mongo] {
                twin.bench.pass(Duration::from_millis(2)).await; // no two calls in one millisecond
            }
        }
        let (a, b) = (memory.rows().await, mongo.rows().await);
        for (a, b) in a.iter().zip(&b) {
            assert_eq!(a, b, "seed {seed} after {said:#?}");
        }
        assert_eq!(a.len(), b.len(), "seed {seed}");
    }
}
