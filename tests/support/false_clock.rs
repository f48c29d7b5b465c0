//! A clock that lies to one program: libfaketime, which `scripts/setup tests` fetches.

use std::path::{Path, PathBuf};

use super::fleet::WorkerBuilder;

/// The library.
pub struct FalseClock {
    library: PathBuf,
}

impl FalseClock {
    /// If it is there; in CI it has to be.
    pub fn find() -> Option<Self> {
        let library = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/lib/libfaketime.so.1");
        if library.is_file() {
            return Some(Self { library });
        }
        let reason = "there is no .tools/lib/libfaketime.so.1; run scripts/setup tests";
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "in CI no test is skipped, but {reason}");
        eprintln!("SKIPPED: {reason}");
        None
    }

    /// Makes the program believe that it is `offset` later (`+1h`) or earlier (`-1h`); its waits are as long as ever.
    pub fn lie<'a>(&self, program: WorkerBuilder<'a>, offset: &str) -> WorkerBuilder<'a> {
        program
            .env("LD_PRELOAD", &self.library.display().to_string())
            .env("FAKETIME", offset)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }
}
