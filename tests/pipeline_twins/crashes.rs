//! Random runs: several engines, everything fails, engines are killed at any moment. A seed that ever failed stays in the list.

use std::time::Duration;

use argon::ledger::JobState;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::world::{Mix, Process, World, settings};

const SEEDS: [u64; 6] = [1, 2, 3, 4, 5, 6];

fn write(world: &World, rng: &mut SmallRng) {
    for _ in 0..rng.random_range(0..6) {
        match rng.random_range(0..10) {
            0..5 => world.insert(rng.random_range(1..60)),
            5..8 => world.transaction(rng.random_range(1..90)),
            8 => world.feed.tick(),
            _ => {
                world.feed.drop(None).unwrap();
            }
        }
    }
}

/// A job runs that would be dead if its process died now. These kills are nobody's fault, so they spare it.
fn a_suspect_runs(world: &World) -> bool {
    world.jobs(JobState::Running).iter().any(|j| j.crashes >= 2)
}

fn run(seed: u64, kills: usize) {
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let world = World::new();
    let (mut engines, mut started, mut killed) = (Vec::new(), 0, 0);
    let mut injected = 0;
    while killed < kills {
        write(&world, &mut rng);
        engines.retain(|e: &Process| !e.is_finished()); // a lease that could not be renewed in time
        if engines.len() < 1 + rng.random_range(0..3) {
            started += 1;
            let mut settings = settings();
            // A small queue now and then: capture waits for the workers.
            settings.queue_max_bytes = [1 << 20, 8 << 10][rng.random_range(0..2)];
            let mix = Mix::bad(seed * 1_000 + started, seed.is_multiple_of(2));
            engines.push(world.spawn_with(&format!("engine-{started}"), mix, settings, world.store.clone()));
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..1_200)));
        if rng.random_bool(0.5) && !engines.is_empty() && !a_suspect_runs(&world) {
            let one: Process = engines.swap_remove(rng.random_range(0..engines.len()));
            injected += one.ledger.injected() + one.feed.injected();
            one.kill();
            killed += 1;
        }
    }
    world.wait("no suspect runs", || !a_suspect_runs(&world));
    engines.into_iter().for_each(Process::kill);
    write(&world, &mut rng);
    assert!(injected > 0, "seed {seed} tested nothing");

    let last = world.spawn("last", Mix::default());
    // Kill, not drain: between the look for suspects and the kill one may have begun. Killed thrice, the last time alone, is dead by rule 26.
    world.wait("everything is committed or dead", || {
        world.branch().head.seq == world.feed.len() as u64 || !world.jobs(JobState::Dead).is_empty()
    });
    for dead in world.jobs(JobState::Dead) {
        assert!(dead.errors.last().unwrap().error.contains("crash_loop"), "seed {seed}: {dead:?}");
        println!("seed {seed}: an unlucky job is retried");
        assert!(world.runtime.block_on(argon::ledger::Ledger::retry_job(&*world.ledger, &dead.id)).unwrap());
    }
    world.settle();
    assert_eq!(last.drain(), argon::engine::EngineEnd::Drained);
    world.check();
    println!("seed {seed}: {} changes, {started} engines, {killed} killed, {injected} faults", world.feed.len());
}

#[test]
fn every_change_is_there_exactly_once_whatever_fails_and_whoever_is_killed() {
    std::thread::scope(|scope| {
        let runs: Vec<_> = SEEDS.map(|seed| (seed, scope.spawn(move || run(seed, 12)))).into_iter().collect();
        let failed: Vec<u64> = runs.into_iter().filter_map(|(seed, run)| run.join().is_err().then_some(seed)).collect();
        assert!(failed.is_empty(), "seeds {failed:?} failed");
    });
}
