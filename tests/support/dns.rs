//! A name server of the tests' own.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, OpCode};
use hickory_proto::rr::{Name, RData, Record};

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// What there is under a name: owners, seconds, data.
pub type Zone = fn(&str) -> Vec<(String, u32, RData)>;

fn answer(question: &[u8], zone: Zone, asked: &Mutex<Vec<String>>) -> Vec<u8> {
    let question = Message::from_vec(question).expect("a question");
    let name = question.queries[0].name.to_ascii().to_ascii_lowercase();
    asked.lock().expect("no panic").push(name.clone());
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.add_queries(question.queries.iter().cloned());
    for (owner, ttl, data) in zone(&name) {
        answer.add_answer(Record::from_rdata(Name::from_ascii(owner).expect("a name"), ttl, data));
    }
    answer.to_vec().expect("an answer")
}

/// Answers questions on every address of the namespace, and notes what they are for.
pub fn serve_dns(zone: Zone, asked: Arc<Mutex<Vec<String>>>) {
    let socket = UdpSocket::bind((ANY, 53)).expect("a free port");
    let listener = TcpListener::bind((ANY, 53)).expect("a free port");
    let by_stream = asked.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&answer(&buffer[..length], zone, &asked), peer);
        }
    });
    std::thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            let question = read_message(&mut client).expect("a question");
            let answer = answer(&question, zone, &by_stream);
            let length = (answer.len() as u16).to_be_bytes();
            let _ = client.write_all(&[&length, answer.as_slice()].concat());
        }
    });
}

/// Reads one message from a stream.
pub fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}
