// How long each action took, as it was seen from here, and where the daemon says the time went.

import { byId, make, setText } from "./dom.js";
import { duration } from "./words.js";

const KEPT = 50;

/** Does something, and lists how long it took, also if it failed. */
export async function timed(action, id, work) {
    const started = performance.now();
    try {
        const done = await work();
        list(action, id ?? done?.id ?? "", performance.now() - started, done?.trace ?? []);
        return done;
    } catch (error) {
        list(`${action}, failed`, id ?? "", performance.now() - started, []);
        throw error;
    }
}

/** Lists something whose time was taken elsewhere. */
export function list(action, id, ms, trace = []) {
    const table = byId("timings");
    const row = make("tr", {},
        make("td", { className: "quiet" }, new Date().toLocaleTimeString()),
        make("td", {}, action),
        make("td", { className: "mono" }, id.slice(0, 8)),
        make("td", { className: "number" }, duration(ms)),
        make("td", {}, trace.length > 0 ? spans(trace) : ""));
    table.tBodies[0].prepend(row);
    while (table.tBodies[0].rows.length > KEPT) table.tBodies[0].lastElementChild.remove();
    table.hidden = false;
    byId("timings-empty").hidden = true;
    setText(byId("timings-last"), `${action}: ${duration(ms)}`);
}

/** A bar for each span, the length of which is its part of the whole. */
function spans(trace) {
    const end = Math.max(...trace.map((span) => span.start_ms + span.took_ms), 0.001);
    const bars = trace.map((span) => {
        const bar = make("span", { className: "bar" });
        bar.style.marginInlineStart = `${(100 * span.start_ms) / end}%`;
        bar.style.inlineSize = `${Math.max(1, (100 * span.took_ms) / end)}%`;
        return make("li", {},
            make("span", { className: "track" }, bar),
            make("span", {}, `${span.span} ${duration(span.took_ms)}`));
    });
    return make("ul", { className: "spans" }, ...bars);
}
