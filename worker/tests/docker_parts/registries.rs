//! Registries that the worker's settings speak of: pulled by the worker itself, and the same policy and codes as ever.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::query_parameters::RemoveImageOptions;
use futures_util::future::join_all;
use schemas::Code;
use schemas::task::PullPolicy::{Always, IfNotPresent, Never};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shoal_worker::image::ImageName;
use shoal_worker::logs::Notes;
use shoal_worker::registry::credentials::Credentials;
use shoal_worker::registry::{Platform, Progress, Registries};
use shoal_worker::runtime::docker::pull::Images;
use tokio::sync::watch;

use crate::images::{architecture, refusal};
use crate::registry::{Authority, BLOBS, Fault, MANIFESTS, Registry};
use crate::support::{Engine, engine};

/// Of one registry, with no login but the setting's own.
fn registries(registry: &Registry, setting: Value) -> Registries {
    logged_in(registry, setting, Path::new("/nonexistent"))
}

fn logged_in(registry: &Registry, setting: Value, file: &Path) -> Registries {
    let settings = serde_json::from_value(json!({registry.host(): setting})).unwrap();
    Registries::with_credentials(settings, Credentials::of_file(file.into()))
}

/// What a pull goes through, and where.
struct Worker {
    images: Images,
    folder: tempfile::TempDir,
}

impl Worker {
    fn new(engine: &Engine, registries: Registries) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::new(engine.docker.clone(), "docker");
        Self { images: images.with_registries(registries, folder.path().join("pulls")), folder }
    }

    /// What is left of pulls.
    fn left(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("pulls")).map_or(0, |entries| entries.count())
    }
}

async fn pull(
    registries: &Registries,
    image: &str,
    into: &Path,
) -> Result<shoal_worker::registry::Pulled, (Code, String)> {
    let (progress, seen) = watch::channel(Progress::default());
    let name = ImageName::parse(image).unwrap();
    let pulled = registries.pull(&name, &Platform::of_this_machine(), into, &progress).await;
    let pulled = pulled.map_err(|error| (error.code(), error.words()))?;
    let progress = *seen.borrow();
    assert_eq!((progress.done, progress.bytes), (progress.layers, progress.of), "{progress}");
    Ok(pulled)
}

#[tokio::test]
async fn a_private_authority_is_trusted_where_the_setting_names_it() {
    let engine = engine!();
    let (authority, other) = (Authority::new(), Authority::new());
    let registry = Registry::start_tls(&authority, "127.0.0.1").await;
    let name = registry.push(&engine, "private", architecture());
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    let worker = Worker::new(&engine, registries(&registry, json!({"ca": ca})));
    let notes = Notes::nowhere();
    let code_with = async |pem: &str| {
        std::fs::write(&ca, pem).unwrap();
        refusal(worker.images.ensure(&name, IfNotPresent, &notes).await)
    };
    let (code, message) = code_with(&other.pem).await;
    assert_eq!(code, Code::RegistryUntrusted, "{message}");
    assert!(message.contains(registry.host()) && message.contains("`ca` in the setting `registries`"), "{message}");
    let (code, message) = code_with("no certificate").await;
    assert_eq!(code, Code::ImagePullFailed, "{message}");
    assert!(message.contains("ca.pem: there is no certificate in it"), "{message}");
    assert_eq!(registry.asked(""), 0);
    // It is read at each pull: corrected is corrected. A bundle of several is taken whole.
    std::fs::write(&ca, format!("{}\n{}", other.pem, authority.pem)).unwrap();
    let image = worker.images.ensure(&name, IfNotPresent, &notes).await.unwrap();
    assert_eq!((image.working_dir.as_deref(), image.user.as_deref()), (Some("/app"), Some("7")));
    assert_eq!(worker.images.ensure(&name, Never, &notes).await.unwrap(), image, "it stands under its name");
    assert!(registry.agents().iter().all(|agent| agent.starts_with("shoal/")), "{:?}", registry.agents());
    assert_eq!(worker.left(), 0);
    assert_eq!(engine.exit_code_of(&image.id, &["sh", "-c", "exit 7"]).await, 7, "and it runs");
}

#[tokio::test]
async fn without_a_word_on_it_no_private_authority_is_trusted() {
    let engine = engine!();
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let registry = Registry::start_tls(&authority, "127.0.0.1").await;
    let name = registry.push(&engine, "private", architecture());
    let (code, message) = pull(&registries(&registry, json!({})), &name, folder.path()).await.unwrap_err();
    assert_eq!(code, Code::RegistryUntrusted, "{message}");
    // Nor one whose certificate is another host's.
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, &authority.pem).unwrap();
    let elsewhere = Registry::start_tls(&authority, "registry.example").await;
    let name = elsewhere.push(&engine, "private", architecture());
    let (code, message) = pull(&registries(&elsewhere, json!({"ca": ca})), &name, folder.path()).await.unwrap_err();
    assert_eq!(code, Code::RegistryUntrusted, "{message}");
}

#[tokio::test]
async fn plain_http_is_spoken_only_where_the_setting_says_so() {
    let engine = engine!();
    let registry = Registry::start().await;
    let name = registry.push(&engine, "plain", architecture());
    let notes = Notes::nowhere();
    let strict = Worker::new(&engine, registries(&registry, json!({"scheme": "https"})));
    let (code, message) = refusal(strict.images.ensure(&name, IfNotPresent, &notes).await);
    assert_eq!(code, Code::ImagePullFailed, "{message}");
    assert!(message.contains("does not speak TLS") && message.contains("`scheme: http`"), "{message}");
    assert_eq!(registry.asked(""), 0, "nothing falls back by itself");
    let worker = Worker::new(&engine, registries(&registry, json!({"scheme": "http"})));
    worker.images.ensure(&name, IfNotPresent, &notes).await.unwrap();
    assert!(registry.agents().iter().all(|agent| agent.starts_with("shoal/")), "{:?}", registry.agents());
}

#[tokio::test]
async fn the_policy_is_the_same_whoever_pulls() {
    let engine = engine!();
    let registry = Registry::start().await;
    let name = registry.push(&engine, "moved", architecture());
    let worker = Worker::new(&engine, registries(&registry, json!({"scheme": "http"})));
    let notes = Notes::nowhere();
    let (code, _) = refusal(worker.images.ensure(&name, Never, &notes).await);
    assert_eq!((code, registry.asked("")), (Code::ImageNotFound, 0));
    let old = worker.images.ensure(&name, IfNotPresent, &notes).await.unwrap();
    let asked = registry.asked("");
    let moved = registry.push(&engine, "moved", architecture());
    for policy in [Never, IfNotPresent] {
        assert_eq!(worker.images.ensure(&name, policy, &notes).await.unwrap(), old);
    }
    assert_eq!(registry.asked(""), asked);
    let new = worker.images.ensure(&moved, Always, &notes).await.unwrap();
    assert_ne!(new, old);
    // What the engine has is not brought again, also by another boot.
    let (blobs, manifests) = (registry.asked(BLOBS), registry.asked(MANIFESTS));
    let next = Worker::new(&engine, registries(&registry, json!({"scheme": "http"})));
    for worker in [&worker, &next] {
        assert_eq!(worker.images.ensure(&moved, Always, &notes).await.unwrap(), new);
    }
    assert_eq!(registry.asked(BLOBS), blobs);
    assert_eq!(registry.asked(MANIFESTS), manifests + 2, "but the registry is asked");
}

#[tokio::test]
async fn many_starts_share_one_pull_of_ours() {
    let engine = engine!();
    let registry = Registry::start().await;
    let name = registry.push(&engine, "shared", architecture());
    registry.set_fault(Some((BLOBS, Fault::Slow(4 << 20))));
    let worker = Worker::new(&engine, registries(&registry, json!({"scheme": "http"})));
    let notes = Notes::nowhere();
    let all = join_all((0..8).map(|_| worker.images.ensure(&name, Always, &notes))).await;
    let first = all[0].as_ref().unwrap();
    assert!(all.iter().all(|image| image.as_ref().unwrap() == first));
    assert_eq!((registry.asked(BLOBS), registry.asked(MANIFESTS)), (2, 1), "one configuration, one layer");
}

#[tokio::test]
async fn an_image_by_digest_is_that_image_and_no_other() {
    let engine = engine!();
    let registry = Registry::start().await;
    let name = registry.push(&engine, "pinned", architecture());
    let pinned = format!("{name}@{}", registry.digest_of("pinned"));
    let worker = Worker::new(&engine, registries(&registry, json!({"scheme": "http"})));
    let notes = Notes::nowhere();
    let (code, _) = refusal(worker.images.ensure(&pinned, Never, &notes).await);
    assert_eq!(code, Code::ImageNotFound);
    let image = worker.images.ensure(&pinned, IfNotPresent, &notes).await.unwrap();
    engine.forget(&image.id);
    let asked = registry.asked("");
    registry.push(&engine, "pinned", architecture());
    for policy in [Never, IfNotPresent] {
        assert_eq!(worker.images.ensure(&pinned, policy, &notes).await.unwrap(), image);
    }
    assert_eq!(registry.asked(""), asked, "found again without a question");
    let by_tag = worker.images.ensure(&name, IfNotPresent, &notes).await.unwrap();
    assert_ne!(by_tag, image);
    let other = format!("{name}@sha256:{}", "0".repeat(64));
    assert_eq!(refusal(worker.images.ensure(&other, IfNotPresent, &notes).await).0, Code::ImageNotFound);
}

#[tokio::test]
async fn of_many_platforms_the_engines_own_is_taken() {
    let engine = engine!();
    let registry = Registry::start().await;
    let ours = registry.push(&engine, "of-ours", architecture());
    registry.push(&engine, "of-others", "s390x");
    let both = registry.push_index("both", &[("s390x", "of-others"), (architecture(), "of-ours")]);
    engine.forget(&format!("{both}:latest"));
    let none = registry.push_index("none", &[("s390x", "of-others")]);
    let worker = Worker::new(&engine, registries(&registry, json!({"scheme": "http"})));
    let notes = Notes::nowhere();
    let image = worker.images.ensure(&both, IfNotPresent, &notes).await.unwrap();
    assert_eq!(image, worker.images.ensure(&ours, IfNotPresent, &notes).await.unwrap());
    let (code, message) = refusal(worker.images.ensure(&none, IfNotPresent, &notes).await);
    assert_eq!(code, Code::InvalidImage, "{message}");
    assert!(message.contains(&format!("no manifest for linux/{}", architecture())), "{message}");
}

#[tokio::test]
async fn a_login_is_the_settings_own_or_that_of_docker_login() {
    let engine = engine!();
    let folder = tempfile::tempdir().unwrap();
    for by_token in [false, true] {
        let registry = Registry::start().await;
        let name = registry.push(&engine, "secret", architecture());
        match by_token {
            false => registry.want_login("joe:pa:ss"),
            true => registry.want_token("joe:pa:ss"),
        }
        let password = folder.path().join("password");
        std::fs::write(&password, "pa:ss\n").unwrap();
        let login_file = folder.path().join("config.json");
        let auth = STANDARD.encode("joe:pa:ss");
        std::fs::write(&login_file, json!({"auths": {registry.host(): {"auth": auth}}}).to_string()).unwrap();
        for (setting, is_taken) in [
            (json!({"username": "joe", "password": "pa:ss"}), Ok(())),
            (json!({"username": "joe", "password_file": password}), Ok(())),
            (json!({"username": "joe", "password": "wrong"}), Err(Code::RegistryLoginRefused)),
            (json!({}), Err(Code::ImageNotFound)),
        ] {
            let mut setting = setting;
            setting["scheme"] = "http".into();
            let told = pull(&registries(&registry, setting.clone()), &name, folder.path()).await;
            let told = told.map(drop).map_err(|(code, message)| {
                assert!(!message.contains("pa:ss") && !message.contains("wrong"), "{message}");
                code
            });
            assert_eq!(told, is_taken, "{setting} by_token={by_token}");
        }
        let by_file = logged_in(&registry, json!({"scheme": "http"}), &login_file);
        pull(&by_file, &name, folder.path()).await.unwrap();
        let nowhere =
            registries(&registry, json!({"scheme": "http", "username": "j", "password_file": "/nonexistent"}));
        let (code, message) = pull(&nowhere, &name, folder.path()).await.unwrap_err();
        assert_eq!(code, Code::ImagePullFailed);
        assert!(message.contains("/nonexistent") && message.contains(registry.host()), "{message}");
    }
}

#[tokio::test]
async fn what_is_pulled_is_what_its_digests_say() {
    let engine = engine!();
    let registry = Registry::start().await;
    let name = registry.push(&engine, "whole", architecture());
    let http = registries(&registry, json!({"scheme": "http"}));
    let folder = tempfile::tempdir().unwrap();
    let pulled = pull(&http, &name, folder.path()).await.unwrap();
    assert_eq!((pulled.layers.len(), &pulled.digest), (1, &registry.digest_of("whole")));
    let mut kinds = BTreeMap::new();
    for blob in pulled.layers.iter().chain([&pulled.config, &pulled.manifest]) {
        let bytes = std::fs::read(&blob.path).unwrap();
        let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((format!("sha256:{hash}"), bytes.len() as u64), (blob.digest.clone(), blob.size));
        *kinds.entry(blob.media_type.clone()).or_insert(0) += 1;
    }
    assert_eq!(kinds.len(), 3, "{kinds:?}");
    for part in [BLOBS, MANIFESTS] {
        registry.set_fault(Some((part, Fault::Corrupt)));
        let pinned = format!("{name}@{}", registry.digest_of("whole"));
        let (code, message) = pull(&http, &pinned, folder.path()).await.unwrap_err();
        assert_eq!(code, Code::ImagePullFailed, "{part}: {message}");
        assert!(message.contains("is not what its digest says"), "{part}: {message}");
    }
}

#[tokio::test]
async fn a_download_that_breaks_off_is_tried_again_and_then_told() {
    let engine = engine!();
    let registry = Registry::start().await;
    let name = registry.push(&engine, "cut", architecture());
    let worker = Worker::new(&engine, registries(&registry, json!({"scheme": "http"})));
    let notes = Notes::nowhere();
    registry.set_fault(Some((BLOBS, Fault::Cut)));
    let (code, message) = refusal(worker.images.ensure(&name, IfNotPresent, &notes).await);
    assert_eq!(code, Code::ImagePullFailed, "{message}");
    assert!(message.contains("sha256:"), "it says which part: {message}");
    assert_eq!((registry.asked(BLOBS), worker.left()), (3, 0));
    for fault in [Fault::Cut, Fault::Status(503)] {
        registry.fail(BLOBS, fault, 2);
        worker.images.ensure(&name, Always, &notes).await.unwrap();
        engine.docker.remove_image(&name, None::<RemoveImageOptions>, None).await.unwrap();
    }
    registry.set_fault(Some((MANIFESTS, Fault::Status(503))));
    let (code, message) = refusal(worker.images.ensure(&name, Always, &notes).await);
    assert_eq!(code, Code::ImagePullFailed, "{message}");
    assert!(message.contains("503"), "{message}");
}

#[tokio::test]
async fn what_the_registry_has_not_or_does_not_answer_is_told() {
    let engine = engine!();
    let registry = Registry::start().await;
    let worker = Worker::new(&engine, registries(&registry, json!({"scheme": "http"})));
    let notes = Notes::nowhere();
    let (code, message) = refusal(worker.images.ensure(&format!("{}/none", registry.host()), Always, &notes).await);
    assert_eq!(code, Code::ImageNotFound, "{message}");
    let gone = format!("{}/gone", registry.host());
    let settings = registries(&registry, json!({"scheme": "http"}));
    drop(registry);
    let worker = Worker::new(&engine, settings);
    let (code, message) = refusal(worker.images.ensure(&gone, Always, &notes).await);
    assert_eq!(code, Code::ImagePullFailed, "{message}");
    assert!(message.contains("refused"), "{message}");
}

#[tokio::test]
async fn a_pull_of_ours_that_nobody_waits_for_is_given_up() {
    let engine = engine!();
    let registry = Registry::start().await;
    let name = registry.push(&engine, "lonely", architecture());
    registry.set_fault(Some((BLOBS, Fault::Slow(20 << 10))));
    let worker = Worker::new(&engine, registries(&registry, json!({"scheme": "http"})));
    {
        let notes = Notes::nowhere();
        let mut ensured = std::pin::pin!(worker.images.ensure(&name, IfNotPresent, &notes));
        let under_way = crate::support::eventually("the pull is under way", async || registry.asked(BLOBS) >= 2);
        tokio::select! {
            ensured = &mut ensured => panic!("{ensured:?}"),
            () = under_way => {}
        }
    }
    crate::support::eventually("hung up", async || registry.given_up() > 0).await;
    crate::support::eventually("nothing left", async || worker.left() == 0).await;
}
