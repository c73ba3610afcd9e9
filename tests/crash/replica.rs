//! A set of three loses its primary, twice, with source and metadata on it.

use argon::devkit::{Mongod, MongodOptions};

use crate::load::{Load, Mix};
use crate::world::{LIMIT, World, drain};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stepdown_and_kill_of_the_primary() {
    let mongod = Mongod::start(MongodOptions::three()).await.unwrap();
    let world = World::on("replica", &mongod.uri()).await;
    world.start_capture().await;
    let mut engine = world.engine(&[]);
    let load = Load::start(&world.source(), Mix { seed: 4, ddl: true, tolerant: true }).await;
    world.progress(200).await;

    let first = mongod.wait_primary(LIMIT).await.unwrap();
    mongod.step_down(30).await.unwrap();
    let second = mongod.wait_primary(LIMIT).await.unwrap();
    assert_ne!(first, second);
    world.progress(200).await;

    mongod.kill(second);
    mongod.wait_primary(LIMIT).await.unwrap();
    world.progress(200).await;
    mongod.restart(second).await.unwrap();
    world.progress(200).await;

    let written = load.stop().await;
    let checked = world.check().await;
    assert!(checked.audit.changes >= written);
    assert_eq!(engine.exited(), None, "{}", engine.log_tail(3000));
    drain(&mut engine).await;
}
