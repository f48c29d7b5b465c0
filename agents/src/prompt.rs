//! What an implementer is told to do: one text, the same for models and for agent programs.

use schemas::{AgentJob, TaskId};

/// The task in words. `test`: the command that will judge the change, if one is known; `before`: what an earlier attempt
/// did, if its work lies in the workspace.
pub fn prompt(job: &AgentJob, id: &TaskId, test: Option<&str>, before: Option<&str>) -> String {
    let mut text = format!("# Task {id}: {}\n", job.title);
    if let Some(spec) = &job.spec {
        text.push_str(&format!("\nSpecification: {spec}\n"));
    }
    if !job.dependencies.is_empty() {
        let names: Vec<&str> = job.dependencies.iter().map(TaskId::as_str).collect();
        text.push_str(&format!("\nIt builds on the tasks {}.\n", names.join(", ")));
    }
    if !job.description.trim().is_empty() {
        text.push_str(&format!("\n{}\n", job.description.trim()));
    }
    if !job.acceptance.is_empty() {
        text.push_str("\nAt the end this must hold:\n");
        for criterion in &job.acceptance {
            text.push_str(&format!("- {}\n", criterion.trim()));
        }
    }
    text.push_str(
        "\nYou are in a workspace with the repository checked out. Change files there until the task is done. Do not \
         commit and do not push: that is done for you, with what differs from the base.\n",
    );
    if let Some(test) = test {
        text.push_str(&format!("Your change is judged by this command, which must succeed: {test}\n"));
    }
    if let Some(before) = before {
        text.push_str(&format!(
            "\nAn earlier attempt began this; its changes are in the workspace. Go on from there. What it did:\n{}\n",
            before.trim()
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_of_the_job_is_told() {
        let job = serde_json::from_value(serde_json::json!({
            "repository": "/r", "title": "Fix the parser", "spec": "parsing 3", "description": "It drops the last line.",
            "acceptance": ["the last line is kept"], "dependencies": ["t0"],
        }));
        let job: AgentJob = job.unwrap();
        let text = prompt(&job, &TaskId::new("t1").unwrap(), Some("make test"), Some("read a.c"));
        for word in ["t1", "Fix the parser", "parsing 3", "t0", "last line", "- the last", "make test", "read a.c"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}
