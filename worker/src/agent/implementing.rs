//! Who implements, and what is around them.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use agents::implementer::acp::{AcpAgent, Permissions};
use agents::implementer::command::{CommandAgent, Template};
use agents::model::{Client, Limits, ModelImplementer};
use agents::playbook::{Author, Ended, Run as PlaybookRun};
use agents::workspace::Slot;
use agents::{Allowance, ImplementError, Implementer, Progress, Room};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemas::agent_job::{AgentProtocol, DEFAULT_TURNS, Implementer as Wish};
use schemas::condition::Facts;
use schemas::playbook::StepKind;
use schemas::transcript::{ChangeReport, JobPhase};
use schemas::{Code, HumanDuration, TaskError};

use super::attempt::{Attempt, Failed};
use super::keeper::WorkKeeper;
use super::plan::Plan;
use super::shell::{JobShell, Surroundings};
use crate::attempt::workload::bounds;
use crate::fail;

/// Who implements, checked before anything is begun.
pub(super) enum Implementing {
    Model(Option<Box<Client>>, bool),
    Command(Option<(Template, Option<Duration>)>),
    Acp(Option<(Template, Option<Duration>)>),
}

impl Implementing {
    pub(super) fn is_priced(&self) -> bool {
        matches!(self, Self::Model(_, true))
    }

    pub(super) fn build(
        &mut self,
        attempt: &Attempt<'_>,
        resume: Option<Progress>,
    ) -> Result<Box<dyn Implementer>, Failed> {
        let used = resume.as_ref().map(|progress| progress.used).unwrap_or_default();
        let gone = || TaskError::new(Code::Internal, "an implementer is built once");
        match self {
            Self::Model(client, _) => {
                let limits = Limits { retry: attempt.retry(), ..Limits::default() };
                Ok(Box::new(ModelImplementer::new(*client.take().ok_or_else(gone)?, limits, resume)))
            }
            Self::Command(template) => {
                let (template, timeout) = template.take().ok_or_else(gone)?;
                Ok(Box::new(CommandAgent::new(template, timeout, used)))
            }
            Self::Acp(template) => {
                let (template, timeout) = template.take().ok_or_else(gone)?;
                Ok(Box::new(AcpAgent::new(template, timeout, Permissions::default(), used)))
            }
        }
    }
}

impl Attempt<'_> {
    pub(super) fn open_shell(&self, slot: &Slot) -> Result<JobShell, Failed> {
        let settings = &self.worker.config.agents;
        let mut env = self.job.env.clone();
        for (variable, name) in &self.job.secrets {
            let secret = settings
                .secrets
                .get(name)
                .ok_or_else(|| TaskError::new(Code::PolicyForbidden, format!("this worker has no secret `{name}`")))?;
            env.insert(variable.clone(), secret.expose().to_owned());
        }
        let (kept, own) = (self.worker.leases.kept_until(), self.work.alive_until);
        let alive_until = move || own.map(|own| kept.borrow().map_or(own, |kept| kept.max(own)));
        let root = slot.tree().parent().map(Path::to_owned).unwrap_or_default();
        Ok(JobShell::new(Surroundings {
            runtime: self.runtime.clone(),
            wish: &self.job.runtime,
            key: self.work.key.clone(),
            attempt: self.work.number,
            slot: root,
            objects: slot.objects(),
            env,
            limits: bounds(&self.work.task, self.worker),
            alive_until: Box::new(alive_until),
            log: self.log.clone(),
            mask: self.mask.clone(),
        }))
    }

    pub(super) fn implementer_settings(&self) -> Result<Implementing, Failed> {
        let settings = &self.worker.config.agents;
        let invalid = |message: String| TaskError::new(Code::ContextInvalid, message);
        match &self.job.implementer {
            Wish::Model(wish) => {
                let name = wish.model.clone().or_else(|| settings.model.model.clone());
                let name = name.ok_or_else(|| {
                    invalid("neither the job nor the worker (its setting `model`) names a model".to_owned())
                })?;
                let prices = settings.model.prices.get(&name).copied();
                if self.job.budget.cost.is_some() && prices.is_none() {
                    let message = format!(
                        "the job has a budget of money, and this worker knows no price of the model `{name}` (`model-prices`)"
                    );
                    return Err(invalid(message));
                }
                let mut client = agents::model::Settings::new(settings.model.endpoint.clone(), None, name);
                client.key.clone_from(&settings.model.key);
                client.timeout = wish.timeout.map_or(client.timeout, |timeout| timeout.0);
                client.max_output_tokens = wish.max_output_tokens;
                client.temperature = wish.temperature;
                client.prices = prices;
                let client = Client::new(client).map_err(|error| invalid(error.to_string()))?;
                Ok(Implementing::Model(Some(Box::new(client)), prices.is_some()))
            }
            Wish::Command(wish) => {
                let template = Template::of(wish).map_err(|error| invalid(format!("implementer.command: {error}")))?;
                let timeout = wish.timeout.map(|timeout| timeout.0);
                match wish.protocol {
                    AgentProtocol::None => Ok(Implementing::Command(Some((template, timeout)))),
                    AgentProtocol::Acp => Ok(Implementing::Acp(Some((template, timeout)))),
                }
            }
        }
    }

    /// Adds the time since it was last counted, while somebody implements.
    pub(super) fn count_time(&self) {
        let mut known = self.known();
        if let Some(since) = known.working.replace(Instant::now()) {
            known.kept.worked_ms += u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
    }

    /// What may be used. Its time begins where the attempts before stood.
    pub(super) fn allowance(&self) -> Allowance {
        let budget = &self.job.budget;
        let worked = Duration::from_millis(self.known().kept.worked_ms);
        let until = budget.time.map(|time| (Instant::now() + time.0.saturating_sub(worked), time));
        Allowance {
            turns: budget.turns.unwrap_or(DEFAULT_TURNS),
            tokens: budget.tokens,
            cost_micros: budget.cost.map(|cost| cost.micros()),
            until: until.or_else(|| {
                let timeout = self.deadline().saturating_duration_since(self.began);
                Some((self.deadline(), HumanDuration(timeout)))
            }),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "what a playbook runs in, each used once")]
    pub(super) async fn implement(
        &self,
        slot: &Slot,
        shell: &JobShell,
        implementer: &mut dyn Implementer,
        plan: &Plan,
        branch: &str,
        told: &str,
        skip: bool,
    ) -> Ended {
        let keeper = WorkKeeper { attempt: self, slot, last: Mutex::default(), left_out: Mutex::default() };
        let room = Room {
            tree: &slot.tree(),
            shell,
            line: &self.ledger,
            mask: &self.mask,
            keeper: &keeper,
            allowance: self.allowance(),
        };
        let has_tests = plan.playbook.steps.iter().any(|step| step.kind == StepKind::Test);
        let mut author = Writer { attempt: self, slot, room: &room, implementer, told, skip, has_tests };
        let mut facts = Facts { attempt: u64::from(self.work.number), ..Facts::default() };
        let job = self.job;
        for (name, text) in [
            ("task.id", Some(self.work.key.id.to_string())),
            ("task.queue", Some(self.work.key.queue.to_string())),
            ("task.title", Some(job.title.clone())),
            ("task.spec", job.spec.clone()),
            ("task.skill", job.skill.clone()),
            ("task.repository", Some(job.repository.clone())),
            ("task.base", job.base.clone()),
            ("task.branch", Some(branch.to_owned())),
        ] {
            facts.task.extend(text.map(|text| (name.to_owned(), text)));
        }
        PlaybookRun {
            playbook: &plan.playbook,
            source: &plan.source,
            shell,
            tree: &slot.tree(),
            line: &self.ledger,
            mask: &self.mask,
            author: &mut author,
            deadline: tokio::time::Instant::from_std(self.deadline()),
            facts,
        }
        .run()
        .await
    }
}

/// The author of a playbook: the implementer, in its phase.
pub(super) struct Writer<'a> {
    pub(super) attempt: &'a Attempt<'a>,
    pub(super) slot: &'a Slot,
    pub(super) room: &'a Room<'a>,
    pub(super) implementer: &'a mut dyn Implementer,
    pub(super) told: &'a str,
    /// The work is there already, and is only tested again.
    pub(super) skip: bool,
    pub(super) has_tests: bool,
}

impl Author for Writer<'_> {
    fn work<'a>(&'a mut self, failed: Option<&'a str>) -> BoxFuture<'a, Result<(), ImplementError>> {
        async move {
            let ledger = &self.attempt.ledger;
            if !std::mem::take(&mut self.skip) || failed.is_some() {
                ledger.begin(JobPhase::Implement);
                let told = failed.unwrap_or(self.told);
                fail::point("agent_implement");
                self.attempt.known().working = Some(Instant::now());
                let worked = self.implementer.work(self.room, told).await;
                self.attempt.count_time();
                self.attempt.known().working = None;
                worked?;
            }
            if self.has_tests {
                ledger.begin(JobPhase::Test);
            }
            Ok(())
        }
        .boxed()
    }

    fn change(&mut self) -> BoxFuture<'_, Result<ChangeReport, TaskError>> {
        async move { Ok(self.attempt.change(self.slot).await?.report) }.boxed()
    }
}
