//! kill -9 of the engine at random moments.

use std::time::Duration;

use argon::devkit::Mode;
use argon::ledger::JobState;
use argon::runtime::{clock, random};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::load::{Load, Mix};
use crate::world::{World, drain, until};

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_kill_9_under_load() {
    let kills = number("ARGON_KILLS").unwrap_or(6);
    let seed = number("ARGON_SEED").unwrap_or_else(|| u64::from_str_radix(&random::id()[..8], 16).unwrap());
    println!("random_kill_9_under_load: ARGON_KILLS={kills} ARGON_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let start = clock::now();

    let mut world = World::new("kill").await;
    // A slower store and smaller batches: nearly always some job is between two of its steps.
    let proxy = world.proxied().await;
    proxy.set(Mode::Delay(Duration::from_millis(30)));
    let settings = [("WORKER_BATCH_SIZE", "20")];
    world.start_capture().await;
    let mut engines = vec![world.engine(&settings), world.engine(&settings)];
    let load = Load::start(&world.source(), Mix { seed, ddl: true, tolerant: false }).await;
    let (mut done, mut progressed, mut last, mut running) = (0, 0, 0, 0);
    while done < kills {
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..2_500))).await;
        let head = world.head().await.unwrap();
        progressed += u64::from(head > last);
        last = head;
        running += world.jobs(Some(JobState::Running)).await.len();
        // Sometimes both at once: nobody is left to take over.
        let first = rng.random_range(0..engines.len());
        let victims = if rng.random_bool(0.3) && done + 2 <= kills { vec![first, 1 - first] } else { vec![first] };
        for victim in &victims {
            assert_eq!(engines[*victim].exited(), None, "nothing else may end an engine: {}", engines[*victim].log_tail(3000));
            engines[*victim].kill9();
            done += 1;
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..300))).await;
        for victim in victims {
            engines[victim] = world.engine(&settings);
        }
    }
    let written = load.stop().await;
    let killing = start.elapsed();
    proxy.set(Mode::Pass);
    assert!(progressed * 3 >= kills, "history moved only between {progressed} of {kills} kills");

    // A job that was alone at three deaths is condemned (rule 26) although it is innocent here; an operator revives it.
    let condemned = revive(&world).await;
    let checked = world.check().await;
    for engine in &mut engines {
        drain(engine).await;
    }
    let crashes: Vec<u32> = world.jobs(None).await.into_iter().map(|j| j.crashes).filter(|n| *n > 0).collect();
    println!(
        "random_kill_9_under_load: {done} kills in {:.0} s, {} changes ({written} acknowledged to the load) in {} segments, {} orphans, {running} jobs running at the kills, {} hit (one {} times), {condemned} condemned, {:.0} s in all, seed {seed}",
        killing.as_secs_f64(),
        checked.audit.changes,
        checked.audit.segments,
        checked.audit.orphans,
        crashes.len(),
        crashes.iter().max().unwrap_or(&0),
        start.elapsed().as_secs_f64(),
    );
    assert!(checked.audit.changes >= written, "the server acknowledged {written} changes");
}

/// Waits until the queue holds nothing but dead jobs and retries those that a crash loop has condemned; anything else that is dead fails the test.
async fn revive(world: &World) -> usize {
    let dead = until("every job has ended", || async {
        let depth = world.ledger.depth().await.ok()?;
        (depth.scheduled + depth.ready + depth.running == 0).then_some(())?;
        Some(world.jobs(Some(JobState::Dead)).await)
    })
    .await;
    for job in &dead {
        assert!(job.errors.last().is_some_and(|e| e.error.contains("crash_loop")), "{job:?}");
        world.json(&["jobs", "retry", &job.id]).await;
    }
    dead.len()
}
