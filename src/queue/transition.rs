//! Owns: the one table of job states. Does not own: when an event happens.

use crate::ledger::JobState;

/// What can happen to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobEvent {
    /// Its `run_at` has come.
    Due,
    /// A process took it.
    Claimed,
    /// Its work was committed.
    Committed,
    /// The attempt ended without success; again after a delay.
    Postponed,
    /// Given back, or its process died; again at once.
    Returned,
    /// Never again without an operator.
    Doomed,
    /// An operator wants it to run now.
    Revived,
    /// An operator wants it gone, and it does not run.
    Discarded,
    /// An operator wants it gone, and its attempt has ended for that reason, or without success.
    Stopped,
    /// Its branch is paused: it waits until that ends.
    Parked,
}

impl JobEvent {
    /// All events, for tables and tests.
    pub const ALL: [Self; 10] = [
        Self::Due,
        Self::Claimed,
        Self::Committed,
        Self::Postponed,
        Self::Returned,
        Self::Doomed,
        Self::Revived,
        Self::Discarded,
        Self::Stopped,
        Self::Parked,
    ];
}

/// The state after an event, or `None` where the event is not allowed.
pub fn transition(from: JobState, event: JobEvent) -> Option<JobState> {
    use JobEvent as E;
    use JobState as S;
    Some(match (from, event) {
        (S::Scheduled, E::Due) => S::Ready,
        (S::Ready, E::Claimed) => S::Running,
        (S::Running, E::Committed) => S::Done,
        (S::Running, E::Postponed) => S::Scheduled,
        (S::Running, E::Returned) => S::Ready,
        (S::Running, E::Doomed) => S::Dead,
        (S::Scheduled | S::Dead, E::Revived) => S::Ready,
        // Never a running one: its owner may be about to commit.
        (S::Scheduled | S::Ready | S::Dead, E::Discarded) => S::Cancelled,
        // By whoever holds its lease, or takes it away.
        (S::Running, E::Stopped) => S::Cancelled,
        (S::Ready, E::Parked) => S::Scheduled,
        _ => return None,
    })
}

/// The states in which an event is allowed: what a guarded update asks for.
pub fn states_before(event: JobEvent) -> Vec<JobState> {
    JobState::ALL.into_iter().filter(|s| transition(*s, event).is_some()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_exactly_this() {
        use JobState as S;
        // Columns in the order of JobEvent::ALL.
        let (ready, cancelled) = (Some(S::Ready), Some(S::Cancelled));
        let rows: [(S, [Option<S>; 10]); 6] = [
            (S::Scheduled, [ready, None, None, None, None, None, ready, cancelled, None, None]),
            (S::Ready, [None, Some(S::Running), None, None, None, None, None, cancelled, None, Some(S::Scheduled)]),
            (S::Running, [None, None, Some(S::Done), Some(S::Scheduled), ready, Some(S::Dead), None, None, cancelled, None]),
            (S::Done, [None; 10]),
            (S::Dead, [None, None, None, None, None, None, ready, cancelled, None, None]),
            (S::Cancelled, [None; 10]),
        ];
        for (from, expected) in rows {
            for (event, to) in JobEvent::ALL.into_iter().zip(expected) {
                assert_eq!(transition(from, event), to, "{from:?} on {event:?}");
            }
        }
    }

    #[test]
    fn done_and_cancelled_are_final_and_everything_else_can_reach_an_end() {
        for state in JobState::ALL {
            let mut reached = vec![state];
            let mut next = 0;
            while let Some(s) = reached.get(next).copied() {
                next += 1;
                for to in JobEvent::ALL.into_iter().filter_map(|e| transition(s, e)) {
                    if !reached.contains(&to) {
                        reached.push(to);
                    }
                }
            }
            assert!(reached.iter().any(|s| matches!(s, JobState::Done | JobState::Cancelled)), "{state:?} is stuck");
        }
        for state in [JobState::Done, JobState::Cancelled] {
            assert!(JobEvent::ALL.into_iter().all(|e| transition(state, e).is_none()), "{state:?} moved");
        }
    }

    #[test]
    fn guards_are_the_columns_of_the_table() {
        assert_eq!(states_before(JobEvent::Claimed), [JobState::Ready]);
        assert_eq!(states_before(JobEvent::Revived), [JobState::Scheduled, JobState::Dead]);
        assert_eq!(states_before(JobEvent::Discarded), [JobState::Scheduled, JobState::Ready, JobState::Dead]);
    }
}
