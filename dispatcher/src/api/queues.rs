//! Queues: what waits, what is out.

use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use schemas::http::QueueInfo;

use super::Api;
use super::openapi::Operation;
use super::problem::Failure;

pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation::new(&Method::GET, "/api/queues", "listQueues", "What waits and runs by queue", list_over_http)
            .answer::<Vec<QueueInfo>>(StatusCode::OK, "Every queue that has workers, settings or tasks, by name."),
    ]
}

/// Every queue.
pub async fn list(api: &Api) -> Result<Vec<QueueInfo>, Failure> {
    Ok(api.client.queues().await?.into_iter().map(QueueInfo::from).collect())
}

async fn list_over_http(State(api): State<Api>) -> Result<Json<Vec<QueueInfo>>, Failure> {
    list(&api).await.map(Json)
}
