// The API key: where it comes from and where it is kept.

const NAME = "nestbox-api-key";

let current = "";

/**
 * Takes the key that is in the address (`#key=...`), and takes it out of the address bar at once.
 * Browsers send that part of an address to nobody.
 */
export function findGivenKey() {
    const given = new URLSearchParams(location.hash.slice(1)).get("key");
    if (!given) return false;
    history.replaceState(null, "", `${location.pathname}${location.search}`);
    keepKey(given);
    return true;
}

/** Finds the key where it was kept. */
export function findKey() {
    current = sessionStorage.getItem(NAME) ?? "";
    return current;
}

/** The key in use; empty if there is none. */
export function key() {
    return current;
}

/** Keeps a key as long as this tab is open: other tabs, whatever they show, cannot read it. */
export function keepKey(text) {
    current = text;
    sessionStorage.setItem(NAME, text);
}

/** Forgets the key. */
export function forgetKey() {
    current = "";
    sessionStorage.removeItem(NAME);
}
