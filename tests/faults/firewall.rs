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
    /// Swallows what goes to and comes from `ports`.
    pub fn drop(ports: &[u16], way: Way) -> Self {
        let mut firewall = Self { rules: Vec::new() };
        for port in ports {
            let rule = |side: &str| {
                let rule = format!("INPUT -i lo -p tcp {side} {port} -m comment --comment shoal-test -j DROP");
                rule.split(' ').map(str::to_owned).collect::<Vec<_>>()
            };
            if way != Way::In {
                firewall.add(rule("--dport"));
            }
            if way != Way::Out {
                firewall.add(rule("--sport"));
            }
        }
        firewall
    }

    fn add(&mut self, rule: Vec<String>) {
        iptables("-I", &rule).unwrap_or_else(|e| panic!("{rule:?}: {e}"));
        self.rules.push(rule);
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
