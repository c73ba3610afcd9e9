//! Several engines: wishes for all of them, leadership, and captures that spread over them.

use std::time::Duration;

use argon::engine::EngineEnd;
use argon::ledger::*;
use argon::runtime::random;

use crate::pool::fixed;
use crate::world::{CAPTURE, Mix, World};

#[test]
fn a_wish_for_all_engines_is_obeyed_by_all_and_by_who_comes_later() {
    let world = World::new();
    let one = world.spawn_with("one", Mix::default(), fixed(2), world.store.clone());
    let ledger = &world.ledger;
    world.runtime.block_on(ledger.set_scale(Some(4), None, "me")).unwrap();
    world.wait("the first obeys", || one.view.status().pool.target == 4);
    let two = world.spawn_with("two", Mix::default(), fixed(2), world.store.clone());
    world.wait("the second obeys", || two.view.status().pool.target == 4);
    // Who is asked itself knows better, until there is a new wish.
    two.view.scale(3, None).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!((one.view.status().pool.target, two.view.status().pool.target), (4, 3));
    world.runtime.block_on(ledger.set_scale(None, None, "me")).unwrap();
    world.wait("it is over", || one.view.status().pool.target == 2);
    assert_eq!(two.view.status().pool.pin.unwrap().target, 3, "that pin is its own");
    one.drain();
    two.drain();
}

#[test]
fn a_dead_leader_is_replaced() {
    let world = World::new();
    let one = world.spawn("one", Mix::default());
    world.wait("it leads", || one.view.facts().leads);
    let two = world.spawn("two", Mix::default());
    std::thread::sleep(Duration::from_secs(1));
    assert!(!two.view.facts().leads, "one is enough");
    one.kill();
    world.wait("the other leads", || two.view.facts().leads);
    // And does what a leader does.
    let later = NewJob { delay: Duration::from_millis(200), ..NewJob::new(random::ordered_id(), JobKind::Noop) };
    world.runtime.block_on(world.ledger.enqueue(std::slice::from_ref(&later))).unwrap();
    world.wait("what is due is promoted", || world.job(&later.id).state == JobState::Done);
    two.drain();
    assert_eq!(world.runtime.block_on(world.ledger.leader()).unwrap(), None, "it has stepped down");
}

#[test]
fn captures_spread_over_engines_and_a_stopped_one_hands_over() {
    let world = World::new();
    let (branch, capture) = (world.branch(), world.capture());
    for n in 2..=4 {
        let branch = Branch { id: format!("b{n}"), name: format!("test/more-{n}"), ..branch.clone() };
        let capture = Capture { id: format!("c{n}"), branch: branch.id.clone(), branch_name: branch.name.clone(), ..capture.clone() };
        world
            .runtime
            .block_on(world.ledger.create_capture(&NewCapture {
                base: argon::ledger::Base::empty(&argon::runtime::random::id(), &branch.id, Default::default(), String::new()),
                capture,
                branch,
            }))
            .unwrap();
    }
    let of = |engine: &str| {
        let all = world.runtime.block_on(world.ledger.captures()).unwrap();
        all.iter().filter(|capture| capture.owner.as_deref() == Some(engine)).count()
    };
    let one = world.spawn("one", Mix::default());
    world.wait("one follows all", || of("one") == 4);
    world.wait("it says so", || one.view.status().captures == 4);
    let two = world.spawn("two", Mix::default());
    world.wait("two follows its share", || (of("one"), of("two")) == (2, 2));
    let fence = world.capture().fence;
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!((of("one"), of("two")), (2, 2), "and then it rests");
    assert_eq!(world.capture().fence, fence);
    assert_eq!(one.drain(), EngineEnd::Drained);
    world.wait("two follows all", || of("two") == 4);
    world.insert(50);
    world.settle();
    assert!(world.runtime.block_on(world.ledger.capture(CAPTURE)).unwrap().is_some());
    two.drain();
}
