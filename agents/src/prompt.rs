//! What an implementer is told to do: one text, the same for models and for agent programs.

use schemas::{AgentJob, TaskId};

use crate::tools::output::middle_cut;

/// As much of the command that judges a change is told.
const COMMAND_BYTES: usize = 4 << 10;

/// The task in words. `test`: the command that will judge the change, if one is known; `before`: what an earlier attempt
/// did, if its work lies in the workspace. What a job may hold ([`schemas::agent_job::TOLD_BYTES`]) is told whole.
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
        text.push_str(&format!(
            "Your change is judged by this command, which must succeed: {}\n",
            middle_cut(test, COMMAND_BYTES)
        ));
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
    use schemas::agent_job::{ACCEPTANCE_BYTES, DEPENDENCIES, DESCRIPTION_BYTES, TITLE_BYTES, TOLD_BYTES};

    use super::*;
    use crate::model::summary::SUMMARY_BYTES;

    #[test]
    fn the_longest_job_is_told_whole() {
        let mut job = AgentJob::new("/r", "t".repeat(TITLE_BYTES));
        job.spec = Some("s".repeat(TITLE_BYTES));
        job.description = "d".repeat(DESCRIPTION_BYTES);
        job.acceptance = vec!["a".to_owned(); ACCEPTANCE_BYTES / 4];
        job.dependencies = (0..DEPENDENCIES).map(|n| TaskId::new(format!("{n:0128}")).unwrap()).collect();
        let task = schemas::Task::new(schemas::Workload::Agent(Box::new(job.clone())));
        task.check().unwrap();
        let (id, before) = (TaskId::new("i".repeat(128)).unwrap(), "b".repeat(SUMMARY_BYTES));
        let text = prompt(&job, &id, Some(&"c".repeat(1 << 20)), Some(&before));
        // A model that goes on is told its own summary, too.
        assert!(text.len() + SUMMARY_BYTES + 500 < TOLD_BYTES, "{} bytes", text.len());
        assert!(text.contains(&job.description) && text.contains("bytes left out"));
    }

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
