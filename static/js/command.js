// One command at a time, its output as it comes.

import { openSocket, sandboxPath, whyNot } from "./api.js";
import { bytesOf } from "./bytes.js";
import { make, setText } from "./dom.js";
import { list } from "./timings.js";
import { duration, sentence } from "./words.js";

/** Characters of output that stay; the first ones go. */
const KEPT = 500_000;

const CLOSED = new Map([
    [4001, "The sandbox was paused; the command goes on, unheard, when it is resumed."],
    [4002, "The sandbox was destroyed, and the command with it."],
]);

export class CommandPane {
    #id;
    #parts;
    #socket = null;
    #waiting = [];
    #decoders = {};
    #length = 0;

    constructor(id, parts) {
        this.#id = id;
        this.#parts = parts;
        parts.command.addEventListener("submit", (event) => {
            event.preventDefault();
            if (!this.#socket) this.#run();
        });
        parts.stop.addEventListener("click", () => {
            this.#socket?.send(JSON.stringify({ type: "stop" }));
        });
    }

    /** Follows a command to its end. */
    #run() {
        const form = new FormData(this.#parts.command);
        const start = { type: "start", cmd: form.get("cmd") };
        for (const name of ["user", "cwd"]) {
            if (form.get(name).trim()) start[name] = form.get(name).trim();
        }
        this.#parts.output.replaceChildren();
        this.#length = 0;
        this.#decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
        setText(this.#parts["command-error"], "");
        const socket = openSocket(sandboxPath(this.#id, "/exec/stream"));
        this.#follow(socket, start);
    }

    #follow(socket, start) {
        const begun = performance.now();
        let opened = false;
        let ended = false;
        this.#setSocket(socket, "Connecting.");
        socket.addEventListener("open", () => {
            opened = true;
            socket.send(JSON.stringify(start));
            this.#say("Running.");
            this.#parts.stop.disabled = false;
        });
        socket.addEventListener("message", ({ data }) => {
            const message = JSON.parse(data);
            if (message.type === "stdout" || message.type === "stderr") {
                this.#print(message.type, bytesOf(message));
            } else if (message.type === "exit") {
                ended = true;
                const took = performance.now() - begun;
                list("command", this.#id, took);
                this.#say(`Exit code ${message.exit_code}, after ${duration(took)}.`);
            } else if (message.type === "error") {
                this.#fail(sentence(message.message));
            }
        });
        socket.addEventListener("close", async ({ code }) => {
            this.#setSocket(null);
            if (!opened) {
                this.#say("Not started.");
                this.#fail((await whyNot(this.#id)).message);
            } else if (!ended) {
                const lost = "The connection was closed before the command had ended.";
                this.#say(CLOSED.get(code) ?? lost);
            }
        });
    }

    #setSocket(socket, text) {
        this.#socket = socket;
        this.#parts.command.querySelector("[type=submit]").disabled = socket !== null;
        this.#parts.stop.disabled = true;
        if (text) this.#say(text);
    }

    /** Prints with the next frame: a command may print faster than a page is laid out. */
    #print(stream, bytes) {
        const text = this.#decoders[stream].decode(bytes, { stream: true });
        if (this.#waiting.length === 0) requestAnimationFrame(() => this.#flush());
        const last = this.#waiting.at(-1);
        if (last?.stream === stream) last.text += text;
        else this.#waiting.push({ stream, text });
    }

    #flush() {
        const output = this.#parts.output;
        const follows = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
        for (const { stream, text } of this.#waiting.splice(0)) {
            const shown = text.slice(-KEPT);
            this.#length += shown.length;
            output.append(make("span", { className: stream }, shown));
        }
        while (this.#length > KEPT && output.children.length > 1) {
            this.#length -= output.firstElementChild.textContent.length;
            output.firstElementChild.remove();
        }
        if (follows) output.scrollTop = output.scrollHeight;
    }

    #say(text) {
        setText(this.#parts["command-state"], text);
    }

    #fail(text) {
        setText(this.#parts["command-error"], text);
    }
}
