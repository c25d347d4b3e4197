// The sandboxes as the daemon last showed them. Looked at often while the page is seen, and more
// often while one of them is changing.

import { call, sandboxPath } from "./api.js";
import { isEnded, isTransitional } from "./words.js";

const PERIOD_MS = 2000;
const CHANGING_MS = 250;
const PAGE = 100;
const STATES = "pending,starting,running,pausing,paused,resuming,stopping,missing,ended";

const changes = new EventTarget();

let known = new Map();
let order = [];
let limit = PAGE;
let more = false;
let ended = false;
let timer = 0;
let looking = null;
let running = false;
let looked = false;

/** Calls `listener` after every look, with the error if it failed. */
export function watch(listener) {
    changes.addEventListener("looked", (event) => listener(event.detail));
}

/** All sandboxes, newest first. */
export function sandboxes() {
    return order.map((id) => known.get(id));
}

/** One sandbox; also one that has ended, if it was there once. */
export function sandbox(id) {
    return known.get(id);
}

/** Whether the daemon has shown its sandboxes yet. */
export function isKnown() {
    return looked;
}

/** Whether the daemon has more than it was asked for. */
export function hasMore() {
    return more;
}

/** Asks for more from now on. */
export function askForMore() {
    limit = Math.min(limit + PAGE, 1000);
    return refresh();
}

/** Shows those that have ended as well, or no more. */
export function showEnded(on) {
    ended = on;
    return refresh();
}

/** Takes what an answer has shown of a sandbox. */
export function learn(view) {
    const listed = ended || !isEnded(view.state);
    if (listed && !order.includes(view.id)) order.unshift(view.id);
    if (!listed) order = order.filter((id) => id !== view.id);
    known.set(view.id, view);
    changes.dispatchEvent(new CustomEvent("looked"));
}

/** Begins to look, until `stop`. */
export function start() {
    running = true;
    return refresh();
}

/** Forgets everything, and looks no more. */
export function stop() {
    running = false;
    clearTimeout(timer);
    looked = false;
    known = new Map();
    order = [];
}

/** Looks now; a look that is under way is not waited for, for it may be of before. */
export async function refresh() {
    clearTimeout(timer);
    const mine = Symbol("look");
    looking = mine;
    let failed;
    try {
        const states = ended ? `&state=${STATES}` : "";
        const page = await call("GET", `/v1/sandboxes?limit=${limit}${states}`);
        if (looking !== mine) return;
        await take(page);
    } catch (error) {
        if (looking !== mine) return;
        failed = error;
    }
    if (looking !== mine || !running) return;
    changes.dispatchEvent(new CustomEvent("looked", { detail: failed }));
    const changing = sandboxes().some((it) => isTransitional(it.state));
    if (!document.hidden) timer = setTimeout(refresh, changing ? CHANGING_MS : PERIOD_MS);
}

async function take(page) {
    const before = order;
    looked = true;
    more = page.next_cursor !== null && limit < 1000;
    order = page.sandboxes.map((view) => view.id);
    for (const view of page.sandboxes) known.set(view.id, view);
    // One that is not listed any more is asked for once more: it says why it has ended.
    for (const id of before.filter((id) => !order.includes(id))) {
        const state = known.get(id)?.state;
        if (more || ended || isEnded(state)) continue;
        try {
            known.set(id, await call("GET", sandboxPath(id)));
        } catch {
            known.set(id, { ...known.get(id), state: "stopped" });
        }
    }
}

document.addEventListener("visibilitychange", () => {
    if (running && !document.hidden) refresh();
});
