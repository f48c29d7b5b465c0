//! What holds a call that is a task, beyond what holds every task: its function.

use schemas::agent::CONTAINER_RUNTIMES;
use schemas::explain::{Reason, ReasonCode};
use schemas::{AgentStatus, FunctionName, Instance};

use super::{AgentView, Client, ClientError, Defined};

impl Client {
    /// Why a call of `name` could not be carried out now, if that is so.
    pub(super) async fn explain_function(
        &self,
        name: &FunctionName,
        agents: &[AgentView],
    ) -> Result<Option<Reason>, ClientError> {
        let caller = self.functions(None);
        let Some(defined) = caller.definition(name).await? else {
            return Ok(Some(Reason {
                code: ReasonCode::NoFunction,
                message: format!("it calls the function `{name}`, which is not defined"),
                next: format!("define it: shoal function apply {name} --image IMAGE"),
            }));
        };
        let instances: Vec<Instance> =
            caller.instances(Some(name)).await?.into_iter().map(|known| known.instance).collect();
        Ok(cold(&defined, &instances, agents))
    }
}

/// Why no instance takes calls. One that nobody has called yet is none the worse for having none. Pure.
fn cold(defined: &Defined, instances: &[Instance], agents: &[AgentView]) -> Option<Reason> {
    let Defined { name, function, .. } = defined;
    if instances.iter().any(Instance::takes_calls) {
        return None;
    }
    let pool = &function.pool;
    let makes = |agent: &&AgentView| {
        let keeps = |(name, info): (&String, &schemas::agent::RuntimeInfo)| {
            CONTAINER_RUNTIMES.contains(&name.as_str()) && info.reason.is_none()
        };
        agent.status != AgentStatus::Offline
            && agent.record.queues.contains(pool)
            && agent.record.runtimes.iter().any(keeps)
    };
    if !agents.iter().any(|agent| makes(&agent)) {
        return Some(Reason {
            code: ReasonCode::NoInstance,
            message: format!(
                "no instance of the function `{name}` takes calls, and no living worker of its pool `{pool}` runs containers"
            ),
            next: format!("start one: shoal worker --queues {pool} --runtimes call,{}", CONTAINER_RUNTIMES[0]),
        });
    }
    let failed = instances.iter().filter(|it| it.error.is_some()).max_by_key(|it| it.created_at)?;
    let error = failed.error.as_ref()?;
    let again = match failed.failures {
        0 | 1 => String::new(),
        many => format!(", {many} times in a row"),
    };
    Some(Reason {
        code: ReasonCode::NoInstance,
        message: format!(
            "no instance of the function `{name}` takes calls; the last start failed{again} with {}: {}",
            error.code, error.message
        ),
        next: format!("shoal instances {name}; shoal logs _functions.{name}"),
    })
}
