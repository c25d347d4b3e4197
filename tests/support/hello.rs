//! What a TLS client says first.

/// A TLS 1.2 ClientHello that asks for a name, or for none.
pub fn client_hello(name: Option<&str>) -> Vec<u8> {
    let sized = |bytes: Vec<u8>| [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat();
    let extension = |kind: u16, data: Vec<u8>| [kind.to_be_bytes().to_vec(), sized(data)].concat();
    let mut extensions = Vec::new();
    if let Some(name) = name {
        let entry = [vec![0], sized(name.as_bytes().to_vec())].concat();
        extensions.extend(extension(0, sized(entry)));
    }
    // Signatures and groups, without which it would be no hello of today.
    extensions.extend(extension(13, sized(vec![4, 3, 8, 4])));
    extensions.extend(extension(10, sized(vec![0, 29])));
    let body =
        [vec![3, 3], vec![7; 32], vec![0], sized(vec![0xc0, 0x2f]), vec![1, 0], sized(extensions)]
            .concat();
    let length = (body.len() as u32).to_be_bytes();
    let handshake = [&[1], &length[1..], &body].concat();
    [vec![22, 3, 1], sized(handshake)].concat()
}
