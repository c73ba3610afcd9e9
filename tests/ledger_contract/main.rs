//! One suite for every ledger: the memory twin, the faulty wrapper without faults, and a real replica set. Rules by their number in the names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are tests

mod bench;
mod branches;
mod captures;
mod commits;
mod engines;
mod figures;
mod jobs;
mod operate;
mod queue;
mod rebuild;
mod server;
mod twins;

/// Runs each rule against each ledger.
macro_rules! contract {
    ($($part:ident :: $rule:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test] async fn $rule() { super::$part::$rule(super::bench::Bench::memory()).await; })*
        }
        mod faulty {
            $(#[tokio::test] async fn $rule() { super::$part::$rule(super::bench::Bench::faulty()).await; })*
        }
        mod mongo {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() { super::$part::$rule(super::bench::Bench::mongo().await).await; })*
        }
    };
}

contract![
    captures::a_capture_is_created_once_and_its_name_is_unique,
    captures::each_owner_gets_the_next_fence,
    captures::a_checkpoint_stores_job_payload_and_position_together,
    captures::an_idle_checkpoint_moves_only_the_token,
    captures::a_checkpoint_that_contradicts_itself_is_refused,
    captures::rule_9_a_checkpoint_whose_answer_was_lost_is_already_stored,
    captures::two_owners_of_one_capture_and_one_is_fenced,
    captures::a_stopped_capture_takes_no_checkpoint,
    captures::a_paused_capture_rests_where_it_is,
    captures::states_and_notes_reach_the_branch,
    captures::rules_1_and_2_a_branch_stays_as_inexact_as_its_worst_stretch,
    captures::only_the_owner_can_fail_a_capture,
    captures::a_source_may_be_reached_in_another_way,
    branches::a_fork_is_made_once_and_its_parent_stays,
    branches::rule_23_a_fork_and_the_deletion_of_its_parent_exclude_each_other,
    branches::names_move_and_are_free_after_a_deletion,
    branches::an_archive_stops_the_capture_and_can_be_taken_back,
    branches::what_is_due_is_found_and_a_deleted_branch_is_removed_whole,
    branches::rule_18_a_capture_is_attached_right_behind_the_fork,
    branches::a_gap_of_a_capture_moves_position_head_and_status_together,
    branches::a_job_that_gets_on_is_none_that_kills_its_process,
    branches::what_is_proven_only_rises,
    branches::stretches_of_a_base_are_stored_once_and_add_up,
    branches::a_base_that_is_given_up_stays_so,
    jobs::claims_come_in_order_with_lease_and_attempt,
    jobs::sixteen_claimers_claim_each_of_two_hundred_jobs_once,
    jobs::rule_26_a_suspect_is_claimed_only_alone,
    jobs::a_retry_waits_for_its_time_by_the_servers_clock,
    jobs::rule_27_job_times_are_the_servers,
    jobs::a_job_given_back_has_not_used_its_attempt,
    jobs::a_stale_lease_ends_nothing_and_a_lost_answer_is_told_again,
    jobs::the_error_history_keeps_the_newest,
    jobs::a_dead_sync_job_stalls_its_branch_until_it_is_retried,
    jobs::two_operators_revive_the_last_two_dead_jobs_and_the_branch_is_active,
    jobs::rule_25_a_discarded_job_leaves_a_gap_with_its_bounds,
    jobs::rule_25_a_job_that_ends_inside_a_transaction_can_be_discarded,
    jobs::finished_jobs_are_swept_and_dead_ones_never,
    jobs::jobs_are_counted_and_listed,
    commits::a_commit_does_everything_at_once,
    commits::commits_out_of_order_move_the_head_over_the_prefix_only,
    commits::rule_23_commits_side_by_side_lose_no_update,
    commits::a_commit_whose_answer_was_lost_is_already_done,
    commits::one_fenced_commit_does_not_stop_the_others,
    commits::a_key_that_is_taken_is_fenced,
    commits::a_commit_outside_its_jobs_range_is_refused,
    commits::a_commit_that_can_never_be_does_not_stop_the_others,
    commits::a_stale_lease_is_fenced_after_a_rescue,
    commits::segments_are_read_from_a_seq_on,
    engines::only_the_first_heartbeat_creates_the_document,
    engines::the_silent_are_rescued_and_the_living_are_not,
    engines::the_known_dead_are_rescued_at_once,
    engines::rule_26_only_a_death_alone_condemns,
    engines::rule_26_only_jobs_that_had_started_have_crashed,
    engines::a_mark_of_a_stale_lease_is_refused,
    engines::an_engine_never_judges_itself_and_silence_only_when_asked,
    engines::a_suspect_that_has_waited_is_noticed,
    engines::what_an_engine_without_a_document_holds_is_freed,
    queue::what_is_enqueued_is_stored_once,
    queue::rule_27_times_of_enqueued_jobs_are_the_servers,
    queue::what_cannot_be_a_job_is_refused_and_nothing_is_stored,
    queue::the_higher_priority_is_claimed_first,
    queue::a_unique_key_is_held_while_its_job_waits_or_runs,
    queue::sixteen_calls_at_once_store_one_job_of_a_key,
    queue::a_claim_marks_as_started_what_goes_to_a_free_worker,
    queue::jobs_are_finished_together_and_counted_once,
    queue::a_finish_that_cannot_be_is_refused,
    queue::a_paused_kind_is_left_out_of_claims,
    queue::jobs_of_a_paused_branch_are_parked_and_come_back,
    queue::a_job_is_cancelled_where_it_is,
    queue::rule_25_a_sync_job_is_not_cancelled_like_others,
    queue::whatever_ends_a_job_that_was_to_stop_cancels_it,
    queue::a_stuck_job_is_found_and_its_worker_fenced,
    operate::jobs_are_found_by_state_engine_and_error,
    operate::many_jobs_are_retried_by_filter,
    operate::a_taken_key_hinders_one_job_and_not_the_others,
    operate::rule_25_a_filter_cancels_sync_jobs_only_if_it_names_them,
    operate::a_bulk_action_works_through_more_than_one_chunk,
    figures::the_queue_is_counted_by_state_and_kind,
    figures::no_end_of_a_process_loses_or_doubles_a_count,
    figures::a_crash_loop_is_counted_as_dead,
    figures::counts_are_exact_when_many_count_at_once,
    figures::one_engine_leads_until_its_lease_ends,
    figures::wishes_reach_every_engine,
    figures::a_heartbeat_tells_what_its_process_does,
    rebuild::rows_are_imported_once_and_as_they_are,
    rebuild::a_branch_is_imported_whole_and_once,
    rebuild::an_imported_branch_says_what_is_wrong_with_it,
    rebuild::an_imported_capture_goes_on_at_its_position,
    rebuild::many_rows_are_read_back_page_by_page,
];
