//! Shoal: a worker fleet on NATS JetStream. One binary is the worker, the dispatcher and the client.
//!
//! Arguments -> telemetry -> run -> exit code. stdout is data, stderr is talk.

mod bench;
mod cli;
mod config;
mod exit;
mod nats_server;
mod output;
mod resident;
mod stop;
mod telemetry;
mod up;

use std::process::ExitCode;

/// Tasks are read on one thread and freed on another; glibc's allocator spends a fifth of a worker's time on that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The runtimes start this program once more as the guards of what they run: before anything else is set up.
    match std::env::args_os().nth(1) {
        Some(first) if first == "__guard" => {
            resident::keep_pages_small(false);
            return worker::guard_main();
        }
        Some(first) if first == "__container_guard" => return worker::container_guard_main(),
        _ => {}
    }
    // Both TLS users of this program (NATS now, HTTP later) take the process's default.
    rustls::crypto::ring::default_provider().install_default().expect("nothing installed one before");

    if std::env::args_os().nth(1).is_some_and(|first| first == bench::part::WORD) {
        return bench::part::main(std::env::args_os().nth(2));
    }

    let invocation = match config::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(refusal) => return refusal.print(),
    };
    telemetry::start(&invocation.cli);
    if matches!(invocation.cli.command, cli::Command::Worker(_) | cli::Command::Dispatcher(_)) {
        resident::keep_pages_small(true);
    }
    let runtime = if invocation.cli.command.needs_threads() {
        tokio::runtime::Builder::new_multi_thread().enable_all().build()
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    };
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            output::talk(format_args!("error: cannot start: {error}"));
            return exit::FAILED.into();
        }
    };
    let ended = runtime.block_on(cli::run(invocation));
    // A read of stdin that nobody waits for any more must not hold the exit.
    runtime.shutdown_background();
    match ended {
        Ok(code) => code.into(),
        Err(error) => {
            output::talk(format_args!("{}", output::chain(&error)));
            error.exit().into()
        }
    }
}
