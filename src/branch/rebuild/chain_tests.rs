//! The choice of the chain: every kind of orphan, and whatever commits and leftovers come in whatever order.

use proptest::prelude::*;

use super::*;

fn token(text: &str) -> TokenHash {
    let mut hash = [0; 16];
    hash[..text.len()].copy_from_slice(text.as_bytes());
    hash
}

/// `epoch first-last start>end`, a gap with `!` behind; `L1` in front for a merged one.
fn found(text: &str) -> Found {
    let (text, gap) = text.strip_suffix('!').map_or((text, false), |text| (text, true));
    let (text, level) = text.strip_prefix("L1 ").map_or((text, 0), |text| (text, 1));
    let mut words = text.split(' ');
    let epoch = words.next().unwrap().parse().unwrap();
    let (first, last) = words.next().unwrap().split_once('-').unwrap();
    let (start, end) = words.next().unwrap().split_once('>').unwrap();
    let (first, last) = (first.parse().unwrap(), last.parse().unwrap());
    let time = |seq: u64| ClusterTime { t: u32::try_from(seq).unwrap(), i: 1 };
    let hash = token(&text.replace(' ', "").chars().rev().take(16).collect::<String>());
    Found {
        name: SegmentName { level, epoch, first, last, hash },
        kind: if gap { SegmentKind::Gap } else { SegmentKind::Changes },
        first_time: time(first),
        last_time: time(last),
        last_wall_ms: None,
        starts_inside: false,
        ends: Ends::Closed,
        has_ddl: false,
        holes: 0,
        raw_bytes: 1,
        stored_bytes: 1,
        sha256: [0; 32],
        start: token(start),
        end: token(end),
    }
}

fn begins(starts_at: u64) -> Epoch {
    Epoch { starts_at, after: None }
}

const START: Start = Start { seq: 1, token: None };

#[test]
fn rule_20_what_chains_is_history_and_every_other_segment_has_a_reason() {
    use Reason::{BeforeEpoch, BeforeStart, Behind, Covered, Hidden, OtherToken};
    type Case<'a> = (&'a str, &'a [&'a str], &'a [(u64, u64)], &'a [usize], &'a [(usize, Reason)]);
    let cases: &[Case<'_>] = &[
        ("nothing", &[], &[], &[], &[]),
        ("in any order", &["1 4-6 b>c", "1 7-7 c>d", "1 1-3 a>b"], &[(1, 1)], &[2, 0, 1], &[]),
        ("a missing middle", &["1 1-3 a>b", "1 7-9 c>d"], &[], &[0], &[(1, Behind(3))]),
        ("a missing beginning", &["1 4-6 b>c"], &[], &[], &[(0, Behind(0))]),
        ("another token", &["1 1-3 a>b", "1 4-6 x>c"], &[], &[0], &[(1, OtherToken)]),
        ("two of a range, one goes on", &["1 1-3 a>b", "1 1-3 a>x", "1 4-6 b>c"], &[], &[0, 2], &[(1, Covered)]),
        ("two of a start, the longer goes on", &["1 1-3 a>b", "1 1-2 a>x", "1 4-4 b>c"], &[], &[0, 2], &[(1, Covered)]),
        ("two ways, one ends early", &["1 1-2 a>b", "1 1-4 a>y", "1 3-3 b>c"], &[], &[1], &[(0, Covered), (2, Covered)]),
        ("a gap counts", &["1 1-3 a>b", "1 4-4 b>c!", "1 5-6 c>d"], &[], &[0, 1, 2], &[]),
        ("a gap that was refused", &["1 1-3 a>b", "1 4-4 b>g!", "1 4-9 b>c"], &[], &[0, 2], &[(1, Covered)]),
        ("a gap and the changes it stands for", &["1 1-3 a>b!", "1 1-3 a>b", "1 4-4 b>c"], &[], &[1, 2], &[(0, Covered)]),
        ("a later epoch hides", &["1 1-3 a>b", "1 4-6 b>c", "2 4-5 b>d"], &[(1, 1), (2, 4)], &[0, 2], &[(1, Hidden(2))]),
        ("and what reaches over its start", &["1 1-3 a>b", "1 4-6 b>c"], &[(2, 5)], &[0], &[(1, Hidden(2))]),
        ("also where nothing of it is there", &["1 1-3 a>b", "1 4-6 b>c"], &[(1, 1), (2, 4)], &[0], &[(1, Hidden(2))]),
        ("not what is before it", &["1 1-3 a>b", "2 4-6 b>c"], &[(1, 1), (2, 4)], &[0, 1], &[]),
        ("two epochs that were never used", &["1 1-3 a>b", "4 4-6 b>c"], &[(2, 4), (3, 4), (4, 4)], &[0, 1], &[]),
        ("before its epoch", &["1 1-3 a>b", "2 2-6 b>c"], &[(2, 4)], &[0], &[(1, BeforeEpoch)]),
        ("epochs do not go back", &["2 1-3 a>b", "1 4-6 b>c"], &[], &[0], &[(1, OtherToken)]),
        ("of an epoch whose object is gone", &["1 1-3 a>b", "2 4-6 b>c"], &[(1, 1)], &[0, 1], &[]),
        ("seq 0 is nobody's", &["1 0-3 a>b"], &[], &[], &[(0, BeforeStart)]),
        (
            "merged ones count before those they were made of",
            &["1 1-3 a>b", "1 4-6 b>c", "L1 1 1-6 a>c"],
            &[],
            &[2],
            &[(0, Covered), (1, Covered)],
        ),
    ];
    for (what, segments, epochs, chain, orphans) in cases {
        let all: Vec<Found> = segments.iter().map(|text| found(text)).collect();
        let epochs: Epochs = epochs.iter().map(|(n, starts_at)| (*n, begins(*starts_at))).collect();
        let chosen = choose(&all, START, &epochs);
        assert_eq!(chosen, *chain, "{what}");
        let head = chosen.last().map_or(0, |i| all[*i].name.last);
        let others: Vec<(usize, Reason)> =
            (0..all.len()).filter(|i| !chosen.contains(i)).map(|i| (i, why_not(&all[i].name, START, head, &epochs))).collect();
        assert_eq!(others, *orphans, "{what}");
    }
}

#[test]
fn history_begins_at_the_token_of_its_base_where_that_is_known() {
    let all = [found("1 1-3 x>b"), found("1 1-2 a>c")];
    assert_eq!(choose(&all, Start { seq: 1, token: Some(token("a")) }, &Epochs::new()), [1]);
    assert_eq!(choose(&all, Start { seq: 1, token: Some(token("q")) }, &Epochs::new()), Vec::<usize>::new());
    assert_eq!(choose(&all, START, &Epochs::new()), [0]);
    // A child's history begins behind its fork.
    let child = [found("1 7-9 a>b"), found("1 1-3 a>b")];
    let start = Start { seq: 7, token: None };
    assert_eq!(choose(&child, start, &Epochs::new()), [0]);
    assert_eq!(why_not(&child[1].name, start, 9, &Epochs::new()), Reason::BeforeStart);
}

#[test]
fn a_damaged_segment_is_missed_only_where_history_could_go_on_with_it() {
    let epochs: Epochs = [(1, begins(1)), (2, begins(8))].into();
    let missed = |text: &str, head: u64| is_missed(&found(text).name, START, head, &epochs);
    assert!(missed("1 4-6 b>c", 3) && missed("2 8-9 b>c", 3));
    assert!(!missed("1 1-3 b>c", 3), "its changes are there");
    assert!(!missed("1 8-9 b>c", 3), "epoch 2 hides it");
    assert!(!missed("2 4-6 b>c", 3), "before its epoch");
}

#[test]
fn what_history_ended_with_when_an_epoch_was_taken_stays() {
    let all = [found("1 1-3 a>b"), found("1 4-4 b>g!"), found("1 4-4 b>c"), found("2 5-6 g>h")];
    let epochs = |after: Option<SegmentName>| Epochs::from([(2, Epoch { starts_at: 5, after })]);
    assert_eq!(choose(&all[..3], START, &epochs(None)), [0, 2], "changes before a gap");
    let taken = epochs(Some(all[1].name));
    assert_eq!(choose(&all[..3], START, &taken), [0, 1], "these came later");
    assert_eq!(why_not(&all[2].name, START, 4, &taken), Reason::Hidden(2));
    assert_eq!(choose(&all, START, &taken), [0, 1, 3]);
}

#[test]
fn the_end_of_numbers_is_no_panic() {
    let mut last = found("1 1-3 a>b");
    last.name.last = u64::MAX;
    assert_eq!(choose(&[last], START, &Epochs::new()), [0]);
}

/// What happens to a bucket: batches that are put, leftovers of every kind, metadata that is rebuilt.
#[derive(Debug, Clone)]
enum Step {
    Batch {
        changes: u64,
        gap: bool,
    },
    /// A gap that was put for the range and refused.
    RefusedGap,
    /// A batch of metadata that was fenced, with tokens of the very same history.
    Stale {
        changes: u64,
    },
    /// Something that starts elsewhere.
    Stray {
        changes: u64,
        ahead: u64,
    },
    Rebuild,
    /// A rebuild that was killed when it had its epoch.
    KilledRebuild,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..4u64, prop::bool::weighted(0.15)).prop_map(|(changes, gap)| Step::Batch { changes, gap }),
        1 => Just(Step::RefusedGap),
        2 => (1..5u64).prop_map(|changes| Step::Stale { changes }),
        2 => (1..4u64, 0..6u64).prop_map(|(changes, ahead)| Step::Stray { changes, ahead }),
        1 => Just(Step::Rebuild),
        1 => Just(Step::KilledRebuild),
    ]
}

/// The chain begins with what the metadata had. Of two gaps that were put for the same end of history nobody can tell which one was recorded.
fn begins_with(chain: &[Found], ledger: &[Found]) -> bool {
    let same = |(n, (a, b)): (usize, (&Found, &Found))| {
        let both_gaps =
            (a.kind, b.kind) == (SegmentKind::Gap, SegmentKind::Gap) && (a.name.first, a.name.last) == (b.name.first, b.name.last);
        a == b || (n + 1 == ledger.len() && both_gaps)
    };
    chain.len() >= ledger.len() && chain.iter().zip(ledger).enumerate().all(same)
}

/// Where numbering goes on behind a chain.
fn behind(chain: &[Found]) -> (u64, String) {
    let text = |end: TokenHash| String::from_utf8(end.into_iter().take_while(|byte| *byte != 0).collect()).unwrap();
    chain.last().map_or((1, "t0".to_owned()), |last| (last.name.last + 1, text(last.end)))
}

proptest! {
    #[test]
    fn rule_20_whatever_is_left_over_the_chain_is_what_the_metadata_had(steps in prop::collection::vec(step(), 0..40), seed: u64) {
        let (mut all, mut ledger): (Vec<Found>, Vec<Found>) = (Vec::new(), Vec::new());
        let start = Start { token: Some(token("t0")), ..START };
        let (mut epoch, mut taken, mut epochs) = (1u64, 1u64, Epochs::from([(1, begins(1))]));
        let (mut next, mut end, mut stale) = (1u64, "t0".to_owned(), Vec::<(u64, u64, String)>::new());
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Batch { changes, gap } => {
                    let last = next + changes - 1;
                    let made = found(&format!("{epoch} {next}-{last} {end}>t{n}{}", if gap { "!" } else { "" }));
                    all.push(made);
                    ledger.push(made);
                    (next, end) = (last + 1, format!("t{n}"));
                }
                Step::RefusedGap => all.push(Found { kind: SegmentKind::Gap, ..found(&format!("{epoch} {next}-{next} {end}>g{n}!")) }),
                Step::Stale { changes } => {
                    if let Some((epoch, at, token)) = stale.last_mut() {
                        // It goes on as if nothing had happened, from where the rebuild found it or from later on.
                        let last = *at + changes - 1;
                        all.push(found(&format!("{epoch} {at}-{last} {token}>s{n}")));
                        (*at, *token) = (last + 1, format!("s{n}"));
                    }
                }
                Step::Stray { changes, ahead } => {
                    let first = next + ahead;
                    all.push(found(&format!("{epoch} {first}-{} x{n}>y{n}", first + changes - 1)));
                }
                Step::Rebuild | Step::KilledRebuild => {
                    // What nothing goes on from is not told from a batch that was put and not committed: it counts.
                    let mut chain: Vec<Found> = choose(&all, start, &epochs).into_iter().map(|i| all[i]).collect();
                    prop_assert!(begins_with(&chain, &ledger));
                    stale.push((epoch, next, end.clone()));
                    if matches!(step, Step::KilledRebuild) {
                        // It had its epoch and nothing else; whoever rebuilds next finds the same.
                        taken += 1;
                        epochs.insert(taken, Epoch { starts_at: behind(&chain).0, after: chain.last().map(|last| last.name) });
                        let again: Vec<Found> = choose(&all, start, &epochs).into_iter().map(|i| all[i]).collect();
                        prop_assert!(again == chain);
                        chain = again;
                    }
                    taken += 1;
                    epoch = taken;
                    (next, end) = behind(&chain);
                    epochs.insert(epoch, Epoch { starts_at: next, after: chain.last().map(|last| last.name) });
                    ledger = chain;
                }
            }
        }
        use rand::SeedableRng;
        use rand::seq::SliceRandom;
        all.shuffle(&mut rand::rngs::SmallRng::seed_from_u64(seed));
        let chain: Vec<Found> = choose(&all, start, &epochs).into_iter().map(|i| all[i]).collect();
        prop_assert!(begins_with(&chain, &ledger));
        // More than that only what was put for the next seq and never refused.
        for extra in &chain[ledger.len()..] {
            prop_assert!(extra.kind == SegmentKind::Gap && extra.name.first == next);
        }
    }
}
