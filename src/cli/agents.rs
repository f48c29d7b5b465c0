//! `shoal agents`: who is there, and how they are.

use clap::Subcommand;
use dispatcher::client::{AgentView, Client};
use schemas::agent::RuntimeInfo;
use schemas::cancel::CordonRequest;
use schemas::{AgentRecord, AgentStatus, HumanDuration, Timestamp};
use serde_json::json;

use super::{Error, Server};
use crate::exit::{self, Exit};
use crate::output::{self, Facts, Format, Table, ago};

/// `shoal agents …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Agents {
    /// List everyone in the registry
    List {
        /// Only those in this status: starting, ready, draining, offline
        #[arg(long, value_parser = status)]
        status: Option<AgentStatus>,
    },
    /// Show one agent
    Show {
        /// Its id, or a prefix that fits one
        id: String,
    },
    /// Ask a worker to take nothing new, finish or hand back, and leave
    Drain {
        /// Its id, or a prefix that fits one
        id: String,
        /// How long running attempts may take [default: the worker's own]
        #[arg(long, value_name = "DURATION")]
        grace: Option<HumanDuration>,
        /// Return once it is gone
        #[arg(long)]
        wait: bool,
    },
    /// Ask a worker to take nothing new but to stay; what it runs goes on
    Cordon {
        /// Its id, or a prefix that fits one
        id: String,
        /// By whom or why, for the registry
        #[arg(long)]
        reason: Option<String>,
    },
    /// Let a cordoned worker take tasks again
    Uncordon {
        /// Its id, or a prefix that fits one
        id: String,
    },
}

fn status(word: &str) -> Result<AgentStatus, String> {
    AgentStatus::ALL
        .into_iter()
        .find(|status| status.to_string() == word)
        .ok_or_else(|| "allowed is starting, ready, draining, offline".to_owned())
}

/// Runs one of them.
pub async fn run(args: Agents, on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    match args {
        Agents::List { status } => {
            let mut agents = client.agents().await?;
            agents.retain(|agent| status.is_none_or(|status| agent.status == status));
            match on.output() {
                Format::Json => output::json(&agents.into_iter().map(AgentRecord::from).collect::<Vec<_>>()),
                Format::Table => table(&agents).print(),
            }
        }
        Agents::Show { id } => {
            let agent = client.agent(&id).await?;
            match on.output() {
                Format::Json => output::json(&AgentRecord::from(agent)),
                Format::Table => facts(&agent).print(),
            }
        }
        Agents::Drain { id, grace, wait } => {
            let agent = client.agent(&id).await?.record.id;
            let reply = client.drain(&agent, grace).await?;
            if wait {
                client.wait_offline(&agent, None).await?;
            }
            match on.output() {
                Format::Json => output::json(&json!({"id": agent, "running": reply.running, "gone": wait})),
                Format::Table if wait => output::line(format_args!("{agent} is gone")),
                Format::Table => output::line(format_args!("{agent} drains, {} running", reply.running)),
            }
        }
        Agents::Cordon { id, reason } => cordon(&client, &id, CordonRequest { cordon: true, reason }, on).await?,
        Agents::Uncordon { id } => cordon(&client, &id, CordonRequest { cordon: false, reason: None }, on).await?,
    }
    Ok(exit::DONE)
}

async fn cordon(client: &Client, id: &str, request: CordonRequest, on: &Server<'_>) -> Result<(), Error> {
    let agent = client.agent(id).await?.record.id;
    let reply = client.cordon(&agent, &request).await?;
    match on.output() {
        Format::Json => output::json(&json!({"id": agent, "cordoned": reply.cordoned, "running": reply.running})),
        Format::Table if reply.cordoned => {
            output::line(format_args!("{agent} takes nothing new, {} running", reply.running));
        }
        Format::Table => output::line(format_args!("{agent} takes tasks again")),
    }
    Ok(())
}

fn table(agents: &[AgentView]) -> Table {
    let mut table = Table::new(&["ID", "STATUS", "HOST", "RUNNING", "SLOTS", "QUEUES", "RUNTIMES", "BEAT", "VERSION"]);
    for agent in agents {
        let record = &agent.record;
        table.row([
            record.id.to_string(),
            agent.status.to_string(),
            record.hostname.clone(),
            record.running_count.to_string(),
            record.slots.to_string(),
            record.queues.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            record.runtimes.iter().map(runtime).collect::<Vec<_>>().join(","),
            format!("{}s ago", agent.silent_for.as_secs()),
            record.version.clone(),
        ]);
    }
    table
}

/// A runtime in one word, and whether it is down.
fn runtime((name, info): (&String, &RuntimeInfo)) -> String {
    if info.reason.is_some() { format!("{name} (down)") } else { name.clone() }
}

fn facts(agent: &AgentView) -> Facts {
    let now = Timestamp::now();
    let record = &agent.record;
    let moment = |at: Timestamp| format!("{at} ({} ago)", ago(at, now));
    let mut facts = Facts::default();
    facts.add("agent", record.id.to_string());
    facts.add("status", agent.status.to_string());
    facts.add("reason", record.reason.clone().unwrap_or_default());
    facts.add("host", &record.hostname);
    facts.add("version", &record.version);
    facts.add("instance", &record.instance);
    facts.add("queues", record.queues.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
    facts.add("slots", format!("{} of {} in use", record.running_count, record.slots));
    for running in &record.running {
        facts.add("runs", running);
    }
    for (name, runtime) in &record.runtimes {
        let version = runtime.version.as_deref().unwrap_or_default();
        let down = runtime.reason.as_ref().map_or(String::new(), |why| format!("(down: {why})"));
        let words = [name, version, &runtime.capabilities.join(","), &down];
        facts.add("runtime", words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "));
    }
    for (name, value) in &record.labels {
        facts.add("label", format!("{name}={value}"));
    }
    if let Some(free) = &record.free {
        let mebi = |bytes: u64| bytes >> 20;
        let (memory, disk) = (mebi(free.memory_bytes), mebi(free.disk_bytes));
        facts.add("free", format!("{}m CPU, {memory} MiB memory, {disk} MiB disk", free.cpu_millis));
    }
    facts.add("registered", moment(record.registered_at));
    facts.add("last beat", moment(record.last_heartbeat));
    facts.add("last fetch", record.last_fetch.map(moment).unwrap_or_default());
    facts.add("last ack", record.last_ack.map(moment).unwrap_or_default());
    facts
}
