//! The disk budget.

use shoal_agents::workspace::{Settings, WorkspaceError};

use crate::support::{Origin, Worker, allowed, listing};

/// A megabyte that does not shrink.
fn large(origin: &Origin) {
    let mut bytes = vec![0_u8; 1 << 20];
    let mut state = 7_u64;
    for byte in &mut bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
    origin.write("large", bytes);
    origin.commit("large");
}

#[tokio::test]
async fn what_is_idle_longest_goes_first_and_running_jobs_stay() {
    let origins = [Origin::new(), Origin::new(), Origin::new()];
    origins.iter().for_each(large);
    // Room for two: each has a megabyte in its mirror and one in its tree.
    let settings = Settings { slots: 3, disk_bytes: 5 << 20, ..Settings::default() };
    let worker = Worker::with(settings, allowed()).await;
    for origin in &origins[..2] {
        worker.begin(&origin.remote()).await.0.release().await.unwrap();
    }
    assert_eq!(worker.troubles(), Vec::<String>::new());
    let (third, _) = worker.begin(&origins[2].remote()).await;
    let number = third.number();
    third.release().await.unwrap();
    let troubles = worker.troubles();
    assert!(troubles[0].contains("slots/0"), "the first one's slot, then its mirror: {troubles:?}");
    assert!(troubles.iter().all(|trouble| !trouble.contains("slots/1") && trouble.contains("removed")), "{troubles:?}");
    // The others are warm, and the first one is made anew.
    let (second, _) = worker.begin(&origins[1].remote()).await;
    assert_eq!(second.number(), 1);
    let (third, _) = worker.begin(&origins[2].remote()).await;
    assert_eq!(third.number(), number);
    second.release().await.unwrap();
    third.release().await.unwrap();
    let (first, _) = worker.begin(&origins[0].remote()).await;
    assert_eq!(listing(&first.tree()), ["README", "large", "src", "src/lib.txt"]);
}

#[tokio::test]
async fn one_job_may_pass_the_budget_but_no_second_begins_beside_it() {
    let (origin, other) = (Origin::new(), Origin::new());
    large(&origin);
    let worker = Worker::with(Settings { slots: 2, disk_bytes: 1 << 19, ..Settings::default() }, allowed()).await;
    let (slot, _) = worker.begin(&origin.remote()).await;
    let error = worker.try_begin(&other.remote()).await.err().unwrap();
    assert!(matches!(error, WorkspaceError::NoRoom { .. }) && error.retryable(), "{error:?}");
    assert_eq!(listing(&slot.tree()), ["README", "large", "src", "src/lib.txt"], "it is not touched");
    slot.release().await.unwrap();
    worker.begin(&other.remote()).await;
}
