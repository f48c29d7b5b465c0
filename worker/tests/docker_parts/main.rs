//! Parts of the Docker runtime against the engine of this machine.
//!
//! Each test has a fleet of its own on the engine, so that none meets another's objects; it removes them at its end,
//! also when it fails. The guard is this very program, asked for before the test harness exists; see [`GUARD`].
#![cfg(target_os = "linux")]

mod guard;
mod images;
mod instances;
#[path = "../support/proxy.rs"]
mod proxy;
mod refusals;
mod registries;
mod registry;
mod support;
mod sweep;

/// What every runtime does.
#[path = "../conformance"]
mod conformance {
    pub mod instances;
}

use std::ffi::{CStr, c_char, c_int};

use shoal_worker::container_guard_main;
use shoal_worker::runtime::docker::guard::CONTAINER_GUARD_ARGUMENT;

/// Becomes the guard before `main`, which belongs to the test harness and would start threads.
#[used]
#[unsafe(link_section = ".init_array")]
static GUARD: extern "C" fn(c_int, *const *const c_char) = {
    extern "C" fn become_guard(count: c_int, arguments: *const *const c_char) {
        if count < 2 {
            return;
        }
        // SAFETY: glibc hands the arguments of `main` to what stands in this section.
        let argument = unsafe { CStr::from_ptr(*arguments.add(1)) };
        if argument.to_bytes() == CONTAINER_GUARD_ARGUMENT.as_bytes() {
            container_guard_main();
            std::process::exit(0);
        }
    }
    become_guard
};
