//! What a container is confined to, seen from outside by inspecting a running one, and from inside (X4, C4).

use schemas::{Code, State};
use serde_json::{Value, json};

use super::{code, nothing_left, result};
use crate::support::{Fleet, IMAGE, With, container, engine, eventually, shell_in};

#[tokio::test]
async fn a_running_container_is_confined() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").start().await;
    fleet.publish("default.a", &shell_in("sleep 600").with("stop_grace", "0s")).await;
    let container = engine.running("a").await;
    let host = &container["HostConfig"];
    assert_eq!(host["CapDrop"], json!(["ALL"]), "{host}");
    assert!(host["CapAdd"].as_array().is_none_or(Vec::is_empty), "{host}");
    let options: Vec<&str> = host["SecurityOpt"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert!(options.iter().any(|option| option.starts_with("no-new-privileges")), "{options:?}");
    assert!(!options.iter().any(|option| option.contains("unconfined")), "{options:?}");
    assert_eq!(host["Privileged"], false);
    assert_eq!(host["NanoCpus"], 1_000_000_000_i64);
    // No swap beyond the memory.
    assert_eq!((&host["Memory"], &host["MemorySwap"]), (&json!(512 << 20), &json!(512 << 20)));
    assert_eq!(host["PidsLimit"], 512);
    assert_eq!(host["NetworkMode"], "none");
    for namespace in ["PidMode", "IpcMode", "UTSMode", "UsernsMode", "CgroupnsMode"] {
        assert_ne!(host[namespace], "host", "{namespace}");
        assert!(!host[namespace].as_str().unwrap_or_default().starts_with("container:"), "{namespace}");
    }
    assert!(host["Devices"].as_array().is_none_or(Vec::is_empty), "{host}");
    assert!(host["PortBindings"].as_object().is_none_or(serde_json::Map::is_empty), "{host}");
    assert!(!container["Mounts"].to_string().contains("docker.sock"), "{}", container["Mounts"]);
    assert_ne!(host["RestartPolicy"]["Name"], "always");
    assert_ne!(host["AutoRemove"], true, "its end is read before it goes");
    fleet.shoal(&["cancel", "default.a"]).await.ok();
    nothing_left(&engine, &fleet, "w").await;
}

#[tokio::test]
async fn from_inside_there_is_no_way_out() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").slots(2).start().await;
    let script = "{ grep CapEff /proc/self/status; grep CapBnd /proc/self/status; grep NoNewPrivs /proc/self/status; \
                  ls /sys/class/net; ls /var/run/docker.sock 2>&1; } > $SHOAL_RESULT_FILE; \
                  mount -t tmpfs x /mnt 2> /dev/null && echo mounted >> $SHOAL_RESULT_FILE; \
                  chown 1:1 /etc/passwd 2> /dev/null && echo chowned >> $SHOAL_RESULT_FILE; true";
    let seen = result(&fleet.run("default.a", &shell_in(script)).await);
    let words: Vec<&str> = seen.split_whitespace().collect();
    assert!(words.starts_with(&["CapEff:", "0000000000000000", "CapBnd:", "0000000000000000"]), "{seen}");
    assert!(words.windows(2).any(|pair| pair == ["NoNewPrivs:", "1"]), "{seen}");
    assert!(words.contains(&"lo") && !words.contains(&"eth0"), "{seen}");
    assert!(!words.contains(&"mounted") && !words.contains(&"chowned"), "{seen}");
    assert!(seen.contains("No such file"), "no engine socket: {seen}");
}

#[tokio::test]
async fn limits_are_the_tasks_else_the_workers_and_none_only_by_a_word() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let worker = engine.worker(&fleet, "w").slots(4).env("SHOAL_CONTAINER_CPU", "250m");
    let _worker = worker.env("SHOAL_CONTAINER_MEMORY", "64Mi").env("SHOAL_CONTAINER_PIDS", "33").start().await;
    let sleep = || shell_in("sleep 600").with("stop_grace", "0s");
    let own = json!({"cpu": "500m", "memory": "128Mi", "pids": 44});
    let none = json!({"cpu": "unlimited", "memory": "unlimited", "pids": "unlimited"});
    let mebi = 1 << 20;
    let table = [
        ("worker", sleep(), (250_000_000, 64 * mebi, Some(33))),
        ("task", sleep().with("limits", own), (500_000_000, 128 * mebi, Some(44))),
        ("none", sleep().with("limits", none), (0, 0, None)),
    ];
    for (id, task, (cpu, memory, pids)) in table {
        fleet.publish(&format!("default.{id}"), &task).await;
        let container = engine.running(id).await;
        let host = &container["HostConfig"];
        assert_eq!((&host["NanoCpus"], &host["Memory"]), (&json!(cpu), &json!(memory)), "{id}");
        // The engine writes no bound on processes as null, 0 or -1.
        assert_eq!(host["PidsLimit"].as_i64().filter(|pids| *pids > 0), pids, "{id}");
        fleet.shoal(&["cancel", &format!("default.{id}")]).await.ok();
    }
    // Nothing and nonsense are no limits.
    for (n, limits) in [json!({"memory": "0"}), json!({"pids": 0}), json!({"memory": "many"})].into_iter().enumerate() {
        let record = fleet.run(&format!("default.bad-{n}"), &shell_in("true").with("limits", limits.clone())).await;
        assert_eq!(code(&record), Code::InvalidTask, "{limits}");
    }
    // Less than any engine takes is said with its reason, and nothing is left of it.
    let record = fleet.run("default.small", &shell_in("true").with("limits", json!({"memory": "1Ki"}))).await;
    assert_eq!(record.state, State::Failed, "{record:?}");
    nothing_left(&engine, &fleet, "w").await;
}

#[tokio::test]
async fn a_read_only_image_leaves_tmp_and_the_work_folder() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").start().await;
    let script = "touch /etc/x 2> /dev/null && exit 9; touch /tmp/x /shoal/x && echo fine > $SHOAL_RESULT_FILE";
    let record = fleet.run("default.a", &shell_in(script).workload("read_only", true)).await;
    assert_eq!(result(&record).trim(), "fine");
}

#[tokio::test]
async fn a_shared_network_is_one_loopback_a_worker_and_goes_with_it() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let mut worker = engine.worker(&fleet, "w").slots(4).env("SHOAL_ALLOWED_NETWORKS", "shared").start().await;
    let serve = "echo hello | nc -l -p 4711";
    fleet.publish("default.server", &shell_in(serve).workload("network", "shared").with("timeout", "60s")).await;
    let ask = "ls /sys/class/net > /tmp/net; i=0; while ! nc 127.0.0.1 4711 < /dev/null > /tmp/said 2> /dev/null || \
               ! [ -s /tmp/said ]; do i=$((i+1)); [ $i -lt 200 ] || exit 9; sleep 0.1; done; \
               cat /tmp/said /tmp/net > $SHOAL_RESULT_FILE";
    let record = fleet.run("default.client", &shell_in(ask).workload("network", "shared")).await;
    let said = result(&record);
    assert!(said.starts_with("hello\n") && said.contains("lo"), "{said}");
    assert!(!said.contains("eth0"), "{said}");
    assert_eq!(fleet.ended("default.server").await.state, State::Succeeded);
    // One that asks for none hears nothing of it.
    let alone = fleet.run("default.alone", &shell_in("nc -w 1 127.0.0.1 4711 < /dev/null && exit 9; true")).await;
    assert_eq!(alone.state, State::Succeeded, "{alone:?}");
    engine.is_clean().await;
    let kinds: Vec<Value> = engine.containers().await.into_iter().map(|c| c["Labels"]["shoal.kind"].clone()).collect();
    assert_eq!(kinds, [json!("holder")]);
    worker.terminate();
    assert_eq!(worker.wait().await.code, 0);
    eventually("the holder goes with its worker", async || match engine.containers().await {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    })
    .await;
}

#[tokio::test]
async fn a_lost_holder_of_the_shared_network_is_made_again() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").env("SHOAL_CONTAINER_NETWORK", "shared").start().await;
    for n in 0..3 {
        let record = fleet.run(&format!("default.t-{n}"), &shell_in("true").retried(3, "100ms")).await;
        assert_eq!(record.state, State::Succeeded, "{record:?}");
        for container in engine.containers().await {
            engine.remove(&format!("containers/{}", container["Id"].as_str().expect("an id"))).await;
        }
    }
}

#[tokio::test]
async fn a_bridge_by_setting_is_a_network_with_an_address() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").env("SHOAL_CONTAINER_NETWORK", "bridge").slots(2).start().await;
    let record = fleet.run("default.a", &shell_in("ip -4 -o addr show eth0 > $SHOAL_RESULT_FILE")).await;
    assert!(result(&record).contains("inet "), "{record:?}");
    // A task may always ask for less.
    let none = container(IMAGE, &["sh", "-c", "ls /sys/class/net > $SHOAL_RESULT_FILE"]).workload("network", "none");
    assert!(!result(&fleet.run("default.b", &none).await).contains("eth0"));
    nothing_left(&engine, &fleet, "w").await;
}
