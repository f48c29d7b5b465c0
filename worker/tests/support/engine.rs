//! A real Docker engine and an image to run on it, made here without any registry.

use bollard::Docker;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt;
use tar::EntryType;

/// The same as `scripts/engine` makes.
pub const IMAGE: &str = "shoal-test/busybox:1";

/// The engine, with the image; `None` where there is none, which is news, and in CI a failure.
pub async fn engine() -> Option<Docker> {
    let docker = Docker::connect_with_defaults().ok();
    let docker = match docker {
        Some(docker) if docker.ping().await.is_ok() => docker.negotiate_version().await.unwrap(),
        _ => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "in CI no test is skipped: no container engine");
            eprintln!("skipped: no container engine");
            return None;
        }
    };
    if docker.inspect_image(IMAGE).await.is_err() {
        make_image(&docker).await;
    }
    Some(docker)
}

async fn make_image(docker: &Docker) {
    let busybox = std::fs::read("/bin/busybox").expect("apt install busybox-static");
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: EntryType, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, path, content).unwrap();
    };
    for folder in ["bin/", "etc/", "root/", "home/", "dev/", "proc/", "sys/"] {
        add(folder, EntryType::Directory, 0o755, b"");
    }
    add("tmp/", EntryType::Directory, 0o1777, b"");
    for folder in ["app/", "home/job/"] {
        add(folder, EntryType::Directory, 0o777, b"");
    }
    add("bin/busybox", EntryType::Regular, 0o755, &busybox);
    let users = "root:x:0:0:root:/root:/bin/sh\njob:x:1000:1000:job:/home/job:/bin/sh\n\
                 nobody:x:65534:65534:nobody:/:/bin/false\n";
    add("etc/passwd", EntryType::Regular, 0o644, users.as_bytes());
    add("etc/group", EntryType::Regular, 0o644, b"root:x:0:\njob:x:1000:\nnogroup:x:65534:\n");
    add("etc/not-executable", EntryType::Regular, 0o644, b"#!/bin/sh\n");
    let applets = std::process::Command::new("/bin/busybox").arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(applets).unwrap().lines().filter(|applet| *applet != "busybox") {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        archive.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    let body = bollard::body_full(archive.into_inner().unwrap().into());
    let (repo, tag) = IMAGE.split_once(':').unwrap();
    let options = CreateImageOptionsBuilder::default().from_src("-").repo(repo).tag(tag).build();
    let options = bollard::query_parameters::CreateImageOptions { changes: vec!["CMD [\"sh\"]".to_owned()], ..options };
    let mut progress = docker.create_image(Some(options), Some(body), None);
    while let Some(step) = progress.next().await {
        step.unwrap();
    }
}
