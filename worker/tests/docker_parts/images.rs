//! Images are pulled once, and what stands in the way has a code of its own.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use schemas::Code;
use schemas::task::PullPolicy::{Always, IfNotPresent, Never};
use shoal_worker::logs::Notes;
use shoal_worker::registry::credentials::Credentials;
use shoal_worker::runtime::StartError;
use shoal_worker::runtime::docker::pull::{Image, Images};

use crate::registry::{BLOBS, Fault, MANIFESTS, Registry};
use crate::support::{Engine, engine, eventually};

fn images(engine: &Engine) -> Images {
    Images::with_credentials(engine.docker.clone(), "docker", Credentials::of_file("/nonexistent".into()))
}

pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[track_caller]
pub fn refusal(ensured: Result<Image, StartError>) -> (Code, String) {
    match ensured {
        Err(StartError::Refused { code, message }) => (code, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn many_starts_share_one_pull() {
    let engine = engine!();
    let registry = Registry::start().await;
    let name = registry.push(&engine, "shared", architecture());
    registry.set_fault(Some((BLOBS, Fault::Slow(4 << 20))));
    let images = images(&engine);
    let notes = Notes::nowhere();
    let all = join_all((0..8).map(|_| images.ensure(&name, IfNotPresent, &notes))).await;
    let first = all[0].as_ref().unwrap();
    assert!(all.iter().all(|image| image.as_ref().unwrap() == first));
    assert_eq!((first.working_dir.as_deref(), first.user.as_deref()), (Some("/app"), Some("7")));
    assert_eq!(registry.asked(BLOBS), 2, "one configuration, one layer");
}

#[tokio::test]
async fn who_gives_up_waiting_takes_nothing_from_the_others() {
    let engine = engine!();
    let registry = Registry::start().await;
    let name = registry.push(&engine, "left", architecture());
    registry.set_fault(Some((BLOBS, Fault::Slow(2 << 20))));
    let (one, other) = (images(&engine), Notes::nowhere());
    let other = {
        let (images, name) = (one.clone(), name.clone());
        // The one who began the pull is the one who goes.
        let first = tokio::spawn({
            let (images, name) = (one.clone(), name.clone());
            async move { images.ensure(&name, IfNotPresent, &Notes::nowhere()).await }
        });
        eventually("the pull is under way", async || registry.asked(BLOBS) >= 2).await;
        let second = tokio::spawn(async move { images.ensure(&name, Always, &other).await });
        tokio::task::yield_now().await;
        first.abort();
        assert!(first.await.is_err_and(|end| end.is_cancelled()));
        second.await.unwrap()
    };
    other.unwrap();
    assert_eq!((registry.asked(BLOBS), registry.given_up()), (2, 0));
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_is_given_up() {
    let engine = engine!();
    let registry = Registry::start().await;
    let name = registry.push(&engine, "lonely", architecture());
    registry.set_fault(Some((BLOBS, Fault::Slow(20 << 10))));
    let images = images(&engine);
    {
        let notes = Notes::nowhere();
        let mut ensured = std::pin::pin!(images.ensure(&name, IfNotPresent, &notes));
        let under_way = eventually("the pull is under way", async || registry.asked(BLOBS) >= 2);
        tokio::select! {
            ensured = &mut ensured => panic!("{ensured:?}"),
            () = under_way => {}
        }
    }
    eventually("the engine hangs up", async || registry.given_up() > 0).await;
    registry.set_fault(None);
    images.ensure(&name, IfNotPresent, &Notes::nowhere()).await.unwrap();
}

#[tokio::test]
async fn the_policy_says_when_the_registry_is_asked() {
    let engine = engine!();
    let registry = Registry::start().await;
    let name = registry.push(&engine, "moved", architecture());
    let images = images(&engine);
    let notes = Notes::nowhere();
    let (code, _) = refusal(images.ensure(&name, Never, &notes).await);
    assert_eq!((code, registry.asked("")), (Code::ImageNotFound, 0));
    let old = images.ensure(&name, IfNotPresent, &notes).await.unwrap();
    let asked = registry.asked("");
    assert!(asked > 0);
    registry.push(&engine, "moved", architecture());
    for policy in [Never, IfNotPresent] {
        assert_eq!(images.ensure(&name, policy, &notes).await.unwrap(), old);
    }
    assert_eq!(registry.asked(""), asked);
    let new = images.ensure(&name, Always, &notes).await.unwrap();
    assert_ne!(new, old);
    engine.forget(&old.id);
}

#[tokio::test]
async fn what_fails_in_a_pull_has_its_code() {
    let engine = engine!();
    let registry = Registry::start().await;
    let images = images(&engine);
    let notes = Notes::nowhere();
    let name = registry.push(&engine, "faulty", architecture());
    for (part, fault, expected) in [
        (MANIFESTS, Fault::Status(500), Code::ImagePullFailed),
        (MANIFESTS, Fault::Status(429), Code::ImagePullFailed),
        (BLOBS, Fault::Status(503), Code::ImagePullFailed),
        // The engine answers 200 and tells of these in the stream.
        (BLOBS, Fault::Corrupt, Code::ImagePullFailed),
        (MANIFESTS, Fault::Status(403), Code::ImageNotFound),
        (MANIFESTS, Fault::Status(404), Code::ImageNotFound),
    ] {
        registry.set_fault(Some((part, fault)));
        let (code, message) = refusal(images.ensure(&name, IfNotPresent, &notes).await);
        assert_eq!(code, expected, "{message}");
        assert!(message.contains(&name), "{message}");
    }
    registry.set_fault(None);
    images.ensure(&name, IfNotPresent, &notes).await.unwrap();
    // It is there now, and still has to be asked for.
    registry.set_fault(Some((MANIFESTS, Fault::Status(500))));
    assert_eq!(refusal(images.ensure(&name, Always, &notes).await).0, Code::ImagePullFailed);
    registry.set_fault(None);

    let (code, message) = refusal(images.ensure(&format!("{}/nobody", registry.host()), IfNotPresent, &notes).await);
    assert_eq!(code, Code::ImageNotFound, "{message}");
    let (code, message) = refusal(images.ensure("127.0.0.1:1/nobody", IfNotPresent, &notes).await);
    assert_eq!(code, Code::ImagePullFailed, "{message}");
    for name in ["Upper", "a:b:c", "a@sha256:abc"] {
        assert_eq!(refusal(images.ensure(name, IfNotPresent, &notes).await).0, Code::InvalidImage);
    }
}

#[tokio::test]
async fn an_image_for_another_machine_is_told() {
    let engine = engine!();
    let registry = Registry::start().await;
    let name = registry.push(&engine, "foreign", "s390x");
    let ensured = images(&engine).ensure(&name, IfNotPresent, &Notes::nowhere()).await;
    if std::path::Path::new("/proc/sys/fs/binfmt_misc/qemu-s390x").exists() {
        ensured.unwrap();
        return;
    }
    let (code, message) = refusal(ensured);
    assert_eq!(code, Code::InvalidImage, "{message}");
    assert!(message.contains("s390x") && message.contains(architecture()), "{message}");
}

#[tokio::test]
async fn a_name_is_never_taken_for_an_id() {
    let engine = engine!();
    let id = engine.docker.inspect_image(crate::support::IMAGE).await.unwrap().id.unwrap();
    let short = &id["sha256:".len()..][..12];
    engine.docker.inspect_image(short).await.expect("the engine itself takes it for one");
    let (code, _) = refusal(images(&engine).ensure(short, Never, &Notes::nowhere()).await);
    assert_eq!(code, Code::ImageNotFound);
}

#[tokio::test]
async fn a_login_opens_a_registry() {
    let engine = engine!();
    let registry = Registry::start().await;
    let name = registry.push(&engine, "private", architecture());
    // In base64 these are letters that differ between its two alphabets.
    let login = "joe:>>>???~~~";
    registry.want_login(login);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    let logged_in = Images::with_credentials(engine.docker.clone(), "docker", Credentials::of_file(file.clone()));
    let (code, message) = refusal(logged_in.ensure(&name, IfNotPresent, &Notes::nowhere()).await);
    assert_eq!(code, Code::ImageNotFound, "{message}");
    for (of, expected) in [("joe:wrong", false), (login, true)] {
        let auths = serde_json::json!({"auths": {registry.host(): {"auth": STANDARD.encode(of)}}});
        std::fs::write(&file, auths.to_string()).unwrap();
        let ensured = logged_in.ensure(&name, IfNotPresent, &Notes::nowhere()).await;
        assert_eq!(ensured.is_ok(), expected, "{ensured:?}");
        assert!(!format!("{ensured:?}").contains("wrong"));
    }
}

#[tokio::test]
async fn an_engine_that_is_gone_is_told_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _listens_no_more = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    drop(_listens_no_more);
    let docker = bollard::Docker::connect_with_host(&format!("unix://{}", socket.display())).unwrap();
    let images = Images::with_credentials(docker, "docker", Credentials::of_file("/nonexistent".into()));
    for policy in [Always, IfNotPresent, Never] {
        let ensured = images.ensure("alpine", policy, &Notes::nowhere()).await;
        assert!(matches!(ensured, Err(StartError::Unavailable { runtime: "docker", .. })), "{ensured:?}");
    }
}
