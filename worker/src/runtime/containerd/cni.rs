//! Networks by CNI: programs that are asked, one after the other, to connect a namespace and to take the connection back.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

/// Where operators describe their networks.
const CONFIGS: &str = "/etc/cni/net.d";
/// The engine's default network as tasks call it, and the name under which an operator may describe it otherwise.
pub(super) const BRIDGE: &str = "bridge";
const OURS: &str = "shoal";
/// The interface in the container.
const INTERFACE: &str = "eth0";
/// The bridge of our own network, and its addresses.
const DEVICE: &str = "shoal0";
const SUBNET: &str = "10.87.0.0/16";
/// Whom each address is given to; of a running machine only, as the namespaces are.
const LEASES: &str = "/run/shoal/cni";
/// The oldest that every plugin of today still speaks.
const VERSION: &str = "0.4.0";
/// For one program.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a network cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum CniError {
    /// Nobody describes it.
    #[error("there is no network `{0}`: {CONFIGS} describes none of that name")]
    Unknown(String),
    /// Its description cannot be read.
    #[error("the network `{name}` is not described well: {why}")]
    Description { name: String, why: String },
    /// A program is missing.
    #[error(
        "there is no CNI plugin `{plugin}` in {folders}; install them (Debian: containernetworking-plugins) or name their folder with --cni-bin-dir"
    )]
    NoPlugin { plugin: String, folders: String },
    /// The result cannot be kept.
    #[error("the address cannot be written to {path}")]
    Kept { path: PathBuf, source: io::Error },
    /// A program failed.
    #[error("the CNI plugin `{plugin}` failed: {why}")]
    Plugin { plugin: String, why: String },
}

/// A network: its plugins in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Network {
    name: String,
    version: String,
    plugins: Vec<Value>,
}

/// The description of a network as CNI has it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Description {
    name: String,
    #[serde(default)]
    cni_version: Option<String>,
    #[serde(default)]
    plugins: Vec<Value>,
}

/// What is connected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attachment<'a> {
    /// The container's id.
    pub(super) id: &'a str,
    /// Its namespace's file.
    pub(super) namespace: &'a Path,
    /// Where programs are looked for.
    pub(super) folders: &'a [PathBuf],
    /// Where the result is kept for its end: some take back only what they are told of.
    pub(super) result: &'a Path,
}

impl Network {
    /// The network that tasks call so: `bridge`, or one that an operator describes.
    pub(super) fn find(name: &str, folders: &[PathBuf]) -> Result<Self, CniError> {
        let wanted = if name == BRIDGE { OURS } else { name };
        match described(Path::new(CONFIGS), wanted)? {
            Some(network) => Ok(network),
            None if name == BRIDGE => Ok(bridge(find(folders, "firewall").is_some())),
            None => Err(CniError::Unknown(name.to_owned())),
        }
    }

    /// Connects it and tells its address, IPv4 first. What fails half way is to be taken back by [`Network::disconnect`].
    pub(super) async fn connect(&self, at: Attachment<'_>) -> Result<Option<IpAddr>, CniError> {
        let mut result = Value::Null;
        for plugin in &self.plugins {
            result = self.call("ADD", plugin, &result, at).await?;
            let kept = tokio::fs::write(at.result, result.to_string()).await;
            kept.map_err(|error| CniError::Kept { path: at.result.to_owned(), source: error })?;
        }
        Ok(address(&result))
    }

    /// Takes the connection back, whatever of it there is. May be done again.
    pub(super) async fn disconnect(&self, at: Attachment<'_>) -> Result<(), CniError> {
        let result = tokio::fs::read(at.result).await.unwrap_or_default();
        let result: Value = serde_json::from_slice(&result).unwrap_or_default();
        let mut ended = Ok(());
        for plugin in self.plugins.iter().rev() {
            // One that fails must not keep the others from freeing what they hold.
            if let Err(error) = self.call("DEL", plugin, &result, at).await {
                ended = Err(error);
            }
        }
        ended
    }

    async fn call(&self, verb: &str, plugin: &Value, before: &Value, at: Attachment<'_>) -> Result<Value, CniError> {
        let kind = plugin["type"].as_str().unwrap_or_default().to_owned();
        let failed = |why: String| CniError::Plugin { plugin: kind.clone(), why };
        let program = find(at.folders, &kind).ok_or_else(|| CniError::NoPlugin {
            plugin: kind.clone(),
            folders: at.folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", "),
        })?;
        let mut config = plugin.clone();
        config["name"] = json!(self.name);
        config["cniVersion"] = json!(self.version);
        if !before.is_null() {
            config["prevResult"] = before.clone();
        }
        let path = std::env::join_paths(at.folders).unwrap_or_default();
        let mut child = tokio::process::Command::new(program)
            .env_clear()
            // iptables is found by it.
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", at.id)
            .env("CNI_NETNS", at.namespace)
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let asking = async {
            let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
            // One that does not read tells why on its way out.
            let _ = stdin.write_all(config.to_string().as_bytes()).await;
            drop(stdin);
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(PATIENCE, asking).await;
        let output = output.map_err(|_| failed(format!("no answer within {} s", PATIENCE.as_secs())))?;
        let output = output.map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(said(&output.stdout, &output.stderr)));
        }
        match verb {
            "ADD" => {
                serde_json::from_slice(&output.stdout).map_err(|error| failed(format!("unreadable answer: {error}")))
            }
            _ => Ok(Value::Null),
        }
    }
}

/// A plugin's own words for its failure.
fn said(stdout: &[u8], stderr: &[u8]) -> String {
    let told: Value = serde_json::from_slice(stdout).unwrap_or_default();
    let words = [&told["msg"], &told["details"]].map(|part| part.as_str().unwrap_or_default()).join(" ");
    match words.trim() {
        "" => String::from_utf8_lossy(if stderr.is_empty() { stdout } else { stderr }).trim().to_owned(),
        words => words.to_owned(),
    }
}

fn find(folders: &[PathBuf], plugin: &str) -> Option<PathBuf> {
    // A name and no path: what an operator's file says is not followed anywhere else.
    let is_name = !plugin.is_empty() && !plugin.contains('/');
    folders.iter().map(|folder| folder.join(plugin)).find(|path| is_name && path.is_file())
}

/// Our own network: a bridge on this machine whose containers reach the outside by its address.
fn bridge(has_firewall: bool) -> Network {
    let mut plugins = vec![json!({
        "type": "bridge",
        "bridge": DEVICE,
        "isGateway": true,
        "ipMasq": true,
        "hairpinMode": true,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": SUBNET}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": LEASES,
        },
    })];
    // Where the machine forwards nothing by default, as Docker has it.
    plugins.extend(has_firewall.then(|| json!({"type": "firewall"})));
    Network { name: OURS.to_owned(), version: VERSION.to_owned(), plugins }
}

/// The network of this name in a folder of descriptions.
fn described(folder: &Path, name: &str) -> Result<Option<Network>, CniError> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        let is_list = match file.extension().and_then(|suffix| suffix.to_str()) {
            Some("conflist") => true,
            Some("conf" | "json") => false,
            _ => continue,
        };
        let Ok(value) = serde_json::from_slice::<Value>(&std::fs::read(&file).unwrap_or_default()) else { continue };
        if value["name"] != name {
            continue;
        }
        let why =
            |why: String| CniError::Description { name: name.to_owned(), why: format!("{}: {why}", file.display()) };
        let read: Description = serde_json::from_value(value.clone()).map_err(|error| why(error.to_string()))?;
        let plugins = if is_list { read.plugins } else { vec![value] };
        if plugins.is_empty() {
            return Err(why("it lists no plugins".to_owned()));
        }
        let version = read.cni_version.unwrap_or_else(|| VERSION.to_owned());
        return Ok(Some(Network { name: read.name, version, plugins }));
    }
    Ok(None)
}

/// The container's address in a result, IPv4 first.
fn address(result: &Value) -> Option<IpAddr> {
    let all: Vec<IpAddr> = result["ips"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
        .collect();
    all.iter().find(|address| address.is_ipv4()).or(all.first()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operators_description_is_found_by_its_name_and_wins() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write(
            "10-a.conflist",
            r#"{"name":"backend","cniVersion":"1.0.0","plugins":[{"type":"ptp"},{"type":"tuning"}]}"#,
        );
        write("20-b.conf", r#"{"name":"plain","type":"macvlan"}"#);
        write("30-c.conflist", r#"{"name":"empty","plugins":[]}"#);
        write("40-d.conflist", "no json");
        let backend = described(folder.path(), "backend").unwrap().unwrap();
        assert_eq!((backend.version.as_str(), backend.plugins.len()), ("1.0.0", 2));
        assert_eq!(described(folder.path(), "plain").unwrap().unwrap().plugins[0]["type"], "macvlan");
        assert!(matches!(described(folder.path(), "empty"), Err(CniError::Description { .. })));
        assert_eq!(described(folder.path(), "other").unwrap(), None);
        assert_eq!(described(Path::new("/nonexistent"), "other").unwrap(), None);
    }

    #[test]
    fn an_address_is_the_first_of_version_4() {
        let result = json!({"ips": [{"address": "fd00::2/64"}, {"address": "10.87.0.2/16"}]});
        assert_eq!(address(&result), Some("10.87.0.2".parse().unwrap()));
        assert_eq!(address(&json!({"ips": [{"address": "fd00::2/64"}]})), Some("fd00::2".parse().unwrap()));
        assert_eq!(address(&json!({})), None);
    }

    #[test]
    fn a_plugin_is_a_name_and_no_path() {
        assert_eq!(find(&["/usr/bin".into()], "../bin/env"), None);
        assert_eq!(find(&["/usr/bin".into()], "env"), Some("/usr/bin/env".into()));
    }
}
