//! F, G, H and C': when all is over, the registry tells the truth and nothing is left.

use super::runs::Runs;
use super::violation::Violation;

/// All of it.
pub fn check(runs: &Runs) -> Vec<Violation> {
    let rest = &runs.history.rest;
    let mut found = Vec::new();
    for worker in &rest.workers {
        let status = rest.registry.get(worker).map_or("nothing of it", |(status, _)| status.as_str());
        if status != "ready" {
            found.push(Violation::NotReady { worker: worker.clone(), status: status.to_owned() });
        }
    }
    for (worker, (status, running)) in &rest.registry {
        let lives = rest.workers.contains(worker);
        if !lives && status != "offline" {
            found.push(Violation::NotOffline { worker: worker.clone(), status: status.clone() });
        }
        // What is said of one that was killed is what it last said itself: an offline mark leaves that alone.
        if lives && *running > 0 {
            found.push(Violation::StillRunning { worker: worker.clone(), count: *running });
        }
    }
    found.extend(rest.messages.iter().map(|key| Violation::MessageLeft { key: key.clone() }));
    found.extend(rest.containers.iter().map(|name| Violation::ContainerLeft { name: name.clone() }));
    found.extend(rest.processes.iter().map(|pid| Violation::ProcessLeft { pid: *pid }));
    found.extend(rest.folders.iter().map(|path| Violation::FolderLeft { path: path.clone() }));
    found
}
