//! Figures, by hand: `cargo nextest run -p shoal-agents --test workspaces --run-ignored only measure --no-capture`.

use std::time::Instant;

use crate::support::{Origin, Worker, change, write};

#[tokio::test]
#[ignore = "writes 2 GB; for figures alone"]
async fn measure_a_slot_of_500_mb() {
    let origin = Origin::new();
    let mut state = 7_u64;
    for number in 0..5_000 {
        let mut bytes = Vec::with_capacity(100_000);
        while bytes.len() < 100_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        origin.write(&format!("d{}/e{}/f{number}", number % 20, number % 100), &bytes);
    }
    origin.commit("large");
    let worker = Worker::new().await;
    for round in ["cold", "warm", "warm", "warm, base moved"] {
        if round.ends_with("moved") {
            origin.write("d1/e1/f1", "changed\n");
            origin.commit("moved");
        }
        let began = Instant::now();
        let mut slot = worker.all.take(&origin.remote()).await.unwrap();
        let taken = began.elapsed();
        let fetched = slot.fetch(&crate::support::want()).await.unwrap();
        let brought = began.elapsed();
        slot.stand(&fetched.base, crate::support::BRANCH, "main").await.unwrap();
        let stood = began.elapsed();
        write(&slot.tree(), "d1/e1/f1", "mine\n");
        write(&slot.tree(), "target/x/y", "built\n");
        let began = Instant::now();
        change(&slot).await;
        let read = began.elapsed();
        let began = Instant::now();
        slot.release().await.unwrap();
        println!(
            "{round}: take {taken:?}, fetch {brought:?}, stand {stood:?}; change {read:?}; release {:?}",
            began.elapsed()
        );
    }
}
