// The page: puts its parts together, and goes from one sandbox to another.

import { call, onUnauthorized, sandboxPath } from "./api.js";
import { byId, setText } from "./dom.js";
import { listenAtGate, showGate } from "./gate.js";
import { findGivenKey, findKey, forgetKey } from "./key.js";
import { showList } from "./list.js";
import { Panel } from "./panel.js";
import { chosen, onChosen } from "./route.js";
import { showSnapshots } from "./snapshots.js";
import { learn, sandbox, start, stop, watch } from "./store.js";

/** Panels of sandboxes that were looked at; each keeps its terminal and its output. */
const panels = new Map();

/** The sandbox that was asked for because no list has shown it, and what the daemon said. */
let sought = { id: "", said: "" };

function open() {
    byId("app").hidden = false;
    byId("forget").hidden = false;
    start();
    showSnapshots();
}

/** Opens the page if there is a key, else asks for one. */
function enter() {
    byId("gate").hidden = true;
    if (findKey()) open();
    else showGate("");
}

function close(said) {
    byId("app").hidden = true;
    byId("forget").hidden = true;
    stop();
    for (const panel of panels.values()) panel.close();
    panels.clear();
    setText(byId("connection"), "");
    showGate(said);
}

/** Shows the panel of the sandbox that the address names. */
function showPanel() {
    const id = chosen();
    const view = id && sandbox(id);
    byId("welcome").hidden = Boolean(view);
    showWelcome(view ? "" : id);
    byId("app").classList.toggle("chosen", Boolean(id));
    for (const [other, panel] of panels) panel.root.hidden = other !== id;
    if (!view) return;
    let panel = panels.get(id);
    if (!panel) {
        panel = new Panel(id);
        panels.set(id, panel);
        byId("panels").append(panel.root);
    }
    panel.update(view);
}

/** Says that nothing is chosen, or what is known of one that no list has shown. */
function showWelcome(id) {
    setText(byId("welcome-title"), id ? id : "Nothing chosen");
    const text = "Make a sandbox, or choose one from the list: each is a virtual machine of its own.";
    setText(byId("welcome-says"), id ? sought.said : text);
}

/** Asks for a sandbox that the address names and the list does not: it may have ended. */
async function seek(id) {
    if (!id || sandbox(id) || sought.id === id) return;
    sought = { id, said: "Looking for this sandbox." };
    try {
        learn(await call("GET", sandboxPath(id)));
    } catch (error) {
        sought.said = error.message;
        showPanel();
    }
}

function looked(error) {
    setText(byId("connection"), error ? error.message : "Connected");
    byId("connection").classList.toggle("error", Boolean(error));
    showList();
    showPanel();
    if (!error) seek(chosen());
}

watch(looked);
onChosen(() => {
    if (findGivenKey()) {
        close("");
        enter();
        return;
    }
    showList();
    showPanel();
    seek(chosen());
    panels.get(chosen())?.focus();
});
onUnauthorized((error) => {
    // At the gate its own answer says so.
    if (byId("gate").hidden) {
        forgetKey();
        close(error.message);
    }
});
byId("forget").addEventListener("click", () => {
    forgetKey();
    close("");
});
listenAtGate(open);
findGivenKey();
enter();
