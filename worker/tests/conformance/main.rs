//! The laws of every runtime, written once against the trait and held by each with real processes and containers. What a
//! runtime does not claim among its capabilities it must refuse as `Unimplemented`; what it claims it must do.
//!
//! The guards are this very program, asked for before the test harness exists; see [`GUARD`].
#![cfg(target_os = "linux")]

mod bounds;
/// What every runtime that keeps instances does.
#[cfg(feature = "containerd")]
#[path = "."]
mod conformance {
    pub mod instances;
}
#[cfg(feature = "containerd")]
mod containerd;
mod control;
mod ends;
#[cfg(feature = "containerd")]
#[path = "../support/proxy.rs"]
#[allow(dead_code, reason = "shared with the tests of Docker, which use the rest")]
mod proxy;
mod starts;
#[cfg(feature = "containerd")]
mod tiny_registry;
#[cfg(feature = "containerd")]
mod traces;
mod world;

use std::ffi::{CStr, c_char, c_int};

use shoal_worker::runtime::container::guard::CONTAINER_GUARD_ARGUMENT;
use shoal_worker::runtime::process::GUARD_ARGUMENT;

/// Becomes a guard before `main`, which belongs to the test harness and would start threads.
#[used]
#[unsafe(link_section = ".init_array")]
static GUARD: extern "C" fn(c_int, *const *const c_char) = {
    extern "C" fn become_guard(count: c_int, arguments: *const *const c_char) {
        if count < 2 {
            return;
        }
        // SAFETY: glibc hands the arguments of `main` to what stands in this section.
        let argument = unsafe { CStr::from_ptr(*arguments.add(1)) }.to_bytes();
        if argument == CONTAINER_GUARD_ARGUMENT.as_bytes() {
            shoal_worker::container_guard_main();
            std::process::exit(0);
        }
        if argument == GUARD_ARGUMENT.as_bytes() {
            shoal_worker::guard_main();
            std::process::exit(0);
        }
    }
    become_guard
};

/// Each law as a test of each runtime.
macro_rules! conformance {
    ($($room:ident: $($law:ident),+;)+) => {
        mod process {
            $($(#[tokio::test] async fn $law() {
                let world = crate::world::World::process().await;
                crate::$room::$law(&world).await;
                world.close().await;
            })+)+
        }
        mod docker {
            $($(#[tokio::test] async fn $law() {
                let Some(world) = crate::world::World::docker().await else { return };
                crate::$room::$law(&world).await;
                world.close().await;
            })+)+
        }
        #[cfg(feature = "containerd")]
        mod on_containerd {
            $($(#[tokio::test] async fn $law() {
                let Some(world) = crate::world::World::containerd().await else { return };
                crate::$room::$law(&world).await;
                world.close().await;
            })+)+
        }
    };
}

conformance! {
    ends:
        output_and_exit_code_are_told_and_nothing_is_left,
        a_signal_that_ends_it_is_told,
        a_flood_is_held_back_and_comes_whole,
        what_it_is_fed_arrives_and_need_not_be_read,
        its_environment_arrives_as_it_is,
        its_result_is_collected,
        usage_is_told_while_it_runs_and_at_its_end,
        twenty_at_once_all_tell_their_own_end;
    bounds:
        memory_beyond_the_limit_is_told_as_such,
        a_bound_of_processes_that_is_run_into_is_told,
        a_bound_of_cpu_is_in_force,
        what_is_not_kept_alive_is_killed_and_told;
    control:
        a_stop_is_kind_first_and_firm_after_its_grace,
        a_stop_without_grace_kills_at_once,
        of_two_stops_the_shorter_grace_wins,
        what_is_paused_stands_still_and_goes_on,
        what_is_paused_still_ends_by_a_stop,
        what_is_gone_already_is_gone,
        every_status_is_a_word_of_ours;
    starts:
        a_program_that_is_not_there_is_told_as_such,
        a_file_that_is_no_program_is_told_as_such,
        a_start_that_is_given_up_is_gone_once_it_is_stopped,
        a_workload_of_another_kind_is_refused,
        a_start_id_is_used_once,
        a_closed_runtime_has_killed_everything_and_starts_nothing;
}
