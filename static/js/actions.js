// What is done to a sandbox as a whole: pause, resume, fork, snapshot, destroy.

import { call, sandboxPath } from "./api.js";
import { ask } from "./ask.js";
import { byId } from "./dom.js";
import { say } from "./notice.js";
import { choose, chosen } from "./route.js";
import { showSnapshots } from "./snapshots.js";
import { learn, refresh } from "./store.js";
import { timed } from "./timings.js";

/** Has something done, while the list shows how far it is. */
async function act(name, id, work) {
    const done = timed(name, id, work);
    setTimeout(refresh, 30);
    try {
        return await done;
    } finally {
        refresh();
    }
}

/** Pauses it. */
export async function pause(id) {
    learn(await act("pause", id, () => call("POST", sandboxPath(id, "/pause?trace=true"))));
    say(`${id} is paused: it is only files now.`);
}

/** Has it run on. */
export async function resume(id) {
    learn(await act("resume", id, () => call("POST", sandboxPath(id, "/resume?trace=true"))));
    say(`${id} runs on.`);
}

/** Asks how many copies, and makes them. */
export async function fork(id) {
    const answer = await ask({
        title: "Fork",
        text: "Copies begin as this sandbox is now, with all that runs in it.",
        yes: "Fork",
        field: { name: "Copies", type: "number", value: "1", min: "1", max: "16" },
    });
    if (!answer) return;
    const count = Number(answer.value);
    const { sandboxes } = await act("fork", id,
        () => call("POST", sandboxPath(id, "/fork?trace=true"), { count }));
    for (const child of sandboxes) learn(child);
    const which = sandboxes.map((child) => child.id).join(", ");
    say(count === 1 ? `The copy is ${which}.` : `The copies are ${which}.`);
}

/** Asks for a name, and keeps the sandbox under it. */
export async function snapshot(id) {
    const answer = await ask({
        title: "Snapshot",
        text: "Keeps the sandbox as it is now; others can be created from it.",
        yes: "Take snapshot",
        field: {
            name: "Name",
            pattern: "[a-z0-9][a-z0-9._\\-]{0,62}",
            title: "Small letters, digits, dots, dashes and underscores; a letter or digit first",
        },
        check: "Replace a snapshot of this name",
    });
    if (!answer) return;
    const wish = { sandbox_id: id, name: answer.value, overwrite: answer.checked };
    await act("snapshot", id, () => call("POST", "/v1/snapshots", wish));
    say(`The snapshot ${answer.value} is taken.`);
    await showSnapshots();
}

/** Asks whether that is meant, and destroys it. */
export async function destroy(id) {
    const sure = await ask({
        title: "Destroy this sandbox?",
        text: `All that is in ${id} will be lost.`,
        yes: "Destroy",
        danger: true,
    });
    if (!sure) return;
    await act("destroy", id, () => call("DELETE", sandboxPath(id)));
    say(`${id} is destroyed.`);
    // Another one may have been chosen meanwhile.
    if (chosen() !== id) return;
    choose("");
    byId("list-title").focus();
}
