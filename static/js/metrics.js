// What a sandbox uses: now, and lately as small lines.

import { call, sandboxPath } from "./api.js";
import { make, setText } from "./dom.js";
import { bytes, mebibytes } from "./words.js";

const PERIOD_MS = 3000;
/** An hour, as the daemon keeps it. */
const POINTS = 360;
const FEWEST = 30;
const SVG = "http://www.w3.org/2000/svg";

/** Daemons without this route are not asked again. */
let missing = false;

export class Metrics {
    #id;
    #place;
    #cpu;
    #memory;
    #disk;
    #due = 0;
    #asking = false;

    constructor(id, place) {
        this.#id = id;
        this.#place = place;
        this.#cpu = figure("CPU");
        this.#memory = figure("Memory, MiB");
        this.#disk = figure("Disk");
        this.#disk.line.remove();
        place.append(this.#cpu.root, this.#memory.root, this.#disk.root);
    }

    /** Called often for the sandbox that is seen; asks now and then. */
    async update({ state }) {
        this.#place.toggleAttribute("data-stale", state !== "running");
        if (missing || this.#asking || state !== "running" || Date.now() < this.#due) return;
        this.#asking = true;
        try {
            this.#show(await call("GET", sandboxPath(this.#id, "/metrics")));
        } catch (error) {
            missing ||= error.status === 404 && state === "running";
            this.#place.hidden = true;
        } finally {
            this.#asking = false;
            this.#due = Date.now() + PERIOD_MS;
        }
    }

    #show({ now, history }) {
        this.#place.hidden = typeof now?.cpu_percent !== "number";
        if (this.#place.hidden) return;
        const points = [...history, now].slice(-POINTS);
        const total = now.memory_total_bytes;
        const cpu = `${Math.round(now.cpu_percent)} %`;
        draw(this.#cpu, cpu, points.map((it) => it.cpu_percent), 100);
        const memory = `${mebibytes(now.memory_used_bytes)} of ${mebibytes(total)}`;
        draw(this.#memory, memory, points.map((it) => it.memory_used_bytes), total);
        setText(this.#disk.value, bytes(now.disk_used_bytes));
    }
}

function figure(name) {
    const line = document.createElementNS(SVG, "svg");
    line.setAttribute("viewBox", "0 0 120 28");
    line.setAttribute("preserveAspectRatio", "none");
    line.setAttribute("aria-hidden", "true");
    line.append(document.createElementNS(SVG, "polyline"));
    const value = make("strong");
    const label = make("span", { className: "quiet" }, name);
    const root = make("div", { className: "metric" }, label, value, line);
    return { root, value, line };
}

/** Draws values from 0 to at least `full`; the newest is at the right. */
function draw({ value, line }, text, values, full) {
    setText(value, text);
    const top = Math.max(full, ...values);
    const step = 120 / (Math.max(values.length, FEWEST) - 1);
    const at = (point, index) => {
        const x = 120 - (values.length - 1 - index) * step;
        const y = 27 - (26 * point) / top;
        return `${x.toFixed(1)},${y.toFixed(1)}`;
    };
    line.firstElementChild.setAttribute("points", values.map(at).join(" "));
}
