//! Places where a test may kill the program: between two writes.

/// Ends the process here if `SHOAL_FAIL_POINT` names this place. Without the feature `fail-points` it is nothing.
pub(crate) fn fail_point(name: &str) {
    #[cfg(feature = "fail-points")]
    if std::env::var("SHOAL_FAIL_POINT").is_ok_and(|wanted| wanted == name) {
        std::process::abort();
    }
    #[cfg(not(feature = "fail-points"))]
    let _ = name;
}
