// Numbers, times and states in words.

/** "340 ms", "1.2 s". */
export function duration(ms) {
    if (ms < 1000) return `${Math.round(ms)} ms`;
    if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
    return `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
}

/** How long ago a moment is: "5 s", "3 min", "2 h", "4 days". */
export function age(time) {
    const seconds = Math.max(0, Math.round((Date.now() - Date.parse(time)) / 1000));
    if (seconds < 60) return `${seconds} s`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
    if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
    const days = Math.floor(seconds / 86_400);
    return days === 1 ? "1 day" : `${days} days`;
}

/** "12 B", "1.4 MB"; thousands, as disks are counted. */
export function bytes(count) {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let unit = 0;
    let value = count;
    while (value >= 1000 && unit < units.length - 1) {
        value /= 1000;
        unit += 1;
    }
    const digits = unit > 0 && value < 10 ? 1 : 0;
    return `${value.toFixed(digits)} ${units[unit]}`;
}

/** Bytes of memory in MiB, as shapes are given. */
export function mebibytes(count) {
    return Math.round(count / 1_048_576);
}

/** "1 vCPU, 512 MiB". */
export function shape({ vcpus, memory_mb }) {
    return `${vcpus} vCPU${vcpus === 1 ? "" : "s"}, ${memory_mb} MiB`;
}

/** A moment in the reader's own way of writing it. */
export function moment(time) {
    return new Date(time).toLocaleString();
}

/** States that end by themselves. */
const TRANSITIONAL = new Set(["pending", "starting", "pausing", "resuming", "stopping"]);

/** Whether a state ends by itself. */
export function isTransitional(state) {
    return TRANSITIONAL.has(state);
}

/** Whether a sandbox in this state has ended. */
export function isEnded(state) {
    return state === "stopped" || state === "error";
}

/** A sentence with its first letter large and a full stop: the API's messages have neither. */
export function sentence(text) {
    if (!text) return "";
    const begun = text[0].toUpperCase() + text.slice(1);
    return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}
