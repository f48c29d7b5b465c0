//! JSON Schemas of everything on the wire, kept in `schemas/json/` and checked by a test.

use schemars::{Schema, schema_for};

use crate::function::EnsureRequest;
use crate::{
    AgentRecord, DeadLetter, DoctorReport, Explanation, Function, Instance, Playbook, QueueSettings, Task, TaskRecord,
    agent_job, cancel, containers, http, transcript,
};

/// File name and schema of every message.
pub fn all() -> Vec<(&'static str, Schema)> {
    vec![
        ("task.json", schema_for!(Task)),
        ("task_record.json", schema_for!(TaskRecord)),
        ("agent_record.json", schema_for!(AgentRecord)),
        ("queue_settings.json", schema_for!(QueueSettings)),
        ("playbook.json", schema_for!(Playbook)),
        ("function.json", schema_for!(Function)),
        ("instance.json", schema_for!(Instance)),
        ("ensure_request.json", schema_for!(EnsureRequest)),
        ("containers_request.json", schema_for!(containers::ContainersRequest)),
        ("containers_reply.json", schema_for!(containers::ContainersReply)),
        ("transcript_entry.json", schema_for!(transcript::Entry)),
        ("agent_message.json", schema_for!(transcript::Message)),
        ("slot_lease.json", schema_for!(agent_job::SlotLease)),
        ("dead_letter.json", schema_for!(DeadLetter)),
        ("explanation.json", schema_for!(Explanation)),
        ("doctor_report.json", schema_for!(DoctorReport)),
        ("cancel_request.json", schema_for!(cancel::CancelRequest)),
        ("cancel_reply.json", schema_for!(cancel::CancelReply)),
        ("drain_request.json", schema_for!(cancel::DrainRequest)),
        ("drain_reply.json", schema_for!(cancel::DrainReply)),
        ("cordon_request.json", schema_for!(cancel::CordonRequest)),
        ("cordon_reply.json", schema_for!(cancel::CordonReply)),
        ("holds_request.json", schema_for!(cancel::HoldsRequest)),
        ("holds_reply.json", schema_for!(cancel::HoldsReply)),
        ("agent_registration.json", schema_for!(http::AgentRegistration)),
        ("agent_beat.json", schema_for!(http::AgentBeat)),
        ("problem.json", schema_for!(http::Problem)),
    ]
}
