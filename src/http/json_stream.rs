//! Long answers in JSON, made piece by piece as the client takes them.
//!
//! What a guest says takes up to six times as much in JSON, where each control character is an escape:
//! 16 MiB of them would be 96 MiB of answer. Whole it would be in memory once more, and then as long as
//! a slow client likes.

use std::convert::Infallible;

use actix_web::HttpResponse;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use futures::stream;
use serde::Serialize;

/// About what is made at once, in bytes of what it is made of. A multiple of three, as base64 has it.
const PIECE: usize = 12 << 10;

/// An answer that consists of these pieces.
fn answer(pieces: impl Iterator<Item = Bytes> + 'static) -> HttpResponse {
    let pieces = stream::iter(pieces.map(Ok::<_, Infallible>));
    HttpResponse::Ok().content_type("application/json").streaming(pieces)
}

/// `{"field": [...]}`.
pub fn list<T: Serialize>(
    field: &'static str,
    items: impl Iterator<Item = T> + 'static,
) -> HttpResponse {
    let mut items = items.fuse();
    let mut before = format!("{{\"{field}\":[");
    let mut done = false;
    answer(std::iter::from_fn(move || {
        let mut piece = String::new();
        while !done && piece.len() < PIECE {
            match items.next() {
                Some(item) => {
                    piece.push_str(&before);
                    piece.push_str(&serde_json::to_string(&item).expect("a view makes JSON"));
                    ",".clone_into(&mut before);
                }
                None => {
                    // Of an empty list nothing has been said yet.
                    if before != "," {
                        piece.push_str(&before);
                    }
                    piece.push_str("]}");
                    done = true;
                }
            }
        }
        (!piece.is_empty()).then(|| piece.into())
    }))
}

/// The text between the quotes of a string, or bytes as base64.
#[derive(Debug)]
pub enum Long {
    /// As it is.
    Text(String),
    /// As base64.
    Bytes(Vec<u8>),
}

impl Long {
    /// Its length in memory.
    pub fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    /// All of it.
    pub fn whole(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Bytes(bytes) => BASE64_STANDARD.encode(bytes),
        }
    }

    /// What stands between the quotes, from `at` on, and where the rest begins.
    fn piece(&self, at: usize) -> Option<(Bytes, usize)> {
        match self {
            Self::Text(text) => {
                let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
                let piece = &rest[..rest.floor_char_boundary(PIECE)];
                let quoted = serde_json::to_string(piece).expect("a text makes JSON");
                let inner = quoted[1..quoted.len() - 1].to_owned();
                Some((inner.into(), at + piece.len()))
            }
            Self::Bytes(bytes) => {
                let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
                let piece = &rest[..rest.len().min(PIECE)];
                Some((BASE64_STANDARD.encode(piece).into(), at + piece.len()))
            }
        }
    }

    fn pieces(self) -> impl Iterator<Item = Bytes> + 'static {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (piece, next) = self.piece(at)?;
            at = next;
            Some(piece)
        })
    }
}

/// Long texts with what stands around them: what is in front of each, and what is behind all.
pub fn texts(
    parts: impl IntoIterator<Item = (String, Long), IntoIter: 'static> + 'static,
    behind: String,
) -> HttpResponse {
    let all = parts
        .into_iter()
        .flat_map(|(before, long)| std::iter::once(Bytes::from(before)).chain(long.pieces()));
    answer(all.chain(std::iter::once(behind.into())))
}

#[cfg(test)]
mod tests {
    use actix_web::body::to_bytes;
    use serde_json::{Value, json};

    use super::*;

    async fn read(answer: HttpResponse) -> Value {
        let body = to_bytes(answer.into_body()).await.unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    #[actix_web::test]
    async fn a_list_is_the_same_in_pieces() {
        for count in [0, 1, 2, 5000] {
            let items: Vec<_> = (0..count).map(|n| format!("\u{1}\"{n}")).collect();
            let got = read(list("items", items.clone().into_iter())).await;
            assert_eq!(got, json!({ "items": items }));
        }
    }

    #[actix_web::test]
    async fn texts_are_the_same_in_pieces() {
        let text = "ü\u{1}\"\\\n👍".repeat(20_000);
        let bytes: Vec<u8> = (0..100_001_u32).map(|n| (n % 251) as u8).collect();
        let parts = [
            ("{\"a\":\"".to_owned(), Long::Text(text.clone())),
            ("\",\"b\":\"".to_owned(), Long::Bytes(bytes.clone())),
            ("\",\"c\":\"".to_owned(), Long::Text(String::new())),
        ];
        let got = read(texts(parts, "\",\"d\":1}".to_owned())).await;
        let want = json!({"a": text, "b": BASE64_STANDARD.encode(&bytes), "c": "", "d": 1});
        assert!(got == want);
    }
}
