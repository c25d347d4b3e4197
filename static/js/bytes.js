// Bytes in messages: text as it is, else base64.

const encoder = new TextEncoder();

/** The bytes of a message with `data`. */
export function bytesOf({ data, encoding }) {
    if (encoding !== "base64") return encoder.encode(data);
    return Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
}

/** The fields of a message that carry text or bytes. */
export function dataOf(data) {
    if (typeof data === "string") return { data };
    return { data: btoa(String.fromCharCode(...data)), encoding: "base64" };
}

/** Text in pieces of at most `most` characters; none is cut in two. */
export function* pieces(text, most) {
    for (let at = 0; at < text.length; ) {
        let end = Math.min(at + most, text.length);
        const last = text.charCodeAt(end - 1);
        if (end < text.length && last >= 0xd800 && last <= 0xdbff) end -= 1;
        yield text.slice(at, end);
        at = end;
    }
}
