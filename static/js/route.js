// Which sandbox is looked at: the part of the address behind `#/`.

/** The sandbox that the address names; empty if it names none. */
export function chosen() {
    return location.hash.startsWith("#/") ? decodeURIComponent(location.hash.slice(2)) : "";
}

/** The address of a sandbox, for links. */
export function hashOf(id) {
    return `#/${encodeURIComponent(id)}`;
}

/** Goes to a sandbox, or to none. */
export function choose(id) {
    location.hash = hashOf(id);
}

/** Calls `listener` when another one is chosen. */
export function onChosen(listener) {
    addEventListener("hashchange", listener);
}
