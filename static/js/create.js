// Making sandboxes: with one click, or as a form says.

import { call } from "./api.js";
import { busy, byId, isOff } from "./dom.js";
import { complain, say } from "./notice.js";
import { chooseLater } from "./route.js";
import { learn, refresh } from "./store.js";
import { timed } from "./timings.js";

/** Sandboxes made with one click end after so long without use. */
const CLICKED_TIMEOUT_SEC = 3600;

const beginnings = new Map();

/** What a sandbox that was made here begins with, once: the name of a program, or nothing. */
export function takeBeginning(id) {
    const beginning = beginnings.get(id);
    beginnings.delete(id);
    return beginning;
}

/** Makes a sandbox and goes to it, if nothing else is done meanwhile. */
export async function createSandbox(wish, beginning) {
    try {
        await make(wish, beginning);
    } catch (error) {
        complain(`The sandbox was not made. ${error.message}`);
    }
}

async function make(wish, beginning) {
    const goTo = chooseLater();
    const created = timed("create", undefined,
        () => call("POST", "/v1/sandboxes?trace=true", wish));
    // It is in the list while it starts.
    setTimeout(refresh, 30);
    const sandbox = await created;
    if (beginning) beginnings.set(sandbox.id, beginning);
    learn(sandbox);
    say(`The sandbox ${sandbox.id} runs.`);
    goTo(sandbox.id);
}

/** What the form says; fields that are empty are left to the daemon. */
function wishOf(form) {
    const wish = {};
    for (const [name, value] of new FormData(form)) {
        const text = value.trim();
        if (text !== "") wish[name] = name === "template" ? text : Number(text);
    }
    return wish;
}

const python = byId("new-python");
python.addEventListener("click", () => {
    if (isOff(python)) return;
    busy(python, () => createSandbox({ timeout_sec: CLICKED_TIMEOUT_SEC }, "python"));
});

byId("new-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const form = event.currentTarget;
    const button = form.querySelector("button");
    if (isOff(button)) return;
    byId("new-error").textContent = "";
    busy(button, async () => {
        try {
            await make(wishOf(form));
        } catch (error) {
            byId("new-error").textContent = error.message;
        }
    });
});
