// The list of named snapshots: templates that people have made.

import { call } from "./api.js";
import { ask } from "./ask.js";
import { createSandbox } from "./create.js";
import { button, byId, make, reconcile, setText } from "./dom.js";
import { complain, say } from "./notice.js";
import { timed } from "./timings.js";
import { age, bytes } from "./words.js";

const MOST = 100;

/** Looks which snapshots there are, and shows them; also as templates to choose from. */
export async function showSnapshots() {
    let snapshots;
    try {
        ({ snapshots } = await call("GET", `/v1/snapshots?limit=${MOST}`));
    } catch (error) {
        complain(`The snapshots cannot be listed. ${error.message}`);
        return;
    }
    reconcile(byId("snapshots"), snapshots, (it) => `${it.name}@${it.created_at}`, create, update);
    byId("snapshots-empty").hidden = snapshots.length > 0;
    setText(byId("snapshots-count"), snapshots.length > 0 ? String(snapshots.length) : "");
    const names = ["debian", ...snapshots.map((it) => it.name)];
    byId("templates").replaceChildren(...names.map((value) => make("option", { value })));
}

function create({ name }) {
    const use = button("Create", { label: `Create a sandbox from ${name}`, kind: "small" },
        () => createSandbox({ template: name }));
    const remove = button("Delete…", { label: `Delete the snapshot ${name}`, kind: "small danger" },
        () => forget(name));
    return make("li", { className: "item" },
        make("span", { className: "mono name" }, name),
        make("span", { className: "row end" }, use, remove),
        make("span", { className: "quiet" }));
}

function update(row, snapshot) {
    const size = bytes(snapshot.memory_bytes + snapshot.disk_bytes);
    const about = [`${snapshot.memory_mb} MiB`, size, age(snapshot.created_at)];
    setText(row.lastElementChild, about.join(" · "));
}

async function forget(name) {
    const sure = await ask({
        title: `Delete the snapshot ${name}?`,
        text: "Sandboxes that were made from it live on.",
        yes: "Delete",
        danger: true,
    });
    if (!sure) return;
    try {
        const path = `/v1/snapshots/${encodeURIComponent(name)}`;
        await timed("delete snapshot", "", () => call("DELETE", path));
        say(`The snapshot ${name} is deleted.`);
    } catch (error) {
        complain(error.message);
    }
    await showSnapshots();
    byId("snapshots-title").focus();
}
