//! Many tasks by a filter: cancelled or submitted again, in pages, so that a million take no more memory than a page.

use std::collections::VecDeque;

use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use schemas::State;

use super::{CancelOptions, CancelOutcome, Client, ClientError, ListFilter, ListItem, Status, Submitted};

/// What became of one task that matched.
#[derive(Debug)]
pub struct Bulk<T> {
    /// The task as it was found.
    pub item: ListItem,
    /// What was done.
    pub result: Result<T, ClientError>,
}

impl<T> Bulk<T> {
    /// Whether it was left alone because it was no longer what had been found: over, gone, or begun anew.
    pub fn is_outrun(&self) -> bool {
        use ClientError::{Gone, NotFound, RunOver, Unfinished};
        matches!(self.result, Err(RunOver { .. } | Unfinished { .. } | Gone { .. } | NotFound { kind: "task", .. }))
    }
}

/// States of tasks that can be cancelled.
pub const CANCELLABLE: [Status; 3] =
    [Status::Queued, Status::Recorded(State::Running), Status::Recorded(State::Retrying)];
/// States of tasks that are submitted again where none is named: those that ended and were not meant to end like that.
pub const RETRYABLE: [Status; 3] =
    [Status::Recorded(State::Failed), Status::Recorded(State::Lost), Status::Recorded(State::Expired)];

/// Tasks in hand at once. A running one takes up to its stop grace to end.
const IN_FLIGHT: usize = 256;
/// Tasks asked for at a time.
const PAGE: usize = 1_000;

impl Client {
    /// Every task that matches and was there when it began, newest change first; `limit` does not count.
    pub fn matching(&self, filter: ListFilter) -> BoxStream<'static, Result<ListItem, ClientError>> {
        let walk = Walk {
            client: self.clone(),
            filter: ListFilter { limit: PAGE, ..filter },
            found: VecDeque::new(),
            over: false,
        };
        stream::try_unfold(walk, |mut walk| async move { Ok(walk.next().await?.map(|item| (item, walk))) })
            .into_stream()
            .boxed()
    }

    /// Cancels every task that matches and was there when it began, many at once, in no order. Only the run that was found
    /// is hit. An error of the whole is one of looking for more.
    pub fn cancel_all(
        &self,
        filter: ListFilter,
        reason: Option<String>,
    ) -> BoxStream<'static, Result<Bulk<CancelOutcome>, ClientError>> {
        let client = self.clone();
        let cancel = move |item: ListItem| {
            let (client, reason) = (client.clone(), reason.clone());
            async move {
                let options = CancelOptions { sequence: Some(item.sequence), reason };
                let result = client.cancel(&item.key, options).await;
                Ok(Bulk { item, result })
            }
        };
        self.matching(filter).map_ok(cancel).try_buffer_unordered(IN_FLIGHT).boxed()
    }

    /// Submits every finished task that matches and was there when it began again, as [`Client::retry`] does.
    pub fn retry_all(&self, filter: ListFilter) -> BoxStream<'static, Result<Bulk<Submitted>, ClientError>> {
        let client = self.clone();
        let retry = move |item: ListItem| {
            let client = client.clone();
            async move {
                let result = client.retry_run(&item.key, Some(item.sequence)).await;
                Ok(Bulk { item, result })
            }
        };
        self.matching(filter).map_ok(retry).try_buffer_unordered(IN_FLIGHT).boxed()
    }
}

/// A listing that goes on from page to page.
struct Walk {
    client: Client,
    filter: ListFilter,
    found: VecDeque<ListItem>,
    over: bool,
}

impl Walk {
    async fn next(&mut self) -> Result<Option<ListItem>, ClientError> {
        while self.found.is_empty() && !self.over {
            let page = self.client.list(&self.filter).await?;
            self.found = page.tasks.into();
            self.filter.cursor = page.next;
            self.over = page.next.is_none();
        }
        Ok(self.found.pop_front())
    }
}
