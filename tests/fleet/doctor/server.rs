//! The server, its stores, what a user may do, and the clock.

use std::path::Path;
use std::time::Duration;

use async_nats::ConnectOptions;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::{codes, examine, examine_with, find, found, message};
use crate::support::{Client, Fleet, Nats, Publish, With, eventually, noop, shell};

async fn on(nats: &Nats) -> Fleet {
    Fleet::builder().on(&nats.url()).await
}

/// A server that says that it is of this version, and knows how to answer a ping.
async fn pretender(version: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("nats://{}", listener.local_addr().expect("its address"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            let info =
                json!({"server_id": "X", "version": version, "proto": 1, "headers": true, "max_payload": 1048576});
            let _ = stream.get_mut().write_all(format!("INFO {info}\r\n").as_bytes()).await;
            let mut line = String::new();
            while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
                if line.starts_with("PING") {
                    let _ = stream.get_mut().write_all(b"PONG\r\n").await;
                }
                line.clear();
            }
        }
    });
    url
}

#[tokio::test]
async fn an_old_server_is_told_by_its_version() {
    let fleet = Fleet::start().await;
    let url = pretender("2.11.4").await;
    let report = examine_with(&fleet, &[], &[("SHOAL_NATS_URL", &url)]).await;
    assert_eq!(codes(&report), [("server_too_old", "the server")]);
    assert_eq!(report["findings"][0]["evidence"], json!({"version": "2.11.4", "needed": "2.12.0"}));

    // Old enough to be refused by nobody, too old for cron; and it has no JetStream at all.
    let url = pretender("2.12.3").await;
    let report = examine_with(&fleet, &[], &[("SHOAL_NATS_URL", &url)]).await;
    assert!(find(&report, "server_without_cron").is_some(), "{report}");
    // What was not answered is said, each by itself.
    let failed = codes(&report).into_iter().filter(|(code, _)| *code == "check_failed").count();
    assert!(failed >= 5, "{report}");
}

#[tokio::test]
async fn no_server_at_all_is_exit_code_3() {
    let fleet = Fleet::builder().bare().start().await;
    let output = fleet.spawn_with(&["doctor"], "", &[("SHOAL_NATS_URL", "nats://127.0.0.1:1")]).wait().await;
    assert_eq!(output.code, 3, "{output:?}");
    for wrong in [["--wait", "10ms"], ["--monitor", "https://a"], ["--role", "boss"], ["--heartbeat", "0s"]] {
        let output = fleet.shoal(&[&["doctor"], &wrong[..]].concat()).await;
        assert_eq!(output.code, 2, "{output:?}");
    }
}

#[tokio::test]
async fn a_server_without_jetstream_for_us_is_told() {
    let settings = "accounts { A { users: [ { user: a, password: a } ] } }\nno_auth_user: a".to_owned();
    let nats = Nats::with("nats", |_| settings).await;
    let fleet = Fleet::builder().bare().on(&nats.url()).await;
    let report = examine(&fleet, &[]).await;
    assert_eq!(codes(&report)[0], ("jetstream_unavailable", "the server"), "{report}");
}

#[tokio::test]
async fn a_small_max_payload_is_told() {
    let nats = Nats::with("nats", |_| "max_payload: 131072".into()).await;
    let fleet = on(&nats).await;
    let report = examine(&fleet, &[]).await;
    let finding = find(&report, "max_payload_small").expect("it");
    assert_eq!(finding["evidence"]["max_payload"], 131_072);
}

#[tokio::test]
async fn little_room_is_told_before_it_is_none() {
    let settings = "accounts { A { jetstream: { max_file: 20MB }, users: [ { user: a, password: a } ] } }\n\
                    no_auth_user: a";
    let nats = Nats::with("nats", |_| settings.into()).await;
    let fleet = Fleet::builder().env("SHOAL_LOGS_BYTES", "1Mi").on(&nats.url()).await;
    assert!(find(&examine(&fleet, &[]).await, "storage_low").is_none());
    let large = noop().to_string().replace("\"noop\"", &format!("\"noop\",\"payload\":\"{}\"", "x".repeat(900_000)));
    for n in 0..19 {
        fleet.send(Publish::new(fleet.subject(&format!("default.t{n}")), large.as_bytes())).await.expect("stored");
    }
    let report = examine(&fleet, &[]).await;
    let finding = find(&report, "storage_low").expect("it");
    assert_eq!((finding["severity"].as_str(), finding["about"].as_str()), (Some("warning"), Some("the account")));
    let mut n = 19;
    while fleet.send(Publish::new(fleet.subject(&format!("default.t{n}")), large.as_bytes())).await.is_ok() {
        n += 1;
    }
    assert_eq!(find(&examine(&fleet, &[]).await, "storage_low").expect("it")["severity"], "error");
}

#[tokio::test]
async fn what_only_monitoring_sees_is_looked_at_there() {
    let mut fleet = Fleet::start().await;
    let page = fleet.nats().monitor_address();
    let report = examine(&fleet, &["--monitor", &page]).await;
    let finding = find(&report, "sync_interval_long").expect("it");
    assert_eq!(finding["severity"], "info");
    assert!(message(finding).contains("up to the last 2m"), "{finding}");
    assert!(!report["not_seen"].to_string().contains("syncs"), "{report}");

    let always =
        |folder: &Path| format!("jetstream {{ store_dir: \"{}/own\", sync_interval: always }}", folder.display());
    let always = Nats::with("nats", always).await;
    let report = examine_with(&fleet, &["--monitor", &always.monitor_address()], &[]).await;
    assert!(find(&report, "sync_interval_long").is_none(), "{report}");

    let report = examine(&fleet, &["--monitor", "http://127.0.0.1:1"]).await;
    assert!(find(&report, "monitor_unreachable").is_some(), "{report}");
}

#[tokio::test]
async fn missing_and_drifted_stores_are_what_an_apply_would_mend() {
    let fleet = Fleet::start().await;
    fleet.js.delete_stream("SHOAL_LOGS").await.expect("deleted");
    let mut config = fleet.stream("SHOAL_DEAD").await.cached_info().config.clone();
    config.allow_direct = false;
    config.max_age = Duration::from_secs(86_400);
    fleet.js.update_stream(&config).await.expect("updated");
    let report = examine(&fleet, &[]).await;
    assert_eq!(find(&report, "store_missing").expect("it")["evidence"]["missing"], json!(["SHOAL_LOGS"]));
    let drifted = find(&report, "store_drifted").expect("it");
    assert_eq!(drifted["about"], "stream SHOAL_DEAD");
    assert_eq!(drifted["evidence"]["allow_direct"]["wanted"], true);
    let chosen = find(&report, "store_settings_differ").expect("it");
    assert_eq!((&chosen["severity"], &chosen["about"]), (&json!("info"), &json!("stream SHOAL_DEAD")));
    let told = examine(&fleet, &["--dead-kept", "1d"]).await;
    assert!(find(&told, "store_settings_differ").is_none(), "{told}");
    // Nothing was changed by looking.
    assert!(fleet.js.get_stream("SHOAL_LOGS").await.is_err());
    fleet.shoal(&["admin", "apply"]).await.ok();
    assert_eq!(codes(&examine(&fleet, &[]).await), [("no_dispatcher", "fleet shoal")]);
}

#[tokio::test]
async fn a_store_that_was_set_back_is_told_by_its_records() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    for n in 0..3 {
        fleet.run(&format!("default.t{n}"), &noop()).await;
    }
    fleet.js.delete_stream("SHOAL_TASKS").await.expect("deleted");
    fleet.shoal(&["admin", "apply"]).await.ok();
    let report = examine(&fleet, &[]).await;
    let finding = find(&report, "store_set_back").expect("it");
    assert_eq!((&finding["severity"], &finding["evidence"]["named_sequence"]), (&json!("error"), &json!(3)));

    // What a dispatcher wrote down of it.
    let _dispatcher = fleet.dispatcher(&[]).await;
    eventually("a dispatcher noted the loss", async || {
        let metadata = fleet.stream("SHOAL_TASKS").await.cached_info().config.metadata.clone();
        metadata.contains_key("shoal-loss").then_some(()).ok_or_else(|| format!("{metadata:?}"))
    })
    .await;
    let report = examine(&fleet, &[]).await;
    let finding = find(&report, "store_loss_reported").expect("it");
    assert_eq!((&finding["severity"], &finding["evidence"]["from"]), (&json!("error"), &json!(3)), "{finding}");
}

#[tokio::test]
async fn a_user_without_permission_is_told_what_it_lacks_and_what_could_not_be_seen() {
    let settings = r#"authorization { users: [
        { user: root, password: root }
        { user: few, password: few, permissions: {
            publish: ["shoal.tasks.>", "$JS.API.STREAM.INFO.>", "$JS.API.STREAM.MSG.GET.>", "$JS.API.DIRECT.GET.>",
                      "$JS.API.CONSUMER.LIST.>", "$SYS.REQ.USER.INFO", "$JS.API.INFO", "$SRV.PING.>", "shoal.control.*.info"]
            subscribe: ["_INBOX.>", "shoal.events.>"] } }
        { user: deaf, password: deaf, permissions: { publish: { deny: ["shoal.control.>", "$SRV.>"] } } }
        { user: blind, password: blind, permissions: { publish: ["shoal.tasks.>"], subscribe: ["_INBOX.>"] } }
    ] }"#;
    let nats = Nats::with("nats", |_| settings.into()).await;
    let url = |user: &str| nats.url().replace("nats://", &format!("nats://{user}:{user}@"));
    let client = ConnectOptions::with_user_and_password("root".into(), "root".into());
    let client = Client::connect_with(client, &nats.url(), "shoal").await;
    let fleet = Fleet::builder().with_client(&url("root"), client).await;
    let as_user = async |user: &str, args: &[&str]| examine_with(&fleet, args, &[("SHOAL_NATS_URL", &url(user))]).await;
    let missing = |report: &serde_json::Value| -> Vec<(String, String)> {
        let findings = report["findings"].as_array().expect("findings").iter();
        let of = findings.filter(|finding| finding["code"] == "permission_missing");
        of.map(|it| (it["severity"].as_str().unwrap().into(), it["about"].as_str().unwrap().into())).collect()
    };
    assert_eq!(missing(&as_user("root", &["--role", "worker"]).await), []);

    let report = as_user("few", &["--role", "submitter"]).await;
    let of = |severity: &str, about: &str| (severity.to_owned(), about.to_owned());
    let others = [of("info", "role dispatcher"), of("info", "role worker")];
    // Listing consumers is all that it lacks as a viewer: reading a single one.
    assert_eq!(missing(&report), [vec![of("warning", "role viewer")], others.to_vec()].concat(), "{report}");
    let report = as_user("few", &["--role", "worker"]).await;
    assert_eq!(missing(&report)[0], of("error", "role worker"));
    assert!(report["findings"].to_string().contains("publish $JS.ACK.>"), "{report}");

    // Who may not ask takes nobody for silent.
    let _worker = fleet.worker("w").start().await;
    let report = as_user("deaf", &[]).await;
    assert!(codes(&report).contains(&("check_failed", "what workers say when they are asked")), "{report}");
    assert!(find(&report, "agent_no_answer").is_none() && find(&report, "no_dispatcher").is_none(), "{report}");

    // One that may see nothing is told so, check by check, and in time.
    let report = as_user("blind", &[]).await;
    let failed: Vec<&str> =
        codes(&report).into_iter().filter(|(code, _)| *code == "check_failed").map(|(_, about)| about).collect();
    for about in ["permissions", "room for JetStream", "the clocks", "the registry of agents", "dead letters"] {
        assert!(failed.contains(&about), "{about}: {report}");
    }
}

/// What a role needs, as doctor tells one who has nothing, as permissions of a server.
async fn permissions() -> Vec<(String, String)> {
    let may = r#"publish: ["$SYS.REQ.USER.INFO"], subscribe: ["_INBOX.>"]"#;
    let settings = format!("authorization {{ users: [ {{ user: few, password: few, permissions: {{ {may} }} }} ] }}");
    let nats = Nats::with("nats", |_| settings).await;
    let url = nats.url().replace("nats://", "nats://few:few@");
    let fleet = Fleet::builder().bare().start().await;
    let report = examine_with(&fleet, &[], &[("SHOAL_NATS_URL", &url)]).await;
    let findings = report["findings"].as_array().expect("findings").iter();
    let lacking = findings.filter(|finding| finding["code"] == "permission_missing");
    let list = |finding: &serde_json::Value, what: &str| {
        let subjects = finding["evidence"]["missing"].as_array().expect("subjects").iter();
        let of = subjects.filter_map(|it| it.as_str().expect("text").strip_prefix(what));
        of.map(|subject| format!("\"{subject}\"")).collect::<Vec<_>>().join(", ")
    };
    let one = |finding: &serde_json::Value| {
        let role = finding["about"].as_str().expect("text").strip_prefix("role ").expect("a role").to_owned();
        let (publish, listen) = (list(finding, "publish "), list(finding, "subscribe "));
        (role, format!("publish: [{publish}], subscribe: [\"_INBOX.>\", {listen}]"))
    };
    lacking.map(one).collect()
}

#[tokio::test]
async fn what_doctor_says_that_a_role_needs_is_enough_for_it() {
    let roles = permissions().await;
    assert_eq!(roles.len(), 4, "{roles:?}");
    let user =
        |(role, may): &(String, String)| format!("{{ user: {role}, password: {role}, permissions: {{ {may} }} }}");
    let users = roles.iter().map(user).collect::<Vec<_>>().join("\n");
    let settings = format!("authorization {{ users: [ {{ user: root, password: root }}\n{users} ] }}");
    let nats = Nats::with("nats", |_| settings).await;
    let url = |user: &str| nats.url().replace("nats://", &format!("nats://{user}:{user}@"));
    let client = ConnectOptions::with_user_and_password("root".into(), "root".into());
    let client = Client::connect_with(client, &nats.url(), "shoal").await;
    let fleet = Fleet::builder().with_client(&url("root"), client).await;

    let (dispatcher, _) = fleet.dispatcher(&[("SHOAL_NATS_URL", &url("dispatcher"))]).await;
    let worker = fleet.worker("w").env("SHOAL_NATS_URL", &url("worker")).start().await;
    let task = shell("echo hi; echo done > a.txt; head -c 100000 /dev/zero > $SHOAL_RESULT_FILE");
    let task = task.with("artifacts", json!(["a.txt"]));
    let as_submitter = [("SHOAL_NATS_URL", url("submitter"))];
    let as_submitter = as_submitter.each_ref().map(|(name, value)| (*name, value.as_str()));
    let body = json!({"id": "a", "task": task}).to_string();
    fleet.spawn_with(&["submit", "-"], &body, &as_submitter).wait().await.ok();
    fleet.spawn_with(&["wait", "a"], "", &as_submitter).wait().await.ok();
    let record = fleet.ended("default.a").await;
    assert!(record.warnings.is_empty() && record.artifacts.len() == 1 && record.result.is_some(), "{record:?}");
    assert_eq!(fleet.messages("SHOAL_LOGS", "shoal.logs.default.a.*.stdout").await.len(), 1);
    fleet.publish("default.bad", &shell("exit 3")).await;
    fleet.dead_letter("default.bad").await;
    fleet.agent_is("w", schemas::AgentStatus::Ready).await;

    // And for doctor itself what a viewer has; a look at everything finds nothing else.
    for role in ["viewer", "root"] {
        let report = examine_with(&fleet, &["--role", "viewer"], &[("SHOAL_NATS_URL", &url(role))]).await;
        let trouble: Vec<_> = codes(&report)
            .into_iter()
            .filter(|(_, about)| !about.starts_with("role ") && *about != "permissions")
            .collect();
        assert_eq!(trouble, [], "{role}: {report}");
    }
    for program in [dispatcher, worker] {
        assert!(!program.stderr().contains("Violation"), "{}", program.stderr());
    }
}

#[tokio::test]
async fn growing_dead_letters_are_told_by_reason() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(4).start().await;
    for n in 0..4 {
        fleet.send(Publish::new(fleet.subject(&format!("default.g{n}")), "no task")).await.expect("stored");
    }
    for n in 0..4 {
        fleet.dead_letter(&format!("default.g{n}")).await;
    }
    assert!(find(&examine(&fleet, &[]).await, "dead_letters_growing").is_none(), "four are few");
    fleet.send(Publish::new(fleet.subject("default.g4"), "no task")).await.expect("stored");
    fleet.dead_letter("default.g4").await;
    let finding = found(&fleet, "dead_letters_growing", "dead letters", &[]).await;
    assert_eq!(finding["evidence"]["reasons"]["invalid_task"], 5);
    assert!(finding["next"].as_str().expect("text").contains("--reason invalid_task"), "{finding}");
}

/// Three servers that know each other.
async fn cluster() -> Vec<Nats> {
    let ports: Vec<u16> = (0..3).map(|_| 30_000 + rand::random::<u16>() % 2_000).collect();
    let routes: Vec<String> = ports.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
    let settings = |n: usize| {
        format!(
            "server_name: s{n}\ncluster {{ name: c, listen: \"127.0.0.1:{}\", routes: [{}] }}",
            ports[n],
            routes.join(", ")
        )
    };
    let servers = (0..3).map(|n| Nats::with("nats", move |_: &Path| settings(n)));
    futures_util::future::join_all(servers).await
}

#[tokio::test]
async fn few_copies_copies_that_are_away_and_ill_health_of_a_cluster_are_told() {
    let mut servers = cluster().await;
    let client = Client::connect(&servers[0].url(), "shoal").await;
    client.reachable().await;
    eventually("a leader of the cluster", async || {
        let page = servers[0].monitor("/jsz").await;
        match page["meta_cluster"]["leader"].as_str() {
            Some(leader) if !leader.is_empty() && page["meta_cluster"]["cluster_size"] == 3 => Ok(()),
            _ => Err(page.to_string()),
        }
    })
    .await;
    let urls = servers.iter().map(Nats::url).collect::<Vec<_>>().join(",");
    let fleet = Fleet::builder().bare().with_client(&urls, client).await;
    eventually("the stores", async || match fleet.shoal(&["admin", "apply"]).await {
        output if output.code == 0 => Ok(()),
        output => Err(format!("{output:?}")),
    })
    .await;
    let finding = found(&fleet, "replicas_low", "streams and buckets", &[]).await;
    assert_eq!(finding["evidence"]["servers"], 3);
    let all = schemas::Names::default().streams(&Default::default(), 1 << 20).len();
    assert_eq!(finding["evidence"]["stores"].as_array().expect("stores").len(), all);

    fleet.shoal(&["admin", "apply", "--replicas", "3"]).await.ok();
    eventually("all copies are whole", async || match codes(&examine(&fleet, &["--replicas", "3"]).await)[..] {
        [("no_dispatcher", _)] => Ok(()),
        ref others => Err(format!("{others:?}")),
    })
    .await;
    servers[2].kill();
    // One finding, however many stores there are.
    eventually("all its copies are behind", async || {
        let finding = found(&fleet, "replica_behind", "the server s2", &["--replicas", "3"]).await;
        match finding["evidence"]["copies"].as_array().expect("copies").len() {
            copies if copies == all => Ok(()),
            _ => Err(finding.to_string()),
        }
    })
    .await;

    // The one that is left has no majority, and says so of itself.
    servers[1].kill();
    let monitor = servers[0].monitor_address();
    let alone = servers[0].url();
    let finding = eventually("it is not well", async || {
        let report = examine_with(&fleet, &["--monitor", &monitor], &[("SHOAL_NATS_URL", &alone)]).await;
        find(&report, "server_unhealthy").cloned().ok_or_else(|| report.to_string())
    })
    .await;
    assert_eq!((&finding["severity"], &finding["about"]), (&json!("error"), &json!("the server s0")));
}
