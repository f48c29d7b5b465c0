//! Programs of our own for images of our own: a hundred bytes that need no registry, no compiler and no library.

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt;
use tar::EntryType;

use super::refusal::status;

/// What a program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    /// Waits until it is killed.
    Hold,
    /// Ends at once, and well.
    True,
}

impl Program {
    /// The whole program as a file; `None` where there is none for this machine.
    pub(super) fn file(self, architecture: &str) -> Option<Vec<u8>> {
        let (machine, code) = self.code(architecture)?;
        Some(elf(machine, code))
    }

    /// ELF's number of the machine, and the code.
    fn code(self, architecture: &str) -> Option<(u16, Vec<u8>)> {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
        match (architecture, self) {
            ("x86_64" | "amd64", Self::Hold) => {
                let code = vec![
                    0xb8, 34, 0, 0, 0, // mov eax, 34 (pause)
                    0x0f, 0x05, // syscall
                    0xeb, 0xf7, // jmp to the first
                ];
                Some((62, code))
            }
            ("x86_64" | "amd64", Self::True) => {
                let code = vec![
                    0xb8, 60, 0, 0, 0, // mov eax, 60 (exit)
                    0x31, 0xff, // xor edi, edi
                    0x0f, 0x05, // syscall
                ];
                Some((62, code))
            }
            ("aarch64" | "arm64", Self::Hold) => {
                // There is no pause here; ppoll of nothing, without an end, is the same.
                let code = words(&[
                    0xd280_0000, // mov x0, 0
                    0xd280_0001, // mov x1, 0
                    0xd280_0002, // mov x2, 0
                    0xd280_0003, // mov x3, 0
                    0xd280_0928, // mov x8, 73 (ppoll)
                    0xd400_0001, // svc 0
                    0x17ff_fffa, // b to the first
                ]);
                Some((183, code))
            }
            ("aarch64" | "arm64", Self::True) => {
                let code = words(&[
                    0xd280_0000, // mov x0, 0
                    0xd280_0ba8, // mov x8, 93 (exit)
                    0xd400_0001, // svc 0
                ]);
                Some((183, code))
            }
            _ => None,
        }
    }
}

/// An ELF file: one header, one segment that is the file itself, and the code.
fn elf(machine: u16, code: Vec<u8>) -> Vec<u8> {
    /// Where the file is put in memory; the code comes behind both headers.
    const AT: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
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
    file
}

/// Makes an image of nothing but `file`, at `path`, where the engine has none of this name. False without a file.
pub(super) async fn ensure_image(
    docker: &Docker,
    name: &str,
    path: &str,
    file: Option<Vec<u8>>,
) -> Result<bool, Error> {
    let Some(file) = file else { return Ok(false) };
    match docker.inspect_image(name).await {
        Ok(_) => return Ok(true),
        Err(error) if status(&error) == Some(404) => {}
        Err(error) => return Err(error),
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o555);
    header.set_size(file.len() as u64);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, path, &file[..])?;
    let body = bollard::body_full(archive.into_inner()?.into());
    let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
    let options = CreateImageOptionsBuilder::default().from_src("-").repo(repository).tag(tag).build();
    let mut progress = docker.create_image(Some(options), Some(body), None);
    while let Some(step) = progress.next().await {
        step?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_holders_program_waits_until_it_is_killed() {
        let Some(bytes) = Program::Hold.file(std::env::consts::ARCH) else { return };
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
        assert!(Program::Hold.file("aarch64").is_some_and(|bytes| bytes.len() == 64 + 56 + 28));
        assert!(Program::True.file("riscv64").is_none());
    }

    #[test]
    fn the_other_program_ends_at_once_and_well() {
        let Some(bytes) = Program::True.file(std::env::consts::ARCH) else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("true");
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(std::process::Command::new(&path).status().unwrap().success());
    }
}
