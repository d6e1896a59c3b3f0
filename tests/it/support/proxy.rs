//! A network that is slow about some requests: between a broker and its clients, frame by frame.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use super::kafka::Broker;

/// Kafka's number of the request that asks for the first, last or a timed offset of partitions.
pub const LIST_OFFSETS: i16 = 2;

/// A broker that some clients reach by a slow way.
pub struct Slow {
    pub broker: Broker,
    port: u16,
    answers: Arc<Answers>,
}

/// How long answers are held back, by the request that they answer.
#[derive(Default)]
struct Answers {
    /// Request (its API key) to its delay.
    delays: Mutex<BTreeMap<i16, Duration>>,
    held: AtomicU64,
}

impl Slow {
    /// The broker names the proxy to all who come by it, so that nobody finds the fast way.
    pub fn start() -> Self {
        let broker = Broker::with(4, |_, port| {
            let at = |name: &str, n: u16| format!("{name}://127.0.0.1:{}", port + n);
            format!(
                "listeners={},{},{}\nadvertised.listeners={},{}\nlistener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SLOW:PLAINTEXT\n",
                at("PLAINTEXT", 0),
                at("CONTROLLER", 1),
                at("SLOW", 2),
                at("PLAINTEXT", 0),
                at("SLOW", 3),
            )
        });
        let (behind, port) = (broker.port() + 2, broker.port() + 3);
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a port that was free just now");
        let answers = Arc::<Answers>::default();
        let shared = answers.clone();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Ok(server) = TcpStream::connect(("127.0.0.1", behind)) {
                    carry(client, server, shared.clone());
                }
            }
        });
        Self { broker, port, answers }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// From now on answers to these requests take so much longer; those behind them on a connection wait, as they do at a broker.
    pub fn delay(&self, request: i16, by: Duration) {
        self.answers.delays.lock().unwrap().insert(request, by);
    }

    /// How many answers were held back so far.
    pub fn held(&self) -> u64 {
        self.answers.held.load(Ordering::Relaxed)
    }
}

fn frame(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    let mut frame = size.to_vec();
    frame.resize(4 + u32::from_be_bytes(size) as usize, 0);
    stream.read_exact(&mut frame[4..])?;
    Ok(frame)
}

/// Two ways: requests go at once, answers when they are due.
fn carry(client: TcpStream, server: TcpStream, answers: Arc<Answers>) {
    let (Ok(mut from_client), Ok(mut to_client)) = (client.try_clone(), client.try_clone()) else { return };
    let (Ok(mut from_server), Ok(mut to_server)) = (server.try_clone(), server.try_clone()) else { return };
    let keys: Arc<Mutex<BTreeMap<u32, i16>>> = Arc::default();
    let asked = keys.clone();
    std::thread::spawn(move || {
        while let Ok(request) = frame(&mut from_client) {
            // Size, API key, API version, correlation id.
            if let (Some(key), Some(id)) = (request.get(4..6), request.get(8..12)) {
                let (key, id) = (i16::from_be_bytes([key[0], key[1]]), u32::from_be_bytes([id[0], id[1], id[2], id[3]]));
                asked.lock().unwrap().insert(id, key);
            }
            if to_server.write_all(&request).is_err() {
                break;
            }
        }
        let _ = (to_server.shutdown(Shutdown::Both), from_client.shutdown(Shutdown::Both));
    });
    let (sender, due) = mpsc::channel::<(Instant, Vec<u8>)>();
    std::thread::spawn(move || {
        while let Ok(answer) = frame(&mut from_server) {
            let key = answer.get(4..8).and_then(|id| keys.lock().unwrap().remove(&u32::from_be_bytes([id[0], id[1], id[2], id[3]])));
            let delay = key.and_then(|k| answers.delays.lock().unwrap().get(&k).copied());
            answers.held.fetch_add(u64::from(delay.is_some()), Ordering::Relaxed);
            if sender.send((Instant::now() + delay.unwrap_or_default(), answer)).is_err() {
                break;
            }
        }
    });
    std::thread::spawn(move || {
        for (at, answer) in due {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if to_client.write_all(&answer).is_err() {
                break;
            }
        }
        let _ = (to_client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
    });
}
