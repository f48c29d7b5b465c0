//! Files that are made from the code: compared, or written again where `SHOAL_BLESS` is set.

use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is a folder of the workspace").to_owned()
}

/// Fails if the file does not hold `made`; with `SHOAL_BLESS` set, writes it instead.
pub fn check(path: &Path, made: &str) {
    if std::env::var_os("SHOAL_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("a file is in a folder")).unwrap();
        std::fs::write(path, made).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        kept == made,
        "{} is not what the code makes; refresh it with `SHOAL_BLESS=1 cargo test -p shoal-schemas`",
        path.display()
    );
}
