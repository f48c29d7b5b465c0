//! Three real nats-servers that are one cluster.

use std::net::TcpListener;

use super::Nats;
use super::wait::eventually;

/// How many.
const SERVERS: usize = 3;

/// A cluster of three, each with its own store.
pub struct Cluster {
    /// Its servers. Any one may be killed and restarted.
    pub servers: Vec<Nats>,
}

impl Cluster {
    /// Starts three and waits until they have a leader.
    pub async fn start() -> Self {
        let ports: Vec<u16> = (0..SERVERS).map(|_| free_port()).collect();
        let routes: Vec<String> = ports.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let name = super::random_word();
        let start = |n: usize| {
            let settings = format!(
                "server_name: \"n{n}\"\n\
                 cluster {{ name: \"{name}\", listen: \"127.0.0.1:{}\", routes: [{}], no_advertise: true }}\n",
                ports[n],
                routes.join(", "),
            );
            Nats::with("nats", move |_| settings)
        };
        let servers = futures_util::future::join_all((0..SERVERS).map(start)).await;
        let cluster = Self { servers };
        cluster.healthy().await;
        cluster
    }

    /// The URLs of all, with commas.
    pub fn url(&self) -> String {
        self.servers.iter().map(Nats::url).collect::<Vec<_>>().join(",")
    }

    /// Waits until every server that runs is caught up.
    pub async fn healthy(&self) {
        for (n, server) in self.servers.iter().enumerate() {
            if server.runs() {
                eventually(format!("server n{n} is caught up"), async || server.healthy().await).await;
            }
        }
    }
}

/// Where nobody listens now. Below the range that the kernel gives to outgoing connections.
fn free_port() -> u16 {
    loop {
        let port = 10_000 + rand::random::<u16>() % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
