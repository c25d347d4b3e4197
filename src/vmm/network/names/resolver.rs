//! The resolver: answers what a guest asks any name server, from what the host's say.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::Shared;
use super::dns::{Asked, Judged, judge};
use super::learned::Found;

/// Questions under way, of one guest. Each takes a file while a name server is asked.
pub(super) const MOST_QUESTIONS: usize = 64;

/// Connections at a time, of one guest.
const MOST_STREAMS: usize = 16;

/// How long a name server may take before the next one is asked as well.
const SERVER_PATIENCE: Duration = Duration::from_secs(2);

/// How long they all may take: longer than any resolver in a guest waits (30 s in glibc, RES_MAXRETRANS),
/// so that a slow server is as slow for it as if it had asked itself.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How many are asked, as in glibc (MAXNS).
const MOST_SERVERS: usize = 3;

/// How long a connection may be silent.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// After an error of a socket, so that one that stays does not keep a processor busy.
const PAUSE: Duration = Duration::from_millis(20);

const DNS: u16 = 53;

/// How a question came, and goes on.
#[derive(Debug, Clone, Copy)]
enum Way {
    Datagram,
    Stream,
}

/// Answers datagrams, for ever.
pub(super) async fn serve_datagrams(socket: UdpSocket, shared: Arc<Shared>) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            sleep(PAUSE).await;
            continue;
        };
        // The next one is not even read until this one's turn: what comes faster is lost in the
        // kernel, as datagrams may be, and costs the daemon nothing. The guest asks again.
        shared.questions.turn().await;
        let place = shared.limits.questions.place(shared.slot).await;
        let (question, socket) = (buffer[..length].to_vec(), socket.clone());
        let shared = shared.clone();
        tokio::spawn(async move {
            let answer = tokio::select! {
                () = place.cut.cancelled() => None,
                answer = resolve(&shared, &question, Way::Datagram) => answer,
            };
            if let Some(answer) = answer {
                let _ = socket.send_to(&answer, peer).await;
            }
        });
    }
}

/// Answers connections, for ever.
pub(super) async fn serve_streams(listener: TcpListener, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(MOST_STREAMS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let connection = shared.limits.connections.place(shared.slot).await;
            tokio::select! {
                () = connection.cut.cancelled() => {}
                // It ends when the guest has no more questions, in whatever way.
                _ = serve_stream(stream, &shared) => {}
            }
            drop(place);
        });
    }
}

async fn serve_stream(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let question = timeout(IDLE_LIMIT, read_message(&mut stream)).await??;
        shared.questions.turn().await;
        let Some(answer) = resolve(shared, &question, Way::Stream).await else { return Ok(()) };
        timeout(IDLE_LIMIT, write_message(&mut stream, &answer)).await??;
    }
}

/// The answer to a question; nothing if it is none.
async fn resolve(shared: &Shared, question: &[u8], way: Way) -> Option<Vec<u8>> {
    let asked = match judge(question, &shared.reach().policy) {
        Judged::Ask(asked) => asked,
        Judged::Answer(answer) => return Some(answer),
        Judged::Ignore => return None,
    };
    let servers = shared.reach().servers.clone();
    let answer = timeout(ANSWER_LIMIT, first_answer(&servers, &asked, question, way)).await;
    let Ok(Some((bytes, message))) = answer else { return Some(asked.failed()) };
    // First the rules know the addresses, then the guest.
    let learn = || {
        let policy = &shared.reach().policy;
        let mut found = asked.addresses(&message);
        found.retain(|(address, _)| policy.opens(&asked.name, *address));
        let ports: Vec<_> = policy.ports_of(&asked.name).cloned().collect();
        let found = found.into_iter();
        found.map(|(address, valid)| Found { address, valid, ports: ports.clone() }).collect()
    };
    if let Err(error) = shared.learned.learn(learn).await {
        tracing::warn!(error = %crate::chain(&error), "addresses of a name were not learned");
        return Some(asked.failed());
    }
    Some(asked.restored(&bytes))
}

/// The first answer of any server. They are asked in order, the next one once those before have failed or
/// are slow; a slow one may still be the first.
async fn first_answer(
    servers: &[Ipv4Addr],
    asked: &Asked,
    question: &[u8],
    way: Way,
) -> Option<(Vec<u8>, Message)> {
    let mut left = servers.iter().take(MOST_SERVERS);
    let mut under_way = FuturesUnordered::new();
    loop {
        match left.next() {
            Some(server) => under_way.push(ask(*server, asked, question, way)),
            None if under_way.is_empty() => return None,
            None => {}
        }
        tokio::select! {
            answer = under_way.next() => if let Some(Ok(answer)) = answer {
                return Some(answer);
            },
            () = sleep(SERVER_PATIENCE), if left.len() > 0 => {}
        }
    }
}

async fn ask(
    server: Ipv4Addr,
    asked: &Asked,
    question: &[u8],
    way: Way,
) -> io::Result<(Vec<u8>, Message)> {
    let id = rand::random();
    let question = asked.under(id, question);
    match way {
        Way::Datagram => {
            // A port of its own for each question: who wants to forge an answer has to guess it.
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
            socket.connect((server, DNS)).await?;
            socket.send(&question).await?;
            let mut buffer = vec![0; usize::from(u16::MAX)];
            loop {
                let length = socket.recv(&mut buffer).await?;
                if let Some(message) = asked.read(id, &buffer[..length]) {
                    buffer.truncate(length);
                    return Ok((buffer, message));
                }
            }
        }
        Way::Stream => {
            let mut stream = TcpStream::connect((server, DNS)).await?;
            write_message(&mut stream, &question).await?;
            let bytes = read_message(&mut stream).await?;
            let message = asked.read(id, &bytes);
            Ok((bytes, message.ok_or(io::ErrorKind::InvalidData)?))
        }
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    // In one piece: some clients read the length and the message as one.
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}
