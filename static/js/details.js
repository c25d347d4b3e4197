// Everything the daemon shows of a sandbox, in words.

import { call, sandboxPath } from "./api.js";
import { make } from "./dom.js";
import { bytes, moment, sentence, shape } from "./words.js";

/** Asks for all of it, and shows it. */
export async function showDetails(id, place) {
    let sandbox;
    try {
        sandbox = await call("GET", sandboxPath(id));
    } catch (error) {
        place.replaceChildren(make("p", { className: "error" }, error.message));
        return;
    }
    const rows = Object.entries(wordsOf(sandbox)).filter(([, text]) => text);
    place.replaceChildren(...rows.map(([name, text]) =>
        make("div", {}, make("dt", {}, name), make("dd", {}, text))));
}

function wordsOf(sandbox) {
    const storage = sandbox.storage;
    const labels = Object.entries(sandbox.metadata).map(([key, value]) => `${key}=${value}`);
    return {
        Template: sandbox.template,
        Shape: shape(sandbox),
        State: sandbox.state,
        Reason: sentence(sandbox.reason),
        Created: moment(sandbox.created_at),
        "Last used": moment(sandbox.last_active_at),
        "Destroyed at": sandbox.expires_at ? `${moment(sandbox.expires_at)}, unless used` : "",
        Timeout: sandbox.timeout_sec ? `${sandbox.timeout_sec} s without use` : "none",
        Labels: labels.join(", "),
        Hypervisor: sandbox.hypervisor,
        Host: sandbox.host_id,
        "On disk": storage
            ? `memory ${bytes(storage.memory_bytes)} in generations: ${storage.memory_generations}, ` +
              `disk ${bytes(storage.disk_bytes)}, shared ${bytes(storage.shared_bytes)}`
            : "nothing",
    };
}
