//! The shared network: loopback and nothing else, one namespace for all containers of a worker that ask for it.
//!
//! A namespace lives as long as a container is in it, so one of our own holds it: a program that does nothing, in an
//! image of nothing else.

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, RemoveContainerOptionsBuilder,
};
use futures_util::StreamExt;
use schemas::task::Container;
use tar::EntryType;

use super::create::hardened;
use super::engine::{Engine, PATIENCE};
use super::labels::{Owner, own_labels};
use super::refusal::{create_refused, start_refused, status};
use crate::runtime::StartError;

/// The holder's image; made where it is missing, never pulled.
const IMAGE: &str = "shoal-holder";
const TAG: &str = "1";
/// Its only file.
const PROGRAM: &str = "hold";
const MEMORY: i64 = 16 << 20;

/// The worker's shared network.
pub(super) struct Holder {
    /// Id of the container that holds it.
    current: tokio::sync::Mutex<Option<String>>,
    owner: Owner,
}

impl Holder {
    pub(super) fn new(owner: Owner) -> Self {
        Self { current: tokio::sync::Mutex::default(), owner }
    }

    /// The network as the engine calls it; its holder is made where there is none, or where it is gone.
    /// Cancel safe: a holder made half way is swept with its worker.
    pub(super) async fn ensure(&self, engine: &Engine) -> Result<String, StartError> {
        let mut current = self.current.lock().await;
        if let Some(id) = &*current {
            match engine.ask(PATIENCE, engine.docker.inspect_container(id, None)).await {
                Ok(found) if found.state.as_ref().and_then(|state| state.running) == Some(true) => {
                    return Ok(format!("container:{id}"));
                }
                Ok(_) => drop(remove(engine, id).await),
                Err(error) if status(&error) == Some(404) => {}
                Err(error) => return Err(start_refused(error, &Container::new(IMAGE))),
            }
        }
        let id = self.make(engine).await?;
        *current = Some(id.clone());
        Ok(format!("container:{id}"))
    }

    async fn make(&self, engine: &Engine) -> Result<String, StartError> {
        let image = format!("{IMAGE}:{TAG}");
        let as_container = Container::new(&image);
        let made = engine.ask(PATIENCE, ensure_image(&engine.docker, &engine.facts().architecture)).await;
        match made {
            Ok(true) => {}
            Ok(false) => {
                let message = format!(
                    "the network `shared` needs an engine on x86_64 or aarch64, this one is on `{}`",
                    engine.facts().architecture
                );
                return Err(StartError::Refused { code: schemas::Code::PolicyForbidden, message });
            }
            Err(error) => return Err(create_refused(error, &as_container)),
        }
        let mut host = hardened("none");
        host.readonly_rootfs = Some(true);
        let facts = engine.facts();
        if facts.memory_limit {
            (host.memory, host.memory_swap) = (Some(MEMORY), Some(MEMORY));
        }
        host.pids_limit = facts.pids_limit.then_some(4);
        let body = ContainerCreateBody {
            image: Some(image),
            entrypoint: Some(vec![format!("/{PROGRAM}")]),
            labels: Some(own_labels(&self.owner, "holder")),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        };
        let name = format!("shoal-holder-{}-{}", self.owner.worker, random());
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let created = engine.ask(PATIENCE, engine.docker.create_container(Some(options), body)).await;
        let id = created.map_err(|error| create_refused(error, &as_container))?.id;
        if let Err(error) = engine.ask(PATIENCE, engine.docker.start_container(&id, None)).await {
            let _ = remove(engine, &id).await;
            return Err(start_refused(error, &as_container));
        }
        Ok(id)
    }
}

/// Whether there is a program for this machine.
pub(super) fn is_possible(architecture: &str) -> bool {
    program(architecture).is_some()
}

fn random() -> String {
    format!("{:08x}", rand::random::<u32>())
}

async fn remove(engine: &Engine, id: &str) -> Result<(), Error> {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    engine.ask(PATIENCE, engine.docker.remove_container(id, Some(options))).await
}

/// False where there is no program for this machine.
async fn ensure_image(docker: &Docker, architecture: &str) -> Result<bool, Error> {
    let Some(program) = program(architecture) else { return Ok(false) };
    match docker.inspect_image(&format!("{IMAGE}:{TAG}")).await {
        Ok(_) => return Ok(true),
        Err(error) if status(&error) == Some(404) => {}
        Err(error) => return Err(error),
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o555);
    header.set_size(program.len() as u64);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, PROGRAM, &program[..])?;
    let body = bollard::body_full(archive.into_inner()?.into());
    let options = CreateImageOptionsBuilder::default().from_src("-").repo(IMAGE).tag(TAG).build();
    let mut progress = docker.create_image(Some(options), Some(body), None);
    while let Some(step) = progress.next().await {
        step?;
    }
    Ok(true)
}

/// A whole program that waits for ever, as an ELF file: one header, one segment that is the file itself, and the code.
fn program(architecture: &str) -> Option<Vec<u8>> {
    /// Where the file is put in memory; the code comes behind both headers.
    const AT: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let (machine, code): (u16, Vec<u8>) = match architecture {
        "x86_64" | "amd64" => {
            let code = vec![
                0xb8, 34, 0, 0, 0, // mov eax, 34 (pause)
                0x0f, 0x05, // syscall
                0xeb, 0xf7, // jmp to the first
            ];
            (62, code)
        }
        "aarch64" | "arm64" => {
            // There is no pause here; ppoll of nothing, without an end, is the same.
            let words: [u32; 7] = [
                0xd280_0000, // mov x0, 0
                0xd280_0001, // mov x1, 0
                0xd280_0002, // mov x2, 0
                0xd280_0003, // mov x3, 0
                0xd280_0928, // mov x8, 73 (ppoll)
                0xd400_0001, // svc 0
                0x17ff_fffa, // b to the first
            ];
            (183, words.iter().flat_map(|word| word.to_le_bytes()).collect())
        }
        _ => return None,
    };
    let size = HEADERS + code.len() as u64;
    let mut file = Vec::with_capacity(size as usize);
    // 64 bits, little endian, version 1, no ABI of its own; then zeros up to 16.
    file.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend(2u16.to_le_bytes()); // an executable
    file.extend(machine.to_le_bytes());
    file.extend(1u32.to_le_bytes()); // version
    file.extend((AT + HEADERS).to_le_bytes()); // where it begins
    file.extend(64u64.to_le_bytes()); // where the table of segments is
    file.extend(0u64.to_le_bytes()); // no sections
    file.extend(0u32.to_le_bytes()); // flags
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes()); // sizes of header and entries, and how many
    }
    file.extend(1u32.to_le_bytes()); // to be loaded
    file.extend(5u32.to_le_bytes()); // read and executed
    file.extend(0u64.to_le_bytes()); // from the beginning of the file
    file.extend(AT.to_le_bytes()); // virtual
    file.extend(AT.to_le_bytes()); // physical
    file.extend(size.to_le_bytes()); // in the file
    file.extend(size.to_le_bytes()); // in memory
    file.extend(0x1_0000u64.to_le_bytes()); // alignment: the largest page of both
    file.extend(code);
    Some(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_holders_program_waits_until_it_is_killed() {
        let Some(bytes) = program(std::env::consts::ARCH) else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hold");
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = std::process::Command::new(&path).spawn().unwrap();
        // Until it sleeps in the kernel: by then it has made its call.
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        while !state().contains(") S ") {
            assert!(!state().contains(") Z "), "it ended");
            std::thread::yield_now();
        }
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        let ended = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
    }

    #[test]
    fn other_machines_have_no_program() {
        assert!(program("aarch64").is_some_and(|bytes| bytes.len() == 64 + 56 + 28));
        assert!(program("riscv64").is_none());
    }
}
