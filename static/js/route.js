// Which sandbox is looked at: the part of the address behind `#/`.

import { isOff } from "./dom.js";

/** How often something was pressed, by hand or keyboard. */
let presses = 0;

function pressed({ target, repeat }) {
    const button = target.closest?.("button");
    // On one that is busy nothing happens: it may be pressed once more by the impatient.
    if (!repeat && !(button && isOff(button))) presses += 1;
}
for (const kind of ["click", "keydown"]) addEventListener(kind, pressed, { capture: true });

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

/**
 * For a sandbox that is still to come: gives what goes to it, unless something has been pressed
 * since. Under the hand of somebody who has turned to another sandbox, that one stays.
 */
export function chooseLater() {
    const before = presses;
    return (id) => {
        if (presses === before) choose(id);
    };
}

/** Calls `listener` when another one is chosen. */
export function onChosen(listener) {
    addEventListener("hashchange", listener);
}
