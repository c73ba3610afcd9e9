//! The claimer over the memory twin, with workers that the test plays.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;
use crate::jobs::SlotClass;
use crate::ledger::{EngineBeat, Finish, JobState, Ledger, MemoryLedger, NewJob, PauseNote, PauseTarget};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

struct Bed {
    ledger: Arc<MemoryLedger>,
    classes: Vec<Arc<Class>>,
    pauses: SharedPauses,
    work: Arc<Notify>,
    calm: Calm,
    room: Arc<Notify>,
    in_work: InWork,
    stop: Shutdown,
}

impl Bed {
    async fn new(workers: usize) -> Self {
        let classes = [(SlotClass::Sync, JobKind::Noop), (SlotClass::Compression, JobKind::Compression)]
            .map(|(class, kind)| Arc::new(Class::new(class, vec![kind], workers)));
        let bed = Self {
            ledger: Arc::new(MemoryLedger::new()),
            classes: classes.to_vec(),
            pauses: SharedPauses::default(),
            work: Arc::default(),
            calm: Calm::default(),
            room: Arc::default(),
            in_work: InWork::default(),
            stop: Shutdown::new(),
        };
        bed.beat("me").await;
        bed
    }

    async fn beat(&self, engine: &str) {
        let beat = EngineBeat { id: engine.into(), host: engine.into(), boot: "b".into(), pid: 1, beat_ms: 0, status: None };
        self.ledger.heartbeat(&beat, true).await.unwrap();
    }

    fn claimer(&self) -> Claimer {
        Claimer {
            ledger: self.ledger.clone(),
            engine: "me".into(),
            classes: self.classes.clone(),
            pauses: self.pauses.clone(),
            work: self.work.clone(),
            calm: self.calm.clone(),
            room: self.room.clone(),
            closed: Arc::default(),
            in_work: self.in_work.clone(),
            stop: self.stop.clone(),
            meters: Default::default(),
        }
    }

    fn start(&self) -> JoinHandle<()> {
        tokio::spawn(self.claimer().run())
    }

    async fn put(&self, kind: JobKind, count: usize) -> Vec<String> {
        let jobs: Vec<NewJob> = (0..count).map(|_| NewJob::new(random::ordered_id(), kind)).collect();
        self.ledger.enqueue(&jobs).await.unwrap();
        jobs.into_iter().map(|job| job.id).collect()
    }

    async fn state(&self, id: &str) -> (JobState, u32) {
        let job = self.ledger.job(id).await.unwrap().unwrap();
        (job.state, job.attempt)
    }

    /// As a worker and the finisher do, in no time.
    async fn finish(&self, claimed: Claimed) {
        let finish = Finish { lease: claimed.job.held().unwrap(), kind: claimed.job.kind };
        self.ledger.finish("me", &[finish]).await.unwrap();
        drop(claimed);
        self.room.notify_one();
    }
}

async fn within<T>(what: &str, of: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, of).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

#[tokio::test]
async fn rule_26_a_suspect_gets_its_turn_although_the_queue_is_never_empty() {
    let bed = Bed::new(2).await;
    let suspect = bed.put(JobKind::Noop, 1).await.remove(0);
    for n in 0..2 {
        let engine = format!("dies{n}");
        bed.beat(&engine).await;
        bed.ledger.claim(&ClaimRequest::new(&engine, &[JobKind::Noop], 1).start(1)).await.unwrap();
        bed.ledger.rescue("me", None, &[engine]).await.unwrap();
    }
    bed.put(JobKind::Noop, 2).await;
    // Something runs already, else the suspect would come first.
    let mut busy = Some(bed.in_work.enter(&crate::pool::testing::job("busy")));
    let claimer = bed.start();
    let (mut running, mut others) = (Vec::new(), 0);
    within("the suspect", async {
        loop {
            match tokio::time::timeout(Duration::from_millis(100), bed.classes[0].inbox.take(|| false)).await {
                Ok(claimed) => {
                    let claimed = claimed.unwrap();
                    if claimed.job.id == suspect {
                        assert!(running.is_empty(), "alone");
                        bed.finish(claimed).await;
                        return;
                    }
                    busy = None;
                    others += 1;
                    running.push(claimed);
                    bed.put(JobKind::Noop, 1).await; // never empty
                    bed.work.notify_one();
                    bed.ledger.advance(Duration::from_millis(500));
                    if running.len() > 1 {
                        bed.finish(running.remove(0)).await; // never idle
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Err(_) => {
                    for claimed in running.drain(..) {
                        bed.finish(claimed).await;
                    }
                }
            }
        }
    })
    .await;
    assert!(others >= 60 && busy.is_none(), "patience comes first: {others}");
    within("others after it", bed.classes[0].inbox.take(|| false)).await.unwrap();
    bed.stop.drain();
    within("the end", claimer).await.unwrap();
}

#[tokio::test]
async fn a_backlog_of_one_class_takes_no_place_from_another() {
    let bed = Bed::new(1).await;
    bed.put(JobKind::Noop, 1_000).await;
    let claimer = bed.start();
    let held = within("a noop job", bed.classes[0].inbox.take(|| false)).await.unwrap();
    bed.put(JobKind::Compression, 1).await;
    bed.work.notify_one();
    let other = within("the compression job", bed.classes[1].inbox.take(|| false)).await.unwrap();
    assert_eq!(other.job.kind, JobKind::Compression);
    assert!(bed.classes[0].inbox.len() <= 3, "one worker and a prefetch of two");
    drop((held, other));
    bed.stop.drain();
    within("the end", claimer).await.unwrap();
}

#[tokio::test]
async fn what_waits_is_given_back_at_once_when_the_engine_drains_and_no_attempt_counts() {
    let bed = Bed::new(1).await;
    let ids = bed.put(JobKind::Noop, 3).await;
    let claimer = bed.start();
    let running = within("the first", bed.classes[0].inbox.take(|| false)).await.unwrap();
    within("the others are claimed", async {
        while bed.classes[0].inbox.len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    bed.stop.drain();
    within("the end", claimer).await.unwrap();
    assert_eq!(bed.state(&running.job.id).await, (JobState::Running, 1), "what runs is finished");
    for id in ids.iter().filter(|id| **id != running.job.id) {
        assert_eq!(bed.state(id).await, (JobState::Ready, 0));
    }
    assert!(bed.classes[0].inbox.take(|| false).await.is_none(), "workers end");
}

#[tokio::test]
async fn what_is_paused_is_not_claimed_and_other_kinds_are() {
    let bed = Bed::new(1).await;
    bed.pauses.lock().0.insert(PauseTarget::Kind(JobKind::Noop), PauseNote { by: "me".into(), at_ms: 0 });
    bed.put(JobKind::Noop, 1).await;
    bed.put(JobKind::Compression, 1).await;
    let claimer = bed.start();
    drop(within("the other kind", bed.classes[1].inbox.take(|| false)).await.unwrap());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(bed.classes[0].inbox.len(), 0);
    bed.pauses.lock().0.clear();
    bed.work.notify_one();
    within("the pause is over", bed.classes[0].inbox.take(|| false)).await.unwrap();
    bed.stop.drain();
    within("the end", claimer).await.unwrap();
}

#[tokio::test]
async fn an_idle_engine_asks_for_one_job_of_any_class_and_then_for_all_that_there_is() {
    let bed = Bed { calm: Calm::idle(), ..Bed::new(2).await };
    let claimer = bed.claimer();
    let mut looks = vec![Look { at: clock::now(), more: false }; bed.classes.len()];
    let waiting = || bed.classes.iter().map(|class| class.inbox.len()).collect::<Vec<_>>();
    let none = claimer.step(&mut looks, &mut Suspects::default()).await;
    assert!(none > POLL && bed.calm.is_idle(), "the next look is later than that of an engine at work: {none:?}");
    bed.put(JobKind::Compression, 1).await;
    bed.put(JobKind::Noop, 2).await;
    looks.fill(Look { at: clock::now(), more: false });
    let again = claimer.step(&mut looks, &mut Suspects::default()).await;
    assert_eq!(waiting().iter().sum::<usize>(), 1, "one request for all classes");
    assert!(again.is_zero() && !bed.calm.is_idle(), "{again:?}");
    claimer.step(&mut looks, &mut Suspects::default()).await;
    assert_eq!(waiting(), [2, 1], "each class for itself");
}
