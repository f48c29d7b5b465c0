//! Functions: warm calls beside what they are made of, ensures warm and cold beside the bare engine.

use std::sync::Arc;

use schemas::{Bytes, Function};
use worker::runtime::docker::bare::Bare;

use super::super::BenchError;
use super::super::function::Called;
use super::super::sitting::{Case, Sitting};
use super::super::work::Work;

/// Calls that one instance takes at once.
const AT_ONCE: u32 = 64;
/// Calls a second of the long case.
const PACE: u32 = 1_000;

/// All of it on the image that the plan names.
pub async fn run(sitting: &mut Sitting<'_>) -> Result<(), BenchError> {
    let plan = sitting.plan;
    let Some(image) = &plan.function_image else {
        let what = "the suite `functions` needs an image that answers as the Lambda runtime interface emulator does: \
                    --function-image IMAGE";
        return Err(BenchError::broken(what.into()));
    };
    let host = plan.engine.docker_host.clone().map(|host| ("SHOAL_DOCKER_HOST", host));
    sitting.fleet.worker("docker", 16, &host.into_iter().collect::<Vec<_>>()).await?;
    let caller = sitting.fleet.client.functions(None);
    let function = Function { concurrency: AT_ONCE, response_limit: Bytes::mebi(10), ..Function::new(image) };
    let called = Arc::new(Called::warm(&caller, "shoal-bench", function).await?);
    let case = |name: String, jobs: usize, ours: Work, beside: Vec<Work>| Case {
        suite: "functions",
        name,
        jobs,
        ours,
        beside,
        memory: false,
    };
    for (at_once, jobs) in [(1, 2_000), (32, 20_000)] {
        let beside = vec![Work::Post(called.clone(), at_once), Work::RoundTrip(called.clone(), at_once)];
        let ours = Work::Invoke(called.clone(), at_once);
        let jobs = sitting.jobs(jobs);
        sitting.case(case(format!("warm call, {at_once} at once"), jobs, ours, beside)).await?;
    }
    let jobs = sitting.jobs(60 * PACE as usize);
    let steady =
        case(format!("warm calls, {PACE} a second"), jobs, Work::InvokePaced(called.clone(), PACE), Vec::new());
    sitting.case(Case { memory: true, ..steady }).await?;
    let beside = vec![Work::RoundTrip(called.clone(), 1)];
    let jobs = sitting.jobs(2_000);
    sitting.case(case("ensure, warm".into(), jobs, Work::Ensure(called.clone(), 1), beside)).await?;
    let engine_lost = |error| BenchError::fleet("could not measure containers", error);
    let bare = Arc::new(Bare::new(&plan.engine, image, "bridge").await.map_err(engine_lost)?);
    let beside = vec![Work::BareFunction(called.clone(), bare.clone())];
    let jobs = sitting.jobs(10);
    let measured = sitting.case(case("ensure, cold".into(), jobs, Work::EnsureCold(called.clone()), beside)).await;
    if let Some(bare) = Arc::into_inner(bare) {
        bare.end().await.map_err(engine_lost)?;
    }
    called.end().await?;
    measured.map(|_| ())
}
