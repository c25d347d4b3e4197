// A terminal in a sandbox: one session at a time, which is found again after a pause, a lost
// connection or a reload of the page.
//
//            start            exit, destroyed
//   none ----------> open ----------------------> none
//                    |  ^ connect again
//         pause, lost v  | when the sandbox runs
//                    away
//
import { openSocket, sandboxPath, whyNot } from "./api.js";
import { bytesOf, dataOf, pieces } from "./bytes.js";
import { setText } from "./dom.js";
import { makeScreen } from "./screen.js";
import { list } from "./timings.js";
import { sentence } from "./words.js";

/** What can be started: without a command, the user's shell. */
const PROGRAMS = {
    python: { name: "Python", start: { cmd: "python3", args: [] } },
    shell: { name: "Shell", start: {} },
};

/** Characters in one message; far below the daemon's limit for messages. */
const PIECE = 64 << 10;

/** For so long after a connection what comes may be what came before. */
const REPEAT_MS = 2000;

/** What a terminal answers when a program asks what it is, or where its cursor is. */
const REPORT = /^\x1b\[[?>]?[\d;]*[cRn]$/;

const GOES_ON = "Paused. The terminal goes on when the sandbox is resumed.";

const PAUSED = 4001;
const DESTROYED = 4002;

export class TerminalPane {
    #id;
    #parts;
    #screen = null;
    #socket = null;
    #phase = "none";
    #running = false;
    #repeats = 0;

    constructor(id, parts) {
        this.#id = id;
        this.#parts = parts;
        for (const name of Object.keys(PROGRAMS)) {
            parts[name].addEventListener("click", () => this.begin(name));
        }
        parts.end.addEventListener("click", () => this.#send({ type: "stop" }));
        // What was open when the page was left.
        if (this.#kept) this.#away("A terminal was open here.");
        this.#showPhase();
    }

    /** Takes note of the sandbox's state: a session that was left is taken up when it runs again. */
    update({ state }) {
        this.#running = state === "running";
        if (this.#phase === "away" && this.#running) this.#connect();
        if (this.#phase !== "none" && ["stopped", "error"].includes(state)) {
            this.#over("The sandbox has ended, and the terminal with it.");
        }
        this.#showPhase();
    }

    /** Starts a program in the terminal. */
    async begin(name) {
        if (this.#phase !== "none") return;
        const { name: called, start } = PROGRAMS[name];
        this.#phase = "opening";
        this.#say(`${called} is starting.`);
        const begun = performance.now();
        const screen = await this.#theScreen();
        screen.clear();
        const tag = `page-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
        const onStart = () => {
            this.#keep({ tag, called });
            list(`start ${called}`, this.#id, performance.now() - begun);
        };
        this.#open({ type: "start", ...start, tag, ...screen.size() }, called, onStart);
    }

    focus() {
        this.#screen?.focus();
    }

    /** Leaves the session as it is. */
    leave() {
        this.#phase = "none";
        this.#socket?.close();
        this.#socket = null;
    }

    async #connect() {
        const { tag, called } = this.#kept;
        this.#phase = "opening";
        this.#say("Connecting again.");
        const screen = await this.#theScreen();
        const onStart = () => {
            // The last of what it showed comes again.
            screen.clear();
            this.#repeats = performance.now() + REPEAT_MS;
        };
        this.#open({ type: "connect", tag, ...screen.size() }, called, onStart);
    }

    #open(first, called, onStart) {
        this.#fail("");
        const socket = openSocket(sandboxPath(this.#id, "/pty"));
        this.#socket = socket;
        let opened = false;
        socket.addEventListener("open", () => {
            opened = true;
            socket.send(JSON.stringify(first));
        });
        socket.addEventListener("message", ({ data }) => {
            const message = JSON.parse(data);
            if (message.type === "start") {
                this.#phase = "open";
                this.#say(`${called} is open.`);
                onStart();
                this.#screen.focus();
            } else if (message.type === "output") {
                this.#screen.write(bytesOf(message));
            } else if (message.type === "exit") {
                this.#over(`${called} has ended with exit code ${message.exit_code}.`);
            } else if (message.type === "error") {
                this.#fail(sentence(message.message));
            }
        });
        socket.addEventListener("close", ({ code }) => {
            if (this.#socket !== socket) return;
            this.#socket = null;
            if (opened) this.#closed(code);
            else this.#refused(first.type);
        });
    }

    #closed(code) {
        if (this.#phase === "none") return;
        if (code === PAUSED) this.#away(GOES_ON);
        else if (code === DESTROYED) this.#over("The sandbox is destroyed, and the terminal with it.");
        // Said why in a message before.
        else if ([1000, 1008, 1011].includes(code)) this.#over("The terminal is closed.");
        else this.#away("The connection was lost; it is tried again.");
    }

    async #refused(type) {
        const why = await whyNot(this.#id);
        if (this.#phase === "none") return;
        if (type === "connect") {
            // The list may have shown the sandbox as it was before it was paused.
            const paused = why.code === "invalid_state";
            this.#away(paused ? GOES_ON : `The terminal is not connected. ${why.message}`);
        } else {
            this.#fail(why.message);
            this.#over("No terminal is open.");
        }
    }

    /** The session is there, and we are not connected to it. */
    #away(text) {
        this.#phase = "away";
        // Not when the sandbox ran a moment ago: what the list says next counts.
        this.#running = false;
        this.#say(text);
    }

    /** There is no session any more. */
    #over(text) {
        this.#phase = "none";
        this.#keep(null);
        this.#say(text);
        this.#socket?.close();
        this.#socket = null;
    }

    async #theScreen() {
        this.#parts.screen.classList.add("used");
        this.#screen ??= await makeScreen(this.#parts.screen, {
            onInput: (data) => this.#type(data),
            onSize: (size) => this.#send({ type: "resize", ...size }),
            onLeave: () => this.#parts.end.focus(),
        });
        return this.#screen;
    }

    #type(data) {
        // What a program has asked the terminal before was answered then.
        if (performance.now() < this.#repeats && REPORT.test(data)) return;
        const all = typeof data === "string" ? pieces(data, PIECE) : [data];
        for (const piece of all) this.#send({ type: "input", ...dataOf(piece) });
    }

    #send(message) {
        if (this.#phase === "open") this.#socket?.send(JSON.stringify(message));
    }

    #say(text) {
        setText(this.#parts["terminal-state"], text);
        this.#showPhase();
    }

    #fail(text) {
        setText(this.#parts["terminal-error"], text);
    }

    #showPhase() {
        for (const name of Object.keys(PROGRAMS)) {
            this.#parts[name].disabled = this.#phase !== "none" || !this.#running;
        }
        this.#parts.end.disabled = this.#phase !== "open";
        this.#parts.screen.dataset.phase = this.#phase;
    }

    get #place() {
        return `nestbox-terminal-${this.#id}`;
    }

    get #kept() {
        return JSON.parse(sessionStorage.getItem(this.#place));
    }

    #keep(session) {
        if (session) sessionStorage.setItem(this.#place, JSON.stringify(session));
        else sessionStorage.removeItem(this.#place);
    }
}
