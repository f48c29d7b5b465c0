//! What this machine's engine really says is understood.

use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType, PortBinding};
use bollard::query_parameters::{CreateContainerOptions, RemoveContainerOptions};
use schemas::Code;
use schemas::task::Container;
use shoal_worker::runtime::StartError;
use shoal_worker::runtime::docker::labels::own_labels;
use shoal_worker::runtime::docker::refusal::{create_refused, start_refused};

use crate::support::{Engine, IMAGE, engine};

/// Why it does not start.
async fn refusal(engine: &Engine, body: ContainerCreateBody) -> StartError {
    let asked = format!("{:?}", body.cmd);
    let body = ContainerCreateBody { labels: Some(own_labels(&engine.owner, "test")), ..body };
    let (docker, task) = (&engine.docker, Container::new(IMAGE));
    let id = match docker.create_container(None::<CreateContainerOptions>, body).await {
        Ok(created) => created.id,
        Err(error) => return create_refused(error, &task),
    };
    let started = docker.start_container(&id, None).await;
    let force = RemoveContainerOptions { force: true, v: true, ..RemoveContainerOptions::default() };
    docker.remove_container(&id, Some(force)).await.unwrap();
    start_refused(started.expect_err(&asked), &task)
}

fn body(command: &str) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(IMAGE.into()),
        cmd: Some(vec![command.into()]),
        host_config: Some(HostConfig { network_mode: Some("none".into()), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    }
}

fn on_host(host_config: HostConfig) -> ContainerCreateBody {
    ContainerCreateBody { host_config: Some(host_config), ..body("true") }
}

#[tokio::test]
async fn programs_that_cannot_run_are_told() {
    let engine = engine!();
    for missing in ["nosuchprog", "/no/such/prog", "/etc/passwd/x"] {
        match refusal(&engine, body(missing)).await {
            StartError::CommandNotFound { program } => assert_eq!(program, missing),
            other => panic!("{missing}: {other:?}"),
        }
    }
    for closed in ["/etc/passwd", "/etc"] {
        match refusal(&engine, body(closed)).await {
            StartError::CommandNotExecutable { program, .. } => assert_eq!(program, closed),
            other => panic!("{closed}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn limits_below_what_the_engine_holds_are_told() {
    let engine = engine!();
    let tiny = refusal(&engine, on_host(HostConfig { memory: Some(4096), ..HostConfig::default() })).await;
    assert!(matches!(tiny, StartError::LimitUnsupported { limit: "memory", .. }), "{tiny:?}");
    let huge = refusal(&engine, on_host(HostConfig { nano_cpus: Some(1 << 50), ..HostConfig::default() })).await;
    assert!(matches!(huge, StartError::LimitUnsupported { limit: "cpu", .. }), "{huge:?}");
}

#[tokio::test]
async fn the_rest_has_a_code_of_its_own() {
    let engine = engine!();
    let user = |user: &str| ContainerCreateBody { user: Some(user.into()), ..body("true") };
    let image = |image: &str| ContainerCreateBody { image: Some(image.into()), ..body("true") };
    let mount = |source: &str, target: &str| {
        let bind = Mount {
            typ: Some(MountType::BIND),
            source: Some(source.into()),
            target: Some(target.into()),
            ..Mount::default()
        };
        on_host(HostConfig { mounts: Some(vec![bind]), ..HostConfig::default() })
    };
    let network = |name: &str| on_host(HostConfig { network_mode: Some(name.into()), ..HostConfig::default() });
    let published = |port: &str| {
        let binding = PortBinding { host_port: Some(port.to_owned()), host_ip: Some("127.0.0.1".to_owned()) };
        on_host(HostConfig {
            network_mode: Some("bridge".into()),
            port_bindings: Some([("80/tcp".to_owned(), Some(vec![binding]))].into()),
            ..HostConfig::default()
        })
    };
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let holder = ContainerCreateBody {
        cmd: Some(vec!["sleep".into(), "60".into()]),
        exposed_ports: Some(vec!["80/tcp".into()]),
        labels: Some(own_labels(&engine.owner, "test")),
        ..published(&free)
    };
    let holder = engine.docker.create_container(None::<CreateContainerOptions>, holder).await.unwrap();
    engine.docker.start_container(&holder.id, None).await.unwrap();
    for (body, expected) in [
        (user("nosuch"), Code::UserNotFound),
        (user("root:nosuch"), Code::UserNotFound),
        (image("no-such-image-x:latest"), Code::ImageNotFound),
        (image("UPPER:x"), Code::InvalidImage),
        (image("a@sha256:abc"), Code::InvalidImage),
        (mount("/nonexistent", "/x"), Code::InvalidTask),
        (mount("/tmp", "/etc/passwd"), Code::InvalidTask),
        (ContainerCreateBody { working_dir: Some("relative".into()), ..body("true") }, Code::InvalidTask),
        (on_host(HostConfig { cap_add: Some(vec!["NOPE".into()]), ..HostConfig::default() }), Code::InvalidTask),
        (on_host(HostConfig { runtime: Some("nope".into()), ..HostConfig::default() }), Code::PolicyForbidden),
        (network("no-such-network"), Code::PolicyForbidden),
        (ContainerCreateBody { exposed_ports: Some(vec!["80/tcp".into()]), ..published(&free) }, Code::PortTaken),
    ] {
        match refusal(&engine, body).await {
            StartError::Refused { code, message } => assert_eq!(code, expected, "{message}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
    let no_command = ContainerCreateBody { cmd: None, ..body("") };
    let refused = refusal(&engine, no_command).await;
    assert!(matches!(refused, StartError::CommandNotFound { .. }), "{refused:?}");
}

#[tokio::test]
async fn a_name_that_is_taken_may_be_free_later() {
    let engine = engine!();
    let name = format!("shoal-{}", engine.owner.fleet);
    let named = || Some(CreateContainerOptions { name: Some(name.clone()), ..CreateContainerOptions::default() });
    let body = ContainerCreateBody { labels: Some(own_labels(&engine.owner, "test")), ..body("true") };
    engine.docker.create_container(named(), body.clone()).await.unwrap();
    let error = engine.docker.create_container(named(), body).await.unwrap_err();
    let refused = create_refused(error, &Container::new(IMAGE));
    assert!(matches!(refused, StartError::Failed { .. }), "{refused:?}");
}
