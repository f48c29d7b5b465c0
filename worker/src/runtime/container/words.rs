//! What engines say against a request, in the words of the table of codes. Pure.
//!
//! Engines tell most of it in prose only. The phrases here are those of Docker 20.10 to 28, of containerd and runc below
//! it, and of Podman where it differs; what no phrase matches is a failure that may pass.

use std::io;

use schemas::Code;
use schemas::task::Container;

use crate::runtime::StartError;

/// Why the engine behind `runtime` does not `what` (a verb and its object), by its own words.
pub(in crate::runtime) fn refused(
    runtime: &'static str,
    message: String,
    container: &Container,
    what: &'static str,
) -> StartError {
    let refused = |code| StartError::Refused { code, message: format!("the engine refuses to {what}: {message}") };
    match reason(&message.to_lowercase()) {
        Reason::NotFound => StartError::CommandNotFound { program: program(&message, container) },
        Reason::NotExecutable => {
            let program = program(&message, container);
            StartError::CommandNotExecutable { program, source: io::Error::other(message) }
        }
        Reason::Limit(limit) => StartError::LimitUnsupported { limit, why: message },
        Reason::Code(code) => refused(code),
        Reason::Away => StartError::Unavailable { runtime, why: message },
        Reason::Broken => StartError::Unsure { runtime, why: message },
        Reason::MayPass => {
            StartError::Failed { what: format!("the engine failed to {what}"), source: Some(io::Error::other(message)) }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    NotFound,
    NotExecutable,
    Limit(&'static str),
    Code(Code),
    /// Nothing of the task's: what it would have joined, or the engine itself, is on its way out.
    Away,
    /// The same, of what is below the engine, which may have done it all the same.
    Broken,
    MayPass,
}

/// By the words, in lower case. Where two lines fit, the upper one is meant: what runc says quotes paths and names.
#[rustfmt::skip]
fn reason(text: &str) -> Reason {
    let has = |phrases: &[&str]| phrases.iter().any(|phrase| text.contains(phrase));
    if has(&["unable to find user", "unable to find group", "in passwd file", "in group file", "no users found", "no groups found"]) {
        return Reason::Code(Code::UserNotFound);
    }
    // Only as its first words: behind them it may quote the task, which could have itself put off for ever.
    if ["cannot join network of a non running container", "no such container"].iter().any(|phrase| text.starts_with(phrase)) {
        return Reason::Away;
    }
    if has(&["transport is closing", "code = unavailable", "error while dialing"]) && !has(&["exec: "]) {
        return Reason::Broken;
    }
    if has(&["port is already allocated", "address already in use", "ports are not available"]) {
        return Reason::Code(Code::PortTaken);
    }
    if has(&["minimum memory limit", "memory limit too low", "memory+swap limit"]) {
        return Reason::Limit("memory");
    }
    if has(&["range of cpus is from", "cpu cfs", "nano cpus", "nanocpus"]) {
        return Reason::Limit("cpu");
    }
    if has(&["pids limit", "pidslimit"]) {
        return Reason::Limit("pids");
    }
    if has(&["bind source path does not exist", "invalid mount config", "invalid mount path", "duplicate mount point",
             "unknown capability", "invalid capability", "is invalid, it needs to be an absolute path", "cannot mkdir"]) {
        return Reason::Code(Code::InvalidTask);
    }
    // Allowed here, but this worker's engine has none of that name.
    if has(&["unknown runtime specified", "unknown or invalid runtime name", "invalid runtime name",
             "failed to resolve runtime path"])
        || (text.starts_with("network ") && text.contains("not found")) || has(&["no such network", "could not find network", "could not find a network", "unable to find network"]) {
        return Reason::Code(Code::PolicyForbidden);
    }
    if has(&["no such image"]) || (text.contains("image") && has(&["image not known", "not found locally"])) {
        return Reason::Code(Code::ImageNotFound);
    }
    if has(&["invalid reference format", "invalid checksum digest", "unsupported digest algorithm", "repository name must be",
             "cannot specify 64-byte hexadecimal", "exec format error", "does not match the specified platform",
             "no matching manifest", "image operating system"]) {
        return Reason::Code(Code::InvalidImage);
    }
    if has(&["no command specified", "no command or entrypoint"]) {
        return Reason::NotFound;
    }
    // Before the program itself comes its surroundings, and their trouble is told in the same words.
    if has(&["error mounting", "rootfs_linux", "mount through procfd"]) {
        return if has(&["not a directory"]) { Reason::Code(Code::InvalidTask) } else { Reason::MayPass };
    }
    if has(&["chdir to cwd", "mkdir /"]) {
        return if has(&["permission denied", "not a directory"]) { Reason::Code(Code::InvalidTask) } else { Reason::MayPass };
    }
    if has(&["exec: ", "exec user process", "starting container process", "executable file"]) {
        if has(&["executable file not found", "executable file `", "no such file or directory", "not a directory"]) {
            return Reason::NotFound;
        }
        if has(&["permission denied", "is a directory"]) {
            return Reason::NotExecutable;
        }
    }
    Reason::MayPass
}

/// As the engine quotes it: `exec: "prog": …`; else as the task names it.
fn program(message: &str, container: &Container) -> String {
    let quoted = message.split_once("exec: \"").and_then(|(_, rest)| rest.split_once('"'));
    let named = || container.entrypoint.first().or(container.command.first()).cloned();
    let quoted = quoted.map(|(program, _)| program.to_owned());
    quoted.or_else(named).unwrap_or_else(|| "the image's command".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn the_words_of_engines_are_known() {
        use Code::{ImageNotFound, InvalidImage, InvalidTask, PolicyForbidden, PortTaken, UserNotFound};
        let code = Reason::Code;
        for (words, expected) in [
            // 20.10 to 28, as said by dockerd.
            ("No such image: no-such-image-x:latest", code(ImageNotFound)),
            ("invalid reference format: repository name must be lowercase", code(InvalidImage)),
            ("invalid reference format: repository name (library/Alpine) must be lowercase", code(InvalidImage)),
            ("invalid checksum digest length", code(InvalidImage)),
            ("cannot join network of a non running container: 0123abc", Reason::Away),
            ("OCI runtime create failed: exec: \"no such container\": executable file not found in $PATH", Reason::NotFound),
            ("rpc error: code = Unavailable desc = transport is closing: unknown", Reason::Broken),
            ("Minimum memory limit allowed is 6MB", Reason::Limit("memory")),
            ("Minimum memory limit allowed is 4MB", Reason::Limit("memory")),
            ("Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available", Reason::Limit("cpu")),
            ("NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted", Reason::Limit("cpu")),
            ("invalid mount config for type \"bind\": bind source path does not exist: /nonexist", code(InvalidTask)),
            ("Duplicate mount point: /x", code(InvalidTask)),
            ("Unknown runtime specified nope", code(PolicyForbidden)),
            ("unknown or invalid runtime name: nope", code(PolicyForbidden)),
            ("invalid CapAdd: unknown capability: \"CAP_NOPE\"", code(InvalidTask)),
            ("the working directory 'rel' is invalid, it needs to be an absolute path", code(InvalidTask)),
            ("network nonet not found", code(PolicyForbidden)),
            ("could not find a network matching network mode nonet: network nonet not found", Reason::Code(PolicyForbidden)),
            ("unable to find user nosuch: no matching entries in passwd file", code(UserNotFound)),
            ("unable to find group nosuch: no matching entries in group file", code(UserNotFound)),
            ("linux spec user: unable to find group nosuch: no matching entries in group file", code(UserNotFound)),
            ("driver failed programming external connectivity on endpoint a (b): Bind for 0.0.0.0:80 failed: port is already allocated", code(PortTaken)),
            ("driver failed programming external connectivity on endpoint a (b): Error starting userland proxy: listen tcp4 0.0.0.0:80: bind: address already in use", code(PortTaken)),
            ("failed to bind host port for 0.0.0.0:80:172.17.0.2:80/tcp: address already in use", code(PortTaken)),
            ("No command specified", Reason::NotFound),
            ("no command specified", Reason::NotFound),
            ("Conflict. The container name \"/a\" is already in use by container \"b\". You have to remove (or rename) that container to be able to reuse that name.", Reason::MayPass),
            ("No such container: nonet", Reason::Away),
            // Below it: runc and crun, by way of containerd's shim.
            ("OCI runtime create failed: container_linux.go:380: starting container process caused: exec: \"nosuch\": executable file not found in $PATH: unknown", Reason::NotFound),
            ("failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: \"/no/such/prog\": stat /no/such/prog: no such file or directory: unknown", Reason::NotFound),
            ("failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: error during container init: exec: \"nosuch\": executable file not found in $PATH", Reason::NotFound),
            ("failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: \"/etc/passwd/x\": stat /etc/passwd/x: not a directory: unknown: Are you trying to mount a directory onto a file (or vice-versa)?", Reason::NotFound),
            ("crun: executable file `nosuch` not found in $PATH: No such file or directory: OCI runtime attempted to invoke a command that was not found", Reason::NotFound),
            ("failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: \"/etc/passwd\": permission denied: unknown", Reason::NotExecutable),
            ("exec: \"/etc\": is a directory: unknown", Reason::NotExecutable),
            ("failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: error during container init: error mounting \"/tmp\" to rootfs at \"/etc/passwd\": mount /tmp:/etc/passwd (via /proc/self/fd/6), flags: 0x5000: not a directory: unknown", code(InvalidTask)),
            ("OCI runtime create failed: container_linux.go:380: starting container process caused: process_linux.go:545: container init caused: rootfs_linux.go:76: mounting \"/x\" to rootfs at \"/y\" caused: no space left on device: unknown", Reason::MayPass),
            ("OCI runtime create failed: runc create failed: unable to start container process: exec: \"true\": chdir to cwd (\"/root/x\") set in config.json failed: permission denied: unknown", code(InvalidTask)),
            ("exec /prog: exec format error", code(InvalidImage)),
            ("image with reference a was found but does not match the specified platform: wanted linux/arm64, actual: linux/amd64", code(InvalidImage)),
            ("failed to create task for container: failed to initialize logging driver: broken", Reason::MayPass),
            ("something nobody has seen yet", Reason::MayPass),
        ] {
            assert_eq!(reason(&words.to_lowercase()), expected, "{words}");
        }
    }

    #[test]
    fn the_program_is_the_one_that_the_engine_tried() {
        let mut container = Container::new("a");
        container.command = vec!["argument".into()];
        assert_eq!(program("exec: \"/Entry\": stat", &container), "/Entry");
        assert_eq!(program("No command specified", &container), "argument");
        container.command.clear();
        assert_eq!(program("No command specified", &container), "the image's command");
    }
}
