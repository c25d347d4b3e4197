// The daemon's API: requests, WebSockets, and what goes wrong with them.

import { key } from "./key.js";
import { sentence } from "./words.js";

/** What the daemon refused, or that it did not answer. The message is for people. */
export class ApiError extends Error {
    /** `status` is 0 if there was no answer. */
    constructor(message, status, code = "") {
        super(message);
        this.status = status;
        this.code = code;
    }
}

const unauthorized = new EventTarget();

/** Calls `listener` whenever the daemon says that the key is not good. */
export function onUnauthorized(listener) {
    unauthorized.addEventListener("said", (event) => listener(event.detail));
}

/** The address of a route, whatever the page is served below. */
export function address(path) {
    return new URL(path.replace(/^\//, ""), document.baseURI);
}

/** The path of a sandbox's route. */
export function sandboxPath(id, rest = "") {
    return `/v1/sandboxes/${encodeURIComponent(id)}${rest}`;
}

/** The error that an answer is. */
function errorOf(status, text) {
    let error;
    try {
        error = JSON.parse(text).error;
    } catch {
        // Something between the daemon and us has answered.
    }
    const id = error?.request_id ? ` (request ${error.request_id})` : "";
    const message = error?.message ?? `the answer is ${status}, without a reason`;
    const found = new ApiError(sentence(`${message}${id}`), status, error?.code);
    if (status === 401) unauthorized.dispatchEvent(new CustomEvent("said", { detail: found }));
    return found;
}

const SILENCE = "The daemon does not answer. Is it still running?";

/** Sends a request; gives the answer of a good one. */
export async function send(method, path, { body, signal } = {}) {
    const headers = { "X-API-Key": key() };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
        const text = body === undefined ? undefined : JSON.stringify(body);
        const request = { method, headers, body: text, signal, cache: "no-store" };
        response = await fetch(address(path), request);
    } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ApiError(SILENCE, 0);
    }
    if (!response.ok) throw errorOf(response.status, await response.text());
    return response;
}

/** Sends a request; gives the JSON of a good answer, null if it has none. */
export async function call(method, path, body) {
    const response = await send(method, path, { body });
    return response.status === 204 ? null : response.json();
}

/** Uploads a file; tells `onProgress` the bytes that are gone. `signal` breaks it off. */
export function upload(path, file, onProgress, signal) {
    // Unlike fetch, this says how far it has come.
    return new Promise((resolve, reject) => {
        const request = new XMLHttpRequest();
        request.open("PUT", address(path));
        request.setRequestHeader("X-API-Key", key());
        request.setRequestHeader("Content-Type", "application/octet-stream");
        request.upload.addEventListener("progress", (event) => onProgress(event.loaded));
        request.addEventListener("load", () => {
            const good = request.status >= 200 && request.status < 300;
            if (good) resolve();
            else reject(errorOf(request.status, request.responseText));
        });
        request.addEventListener("error", () => reject(new ApiError(SILENCE, 0)));
        const aborted = () => reject(new DOMException("cancelled", "AbortError"));
        request.addEventListener("abort", aborted);
        signal?.addEventListener("abort", () => request.abort());
        request.send(file);
    });
}

/**
 * Opens a WebSocket. Browsers cannot set headers on one: the key goes with the subprotocols, of
 * which the daemon chooses `nestbox`.
 */
export function openSocket(path) {
    const url = address(path);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    return new WebSocket(url, ["nestbox", `nestbox.key.${key()}`]);
}

/**
 * Why a WebSocket of a sandbox could not be opened. Browsers do not show what the daemon has
 * answered then, so it is asked in a way whose answer they do show: with a command that does nothing.
 */
export async function whyNot(id) {
    try {
        await call("POST", sandboxPath(id, "/exec"), { cmd: ":" });
        return new ApiError("The connection could not be opened. Try again.", 0);
    } catch (error) {
        return error;
    }
}
