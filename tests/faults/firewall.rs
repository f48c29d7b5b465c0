//! Rules of the machine's packet filter that swallow what goes to or comes from one port of loopback.

use std::process::Command;

/// Which way packets vanish, seen from the program that connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// What it sends.
    Out,
    /// What it is sent.
    In,
    /// Both.
    Both,
}

/// Rules that stand as long as this value.
pub struct Firewall {
    rules: Vec<Vec<String>>,
}

impl Firewall {
    /// Swallows what goes to and comes from `ports`; none where no rules can be made (in CI a failure).
    pub fn swallow(ports: &[u16], way: Way) -> Option<Self> {
        let mut firewall = Self { rules: Vec::new() };
        for port in ports {
            let rule = |side: &str| {
                let rule = format!("INPUT -i lo -p tcp {side} {port} -m comment --comment shoal-test -j DROP");
                rule.split(' ').map(str::to_owned).collect::<Vec<_>>()
            };
            let sides = [(way != Way::In, "--dport"), (way != Way::Out, "--sport")];
            for (_, side) in sides.into_iter().filter(|(is_meant, _)| *is_meant) {
                let rule = rule(side);
                if let Err(reason) = iptables("-I", &rule) {
                    let in_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
                    assert!(!in_ci, "in CI no fault is skipped, but {rule:?}: {reason}");
                    eprintln!("SKIPPED: no rules of the packet filter can be made: {reason}");
                    return None;
                }
                firewall.rules.push(rule);
            }
        }
        Some(firewall)
    }
}

fn iptables(verb: &str, rule: &[String]) -> Result<(), String> {
    let output = Command::new("iptables").arg("-w").arg(verb).args(rule).output().map_err(|e| e.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        for rule in &self.rules {
            if let Err(error) = iptables("-D", rule) {
                eprintln!("rule {rule:?} stays: {error}");
            }
        }
    }
}
