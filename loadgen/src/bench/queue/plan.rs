//! Owns: what is measured: depths, numbers of workers, claimers and processes. Pure. Does not own how.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;

use crate::args::QueueBench;

/// Workers that the headline and the plain queue have.
pub(super) const WORKERS: usize = 8;
const ALL_WORKERS: [usize; 4] = [1, 4, WORKERS, 20];
const ALL_PROCESSES: [usize; 3] = [1, 2, 4];
/// Where the engines are compared with the plain queue, and all numbers of workers with each other, if it is among the depths.
const USUAL_DEPTH: u64 = 10_000;
/// What the deepest queue is compared with.
const SHALLOW: u64 = 1_000;

/// How an engine claims, which follows from how long its jobs take (`pool::window`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Claims {
    /// Jobs that take a while: one for each worker, and two that wait.
    Few,
    /// No-op jobs: a thousand at once.
    Many,
}

impl Claims {
    /// What a claim asks for.
    pub(super) fn asked(self, workers: usize) -> usize {
        let ahead = match self {
            Self::Few => 2,
            Self::Many => 1_000,
        };
        workers + ahead
    }

    /// Jobs that are ready whenever a claim is made: those of the depth; at none at all, those that have just come.
    pub(super) fn present(self, depth: u64, workers: usize) -> u64 {
        const JUST_COME: usize = 100;
        if depth > 0 { depth } else { self.asked(workers).min(JUST_COME) as u64 }
    }
}

/// The ledger alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct LedgerCell {
    pub depth: u64,
    pub workers: usize,
    pub claimers: usize,
    pub claims: Claims,
}

/// Whole engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct EngineCell {
    pub depth: u64,
    pub workers: usize,
    pub processes: usize,
    /// Measured so often, in turn with the plain queue at the same depth.
    pub rounds: u32,
    pub with_plain: bool,
}

/// Everything of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// Ascending: a queue is filled, never emptied.
    pub depths: Vec<u64>,
    pub others: u64,
    pub jobs: u64,
    pub cell: Duration,
    /// Where the headline is measured.
    pub usual: u64,
    /// The depths whose claims are compared, if there is anything to compare.
    pub compared: Option<(u64, u64)>,
    pub claims_compared: usize,
    pub stats_calls: usize,
    full: bool,
    quick: bool,
    rounds: u32,
}

impl Plan {
    pub(super) fn new(args: &QueueBench) -> Self {
        let standard: &[u64] = if args.quick { &[0, 50, 400] } else { &[0, SHALLOW, USUAL_DEPTH, 100_000, 1_000_000] };
        let given = if args.depths.is_empty() { standard } else { &args.depths };
        let depths: Vec<u64> = given.iter().copied().collect::<BTreeSet<u64>>().into_iter().collect();
        let deepest = depths.last().copied().unwrap_or_default();
        let below = depths.iter().copied().filter(|&d| d > 0 && d <= SHALLOW && d < deepest).max();
        let or = |given: Option<u64>, quick: u64, normal: u64| given.unwrap_or(if args.quick { quick } else { normal });
        Self {
            others: or(args.others, 100, 100_000),
            jobs: or(args.jobs, 1_500, 30_000),
            cell: args.cell.unwrap_or(Duration::from_millis(if args.quick { 50 } else { 2_000 })),
            usual: if depths.contains(&USUAL_DEPTH) { USUAL_DEPTH } else { depths.get(depths.len() / 2).copied().unwrap_or_default() },
            compared: below.map(|below| (below, deepest)),
            claims_compared: if args.quick { 5 } else { 200 },
            stats_calls: if args.quick { 3 } else { 50 },
            full: args.full,
            quick: args.quick,
            rounds: args.rounds.unwrap_or(if args.quick { 1 } else { 3 }),
            depths,
        }
    }

    /// Measurements of the ledger alone at a depth.
    pub(super) fn ledger(&self, depth: u64) -> Vec<LedgerCell> {
        let cell = |workers, claimers, claims| LedgerCell { depth, workers, claimers, claims };
        let both = |workers: usize, claimers: usize| [cell(workers, claimers, Claims::Few), cell(workers, claimers, Claims::Many)];
        if self.full {
            let all = ALL_PROCESSES.into_iter().flat_map(|n| ALL_WORKERS.into_iter().map(move |workers| (workers, n)));
            return all.flat_map(|(workers, n)| both(workers, n)).collect();
        }
        let mut cells = both(WORKERS, 1).to_vec();
        if depth == self.usual && !self.quick {
            cells.extend([1, 4, 20].map(|workers| cell(workers, 1, Claims::Few)));
        }
        if depth == self.usual {
            cells.extend(both(WORKERS, 2));
        }
        if depth == self.usual || Some(&depth) == self.depths.last() {
            cells.extend(both(WORKERS, 4));
        }
        cells
    }

    /// Measurements of whole engines at a depth.
    pub(super) fn engines(&self, depth: u64) -> Vec<EngineCell> {
        let headline = |(workers, processes)| depth == self.usual && (workers, processes) == (WORKERS, 1);
        let sizes: Vec<(usize, usize)> = if self.full {
            ALL_PROCESSES.into_iter().flat_map(|n| ALL_WORKERS.into_iter().map(move |workers| (workers, n))).collect()
        } else if self.quick {
            vec![(WORKERS, if depth == self.usual { 1 } else { 2 })]
        } else if depth == self.usual {
            vec![(1, 1), (4, 1), (WORKERS, 1), (20, 1), (WORKERS, 2), (WORKERS, 4)]
        } else if depth == 0 || Some(&depth) == self.depths.last() {
            vec![(WORKERS, 1)]
        } else {
            Vec::new()
        };
        let cell = |size: (usize, usize)| {
            let (workers, processes) = size;
            let rounds = if headline(size) { self.rounds } else { 1 };
            // At no depth the plain queue would have nothing to do; the figure beside it would not be about claims.
            let with_plain = depth > 0 && (headline(size) || (self.full && size == (WORKERS, 1)));
            EngineCell { depth, workers, processes, rounds, with_plain }
        };
        sizes.into_iter().map(cell).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Bench, Cli, Command};

    fn plan(args: &str) -> Plan {
        let cli = Cli::try_parse_from(format!("argon-loadgen bench queue {args}").split_whitespace()).unwrap();
        match cli.command {
            Command::Bench(Bench::Queue(args)) => Plan::new(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_depth_is_measured_and_the_headline_has_rounds() {
        for args in ["", "--quick", "--full", "--depths 1000,0,20000", "--depths 500"] {
            let plan = plan(args);
            assert!(plan.depths.is_sorted(), "{args}");
            let headlines = plan.depths.iter().flat_map(|d| plan.engines(*d)).filter(|c| c.with_plain && c.depth == plan.usual).count();
            assert_eq!(headlines, 1, "{args}");
            for depth in &plan.depths {
                let cells = plan.ledger(*depth);
                for claims in [Claims::Few, Claims::Many] {
                    assert!(cells.contains(&LedgerCell { depth: *depth, workers: WORKERS, claimers: 1, claims }), "{args} {depth}");
                }
            }
        }
    }

    #[test]
    fn the_whole_matrix_is_every_number_of_workers_and_processes_at_every_depth() {
        let plan = plan("--full");
        for depth in [0, 1_000, 10_000, 100_000, 1_000_000] {
            assert_eq!((plan.engines(depth).len(), plan.ledger(depth).len()), (12, 24), "{depth}");
        }
    }

    #[test]
    fn the_deepest_queue_is_compared_with_a_shallow_one() {
        for (args, compared) in [
            ("", Some((1_000, 1_000_000))),
            ("--quick", Some((50, 400))),
            ("--depths 0,100000", None),
            ("--depths 10,1000,5000", Some((1_000, 5_000))),
            ("--depths 1000", None),
        ] {
            assert_eq!(plan(args).compared, compared, "{args}");
        }
    }

    #[test]
    fn claims_ask_for_as_much_as_the_pool_would() {
        assert_eq!((Claims::Few.asked(8), Claims::Many.asked(8)), (10, 1_008));
        assert_eq!((Claims::Few.present(0, 8), Claims::Many.present(0, 8), Claims::Many.present(7, 8)), (10, 100, 7));
    }
}
