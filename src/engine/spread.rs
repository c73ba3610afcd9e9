//! Owns: which free captures this engine takes and when it gives one back, so that captures spread evenly over living engines. Pure: what was
//! seen and the time go in. Does not own: the taking (`ledger::own_capture`, whose fence makes a second owner impossible), who lives (`peers`).
//!
//! An engine below its share takes what is free at once. Beyond it, it takes only what nobody else has wanted for a while: another engine may
//! lack the credentials of a source, or have just died. When an engine joins, the fullest one gives a capture back at a time, since moving one
//! costs a new stream.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::ledger::{CaptureId, EngineId};

/// A free capture that nobody has taken for this long is taken beyond the share. Two looks of those who are below theirs, idle as they are.
const FREE_PATIENCE: Duration = Duration::from_secs(5);
/// An engine counts as one that captures can be given to after this time: a process that restarts in a loop gets none.
const SETTLED: Duration = Duration::from_secs(10);
/// One capture moves at a time, and the next only when the last has found its place.
const GIVE_EVERY: Duration = Duration::from_secs(5);
/// After a capture that was given back came back: the others do not want it, or cannot have it.
const IN_VAIN: Duration = Duration::from_secs(600);
/// Difference of load at which moving one makes it more even.
const UNEVEN: usize = 2;

/// One running capture as it is seen now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub id: CaptureId,
    pub owner: Option<EngineId>,
    /// It has a task in this engine, be it that it waits before the next attempt.
    pub here: bool,
}

/// What to do about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub take: Vec<CaptureId>,
    pub give: Option<CaptureId>,
}

/// What this engine remembers between looks.
#[derive(Debug)]
pub(super) struct Spread {
    me: EngineId,
    free_since: BTreeMap<CaptureId, Instant>,
    engine_since: BTreeMap<EngineId, Instant>,
    /// Given back here, and since when another engine has held it without a break. One that has held it for [`SETTLED`] can: it is forgotten here.
    given: BTreeMap<CaptureId, Option<Instant>>,
    may_give_at: Option<Instant>,
}

impl Spread {
    pub(super) fn new(me: EngineId) -> Self {
        Self { me, free_since: BTreeMap::new(), engine_since: BTreeMap::new(), given: BTreeMap::new(), may_give_at: None }
    }

    /// One look. `engines`: those that live and do not drain; this one is always among them. `captures`: all that should run.
    pub(super) fn look(&mut self, now: Instant, engines: &[EngineId], captures: &[Seen]) -> Plan {
        self.remember(now, engines, captures);
        let mut plan = Plan { take: self.takes(now, captures), give: None };
        if plan.take.is_empty() {
            plan.give = self.gives(now, captures);
        }
        if let Some(id) = &plan.give {
            self.given.insert(id.clone(), None);
            self.may_give_at = Some(now + GIVE_EVERY);
        }
        plan
    }

    fn remember(&mut self, now: Instant, engines: &[EngineId], captures: &[Seen]) {
        let free: BTreeSet<&CaptureId> = captures.iter().filter(|c| c.owner.is_none()).map(|c| &c.id).collect();
        self.free_since.retain(|id, _| free.contains(id));
        for id in free {
            self.free_since.entry(id.clone()).or_insert(now);
        }
        let known = self.engine_since.len();
        self.engine_since.retain(|id, _| engines.contains(id) || *id == self.me);
        let mut others = known != self.engine_since.len();
        for id in engines.iter().chain([&self.me]) {
            self.engine_since.entry(id.clone()).or_insert_with(|| {
                others = true;
                now
            });
        }
        if others {
            // What was in vain was so with those who were there then.
            self.given.clear();
            self.may_give_at = None;
        }
        let elsewhere = |id: &CaptureId| captures.iter().any(|c| c.id == *id && c.owner.as_ref().is_some_and(|o| *o != self.me));
        let gone = |id: &CaptureId| !captures.iter().any(|c| c.id == *id);
        self.given.retain(|id, held| {
            *held = elsewhere(id).then(|| held.unwrap_or(now));
            !gone(id) && held.is_none_or(|since| now.saturating_duration_since(since) < SETTLED)
        });
    }

    fn takes(&mut self, now: Instant, captures: &[Seen]) -> Vec<CaptureId> {
        let mine = captures.iter().filter(|c| c.here || self.is_mine(c)).count();
        let mut room = captures.len().div_ceil(self.engine_since.len()).saturating_sub(mine);
        let mut take = Vec::new();
        for c in captures.iter().filter(|c| !c.here) {
            if self.is_mine(c) {
                take.push(c.id.clone()); // the answer of a take, or of a release, was lost
                self.given.remove(&c.id);
                continue;
            }
            let Some(since) = self.free_since.get(&c.id) else { continue };
            let unwanted = now.saturating_duration_since(*since) >= FREE_PATIENCE;
            let given = self.given.contains_key(&c.id);
            if unwanted || (room > 0 && !given) {
                room = room.saturating_sub(1);
                take.push(c.id.clone());
                if given {
                    self.given.remove(&c.id);
                    self.may_give_at = Some(now + IN_VAIN);
                }
            }
        }
        take
    }

    /// Only when the last one has found its place and nothing is left of the dead, and only from the fullest engine, so that engines never move
    /// captures at cross purposes.
    fn gives(&self, now: Instant, captures: &[Seen]) -> Option<CaptureId> {
        let of_the_dead = captures.iter().any(|c| c.owner.as_ref().is_some_and(|o| !self.engine_since.contains_key(o)));
        let on_its_way = self.given.values().any(Option::is_none);
        if of_the_dead || on_its_way || self.may_give_at.is_some_and(|at| now < at) {
            return None;
        }
        let load = |engine: &EngineId| captures.iter().filter(|c| c.owner.as_ref() == Some(engine)).count();
        let settled = |since: &Instant| now.saturating_duration_since(*since) >= SETTLED;
        let others = || self.engine_since.iter().filter(|(id, _)| **id != self.me);
        let mine = load(&self.me);
        let least = others().filter(|(_, since)| settled(since)).map(|(id, _)| load(id)).min()?;
        let fullest = others().all(|(id, _)| (load(id), &self.me) < (mine, id));
        if mine < least + UNEVEN || !fullest {
            return None;
        }
        captures.iter().filter(|c| c.here && self.is_mine(c)).map(|c| c.id.clone()).max()
    }

    fn is_mine(&self, capture: &Seen) -> bool {
        capture.owner.as_ref() == Some(&self.me)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::runtime::clock;

    const LOOK: Duration = Duration::from_secs(1);

    fn seen(id: &str, owner: Option<&str>, here: bool) -> Seen {
        Seen { id: id.to_owned(), owner: owner.map(str::to_owned), here }
    }

    fn ids(of: &[&str]) -> Vec<String> {
        of.iter().map(|s| (*s).to_string()).collect()
    }

    #[test]
    fn below_the_share_what_is_free_is_taken_at_once_and_beyond_it_after_a_while() {
        let now = clock::now();
        let mut spread = Spread::new("a".into());
        let free = [seen("1", None, false), seen("2", None, false), seen("3", None, false)];
        assert_eq!(spread.look(now, &ids(&["a", "b"]), &free).take, ids(&["1", "2"]));
        let two = [seen("1", Some("a"), true), seen("2", Some("a"), true), seen("3", None, false)];
        assert_eq!(spread.look(now + LOOK, &ids(&["a", "b"]), &two).take, ids(&[]));
        assert_eq!(spread.look(now + FREE_PATIENCE, &ids(&["a", "b"]), &two).take, ids(&["3"]), "nobody wants it");
    }

    #[test]
    fn an_engine_that_died_or_drains_leaves_its_share_to_the_others() {
        let now = clock::now();
        let mut spread = Spread::new("a".into());
        let captures = [seen("1", Some("a"), true), seen("2", None, false)];
        assert_eq!(spread.look(now, &ids(&["a"]), &captures).take, ids(&["2"]));
    }

    #[test]
    fn what_is_ours_by_a_lost_answer_is_begun_whatever_the_share() {
        let mut spread = Spread::new("a".into());
        let captures = [seen("1", Some("a"), true), seen("2", Some("a"), false)];
        assert_eq!(spread.look(clock::now(), &ids(&["a", "b"]), &captures).take, ids(&["2"]));
    }

    #[test]
    fn one_at_a_time_is_given_to_an_engine_that_has_settled() {
        let start = clock::now();
        let mut spread = Spread::new("a".into());
        let engines = ids(&["a", "b"]);
        let all: Vec<Seen> = ["1", "2", "3", "4"].iter().map(|id| seen(id, Some("a"), true)).collect();
        assert_eq!(spread.look(start, &engines, &all), Plan::default());
        assert_eq!(spread.look(start + SETTLED / 2, &engines, &all), Plan::default());
        let then = start + SETTLED;
        assert_eq!(spread.look(then, &engines, &all).give, Some("4".into()));
        let moving: Vec<Seen> = all[..3].iter().cloned().chain([seen("4", None, false)]).collect();
        assert_eq!(spread.look(then + LOOK, &engines, &moving), Plan::default(), "it is for the other one");
        let moved: Vec<Seen> = all[..3].iter().cloned().chain([seen("4", Some("b"), false)]).collect();
        assert_eq!(spread.look(then + 2 * LOOK, &engines, &moved), Plan::default(), "not the next one yet");
        assert_eq!(spread.look(then + GIVE_EVERY, &engines, &moved).give, Some("3".into()));
    }

    #[test]
    fn what_was_given_in_vain_comes_back_and_stays() {
        let start = clock::now();
        let mut spread = Spread::new("a".into());
        let engines = ids(&["a", "b"]);
        let both = [seen("1", Some("a"), true), seen("2", Some("a"), true)];
        spread.look(start, &engines, &both);
        let then = start + SETTLED;
        assert_eq!(spread.look(then, &engines, &both).give, Some("2".into()));
        let free = [seen("1", Some("a"), true), seen("2", None, false)];
        assert_eq!(spread.look(then + LOOK, &engines, &free), Plan::default());
        assert_eq!(spread.look(then + LOOK + FREE_PATIENCE, &engines, &free).take, ids(&["2"]));
        assert_eq!(spread.look(then + 60 * LOOK, &engines, &both), Plan::default(), "the other one cannot have it");
        assert_eq!(spread.look(then + LOOK + FREE_PATIENCE + IN_VAIN, &engines, &both).give, Some("2".into()), "it is tried again");
    }

    #[test]
    fn what_another_engine_took_and_could_not_follow_was_given_in_vain() {
        let start = clock::now();
        let mut spread = Spread::new("a".into());
        let engines = ids(&["a", "b"]);
        let both = [seen("1", Some("a"), true), seen("2", Some("a"), true)];
        let free = [seen("1", Some("a"), true), seen("2", None, false)];
        let there = [seen("1", Some("a"), true), seen("2", Some("b"), false)];
        spread.look(start, &engines, &both);
        let then = start + SETTLED;
        assert_eq!(spread.look(then, &engines, &both).give, Some("2".into()));
        assert_eq!(spread.look(then + LOOK, &engines, &there), Plan::default());
        assert_eq!(spread.look(then + 8 * LOOK, &engines, &free), Plan::default(), "the source does not answer there");
        assert_eq!(spread.look(then + 8 * LOOK + FREE_PATIENCE, &engines, &free).take, ids(&["2"]));
        for seconds in 11..600 {
            assert_eq!(spread.look(then + seconds * LOOK, &engines, &both), Plan::default(), "not again and again: {seconds} s");
        }
        // One that held it for long has only lost it since.
        let later = then + 8 * LOOK + FREE_PATIENCE + IN_VAIN;
        assert_eq!(spread.look(later, &engines, &both).give, Some("2".into()));
        assert_eq!(spread.look(later + LOOK, &engines, &there), Plan::default());
        assert_eq!(spread.look(later + LOOK + SETTLED, &engines, &there), Plan::default());
        spread.look(later + 20 * LOOK, &engines, &free);
        assert_eq!(spread.look(later + 20 * LOOK + FREE_PATIENCE, &engines, &free).take, ids(&["2"]));
        assert_eq!(spread.look(later + 30 * LOOK, &engines, &both).give, Some("2".into()), "it could have it");
    }

    #[test]
    fn a_release_whose_outcome_was_lost_does_not_keep_others_from_moving() {
        let start = clock::now();
        let mut spread = Spread::new("a".into());
        let engines = ids(&["a", "b"]);
        let all: Vec<Seen> = ["1", "2", "3"].iter().map(|id| seen(id, Some("a"), true)).collect();
        spread.look(start, &engines, &all);
        let then = start + SETTLED;
        assert_eq!(spread.look(then, &engines, &all).give, Some("3".into()));
        let still: Vec<Seen> = all[..2].iter().cloned().chain([seen("3", Some("a"), false)]).collect();
        assert_eq!(spread.look(then + LOOK, &engines, &still).take, ids(&["3"]));
        assert_eq!(spread.look(then + GIVE_EVERY, &engines, &all).give, Some("3".into()), "it is given once more");
    }

    /// A metadata database and engines that look at it in turns; owners change only as the ledger allows.
    struct Sim {
        now: Instant,
        owners: BTreeMap<String, Option<String>>,
        engines: BTreeMap<String, Spread>,
        moves: usize,
    }

    impl Sim {
        fn new(captures: usize) -> Self {
            let owners = (0..captures).map(|n| (format!("c{n:02}"), None)).collect();
            Self { now: clock::now(), owners, engines: BTreeMap::new(), moves: 0 }
        }

        fn join(&mut self, n: usize) {
            let id = format!("e{n}");
            self.engines.entry(id.clone()).or_insert_with(|| Spread::new(id));
        }

        fn leave(&mut self, n: usize) {
            let id = format!("e{n}");
            if self.engines.len() > 1 && self.engines.remove(&id).is_some() {
                self.owners.values_mut().filter(|o| o.as_ref() == Some(&id)).for_each(|o| *o = None);
            }
        }

        fn second(&mut self) {
            self.now += LOOK;
            let living: Vec<String> = self.engines.keys().cloned().collect();
            for (id, spread) in &mut self.engines {
                let seen: Vec<Seen> = self
                    .owners
                    .iter()
                    .map(|(c, owner)| Seen { id: c.clone(), owner: owner.clone(), here: owner.as_ref() == Some(id) })
                    .collect();
                let plan = spread.look(self.now, &living, &seen);
                for c in plan.take {
                    let owner = self.owners.get_mut(&c).unwrap();
                    *owner = owner.take().or_else(|| Some(id.clone()));
                }
                if let Some(c) = plan.give {
                    self.owners.insert(c, None);
                    self.moves += 1;
                }
            }
        }

        fn loads(&self) -> Vec<usize> {
            self.engines.keys().map(|e| self.owners.values().filter(|o| o.as_ref() == Some(e)).count()).collect()
        }
    }

    proptest! {
        #[test]
        fn whoever_joins_and_leaves_the_spread_becomes_even_and_then_rests(
            captures in 0..12usize,
            events in prop::collection::vec((0..4usize, any::<bool>(), 0..20u32), 0..10),
        ) {
            let mut sim = Sim::new(captures);
            sim.join(0);
            for (engine, joins, seconds) in events {
                if joins { sim.join(engine) } else { sim.leave(engine) }
                (0..seconds).for_each(|_| sim.second());
            }
            (0..20 + 6 * captures).for_each(|_| sim.second());
            let loads = sim.loads();
            prop_assert_eq!(loads.iter().sum::<usize>(), captures, "all are owned: {:?}", loads);
            let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
            prop_assert!(most - least < UNEVEN, "{loads:?}");
            let before = sim.moves;
            (0..900).for_each(|_| sim.second());
            prop_assert_eq!(sim.moves, before, "nothing moves once it is even");
        }
    }
}
