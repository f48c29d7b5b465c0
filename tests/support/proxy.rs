//! A TCP proxy with bad weather, to part one program from the server without touching either.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How the line between program and server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Bytes pass.
    Clear,
    /// Every connection is broken, and each new one at once, like by a machine that refuses.
    Cut,
    /// Connections stand and new ones are taken, and no byte passes either way until it is over.
    HalfOpen,
    /// Each piece is late by a random time up to this, in order.
    Slow(Duration),
}

/// Passes bytes on as the weather lets it.
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    /// Counts the resets.
    resets: watch::Sender<u64>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// An open proxy to `target`.
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it has an address");
        let (weather, sky) = watch::channel(Weather::Clear);
        let (resets, reset) = watch::channel(0);
        let accepting = tokio::spawn(async move {
            while let Ok((inner, _)) = listener.accept().await {
                if *sky.borrow() != Weather::Cut {
                    tokio::spawn(pass(inner, target.clone(), sky.clone(), reset.clone()));
                }
            }
        });
        Self { address, weather, resets, accepting }
    }

    /// Where programs connect to.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Its port, which only connections of this proxy's programs have.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes the weather.
    pub fn weather(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Breaks every connection and lets no new one live.
    pub fn cut(&self) {
        self.weather(Weather::Cut);
    }

    /// Lets connections through again.
    pub fn restore(&self) {
        self.weather(Weather::Clear);
    }

    /// Ends every connection with a TCP reset; new ones live.
    pub fn reset(&self) {
        self.resets.send_modify(|count| *count += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(
    mut inner: TcpStream,
    target: String,
    mut sky: watch::Receiver<Weather>,
    mut reset: watch::Receiver<u64>,
) {
    reset.mark_unchanged();
    let Ok(mut outer) = TcpStream::connect(&target).await else { return };
    for end in [&inner, &outer] {
        end.set_nodelay(true).expect("a socket option");
    }
    let was_reset = {
        let (from_inner, to_inner) = inner.split();
        let (from_outer, to_outer) = outer.split();
        let there = carry(from_inner, to_outer, sky.clone());
        let back = carry(from_outer, to_inner, sky.clone());
        tokio::select! {
            () = there => false,
            () = back => false,
            _ = sky.wait_for(|weather| *weather == Weather::Cut) => false,
            _ = reset.changed() => true,
        }
    };
    if was_reset {
        for end in [inner, outer] {
            end.set_zero_linger().expect("a socket option");
        }
    }
}

/// Carries one direction to its end. Pieces wait in a queue, so that a late one holds up none that is not behind it.
async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut sky: watch::Receiver<Weather>) {
    let (queue, mut queued) = mpsc::channel::<(Instant, Vec<u8>)>(256);
    let seen = sky.clone();
    let read = async move {
        let mut piece = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut piece).await {
            let late = match *seen.borrow() {
                Weather::Slow(most) => most.mul_f64(rand::random()),
                Weather::Clear | Weather::Cut | Weather::HalfOpen => Duration::ZERO,
            };
            if queue.send((Instant::now() + late, piece[..n].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = queued.recv().await {
            tokio::time::sleep_until(due).await;
            if sky.wait_for(|weather| *weather != Weather::HalfOpen).await.is_err() {
                return;
            }
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
