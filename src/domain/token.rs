//! Secrets that nobody can guess.

use rand::RngCore;

/// A new one: 256 bits, in hexadecimal digits.
pub fn random() -> String {
    let mut bytes = [0u8; 32];
    rand::rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_are_the_same() {
        let (one, other) = (random(), random());
        assert!(one != other && one.len() == 64, "{one} {other}");
    }
}
