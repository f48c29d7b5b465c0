//! The phases of one attempt. Pure.
//!
//! ```text
//! Preparing --Started--> Running --Ended--> Over     (Preparing may also end: it never started)
//!     +---------Stop--------+--> Stopping --Ended--^
//! ```

use schemas::record::TaskError;

/// Where an attempt is.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Folder, claim, start.
    Preparing,
    /// The workload runs.
    Running,
    /// It is being stopped, for the first reason that came.
    Stopping(Why),
    /// It is gone.
    Over(End),
}

/// What happens to an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The workload runs.
    Started,
    /// Somebody or something wants it gone.
    Stop(Why),
    /// It is gone, by itself or stopped.
    Ended(End),
}

/// Why an attempt is stopped.
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    /// It ran or kept silent too long.
    TimedOut(TaskError),
    /// Somebody cancelled the task.
    Cancelled,
    /// The worker is told to stop.
    Drained,
    /// The lease could not be renewed.
    LeaseLost,
    /// Another start of the same task is ahead.
    Superseded,
    /// It never ran here: something of this worker is missing.
    Unstarted(TaskError),
    /// It is gone with the engine that ran it.
    EngineLost(TaskError),
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// Well.
    Succeeded,
    /// Not well, by itself, or it never ran.
    Failed {
        /// Why.
        error: TaskError,
        /// Its exit code, if it came that far.
        exit_code: Option<i32>,
    },
    /// Stopped.
    Stopped(Why),
}

impl End {
    /// A failure without an exit code.
    pub fn failed(error: TaskError) -> Self {
        Self::Failed { error, exit_code: None }
    }
}

impl Phase {
    /// What follows.
    pub fn next(self, event: Event) -> Self {
        match (self, event) {
            (Self::Preparing, Event::Started) => Self::Running,
            (Self::Preparing | Self::Running, Event::Stop(why)) => Self::Stopping(why),
            (Self::Preparing | Self::Running, Event::Ended(end)) => Self::Over(end),
            // What was stopped ended because it was stopped, whatever it says itself.
            (Self::Stopping(why), Event::Ended(_)) => Self::Over(End::Stopped(why)),
            // A lost claim beats every gentler reason: nothing of this attempt may be applied any more.
            (Self::Stopping(_), Event::Stop(why @ (Why::LeaseLost | Why::Superseded))) => Self::Stopping(why),
            // Else late or repeated events change nothing; the first reason to stop wins.
            (now @ (Self::Running | Self::Stopping(_)), Event::Started)
            | (now @ Self::Stopping(_), Event::Stop(_))
            | (now @ Self::Over(_), _) => now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::Code;

    fn run(events: impl IntoIterator<Item = Event>) -> Phase {
        events.into_iter().fold(Phase::Preparing, Phase::next)
    }

    #[test]
    fn the_first_reason_to_stop_wins() {
        let timed_out = Why::TimedOut(TaskError::new(Code::TimedOut, ""));
        let end = run([
            Event::Started,
            Event::Stop(timed_out.clone()),
            Event::Stop(Why::Cancelled),
            Event::Ended(End::Succeeded),
        ]);
        assert_eq!(end, Phase::Over(End::Stopped(timed_out)));
    }

    #[test]
    fn a_lost_claim_beats_every_other_reason() {
        let end = run([
            Event::Started,
            Event::Stop(Why::Cancelled),
            Event::Stop(Why::LeaseLost),
            Event::Ended(End::Succeeded),
        ]);
        assert_eq!(end, Phase::Over(End::Stopped(Why::LeaseLost)));
    }

    #[test]
    fn an_end_by_itself_is_not_changed_by_a_late_stop() {
        let end = run([Event::Started, Event::Ended(End::Succeeded), Event::Stop(Why::Cancelled)]);
        assert_eq!(end, Phase::Over(End::Succeeded));
    }

    #[test]
    fn what_never_started_may_end() {
        let error = TaskError::new(Code::CommandNotFound, "no");
        assert_eq!(run([Event::Ended(End::failed(error.clone()))]), Phase::Over(End::failed(error)));
    }
}
