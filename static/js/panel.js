// The panel of one sandbox: its state, what can be done to it, and its panes.

import { destroy, fork, pause, resume, snapshot } from "./actions.js";
import { CommandPane } from "./command.js";
import { takeBeginning } from "./create.js";
import { showDetails } from "./details.js";
import { busy, byId, isOff, partsOf, setText } from "./dom.js";
import { FilesPane } from "./files.js";
import { showState } from "./list.js";
import { Metrics } from "./metrics.js";
import { complain, say } from "./notice.js";
import { makeTabs } from "./tabs.js";
import { TerminalPane } from "./terminal.js";
import { age, sentence, shape } from "./words.js";

/** In which states what can be done. */
const POSSIBLE = {
    turn: ["running", "paused"],
    fork: ["running", "paused"],
    snapshot: ["running", "paused"],
};

export class Panel {
    #id;
    #parts;
    #terminal;
    #files;
    #metrics;
    #state = "";
    #pane = "";

    constructor(id) {
        this.#id = id;
        this.root = byId("panel").content.firstElementChild.cloneNode(true);
        this.#parts = partsOf(this.root);
        this.#parts.id.textContent = id;
        this.#terminal = new TerminalPane(id, this.#parts);
        this.#files = new FilesPane(id, this.#parts, this.root);
        this.#metrics = new Metrics(id, this.#parts.metrics);
        new CommandPane(id, this.#parts);
        makeTabs(this.root, id, (name) => this.#shown(name));
        this.#listen();
    }

    #listen() {
        this.#on("turn", () => (this.#state === "paused" ? resume : pause)(this.#id));
        this.#on("fork", () => fork(this.#id));
        this.#on("snapshot", () => snapshot(this.#id));
        this.#on("destroy", () => destroy(this.#id));
        this.#on("copy", async () => {
            await navigator.clipboard.writeText(this.#id);
            say("The id is copied.");
        });
    }

    #on(name, work) {
        const button = this.#parts[name];
        button.addEventListener("click", () => {
            if (isOff(button)) return;
            busy(button, async () => {
                try {
                    await work();
                } catch (error) {
                    complain(error.message);
                }
            });
        });
    }

    #shown(name) {
        this.#pane = name;
        if (name === "Files") this.#files.show();
        if (name === "Details") showDetails(this.#id, this.#parts.details);
    }

    /** Shows what is known of the sandbox. */
    update(sandbox) {
        const { state, reason } = sandbox;
        const changed = state !== this.#state;
        this.#state = state;
        showState(this.#parts.state, sandbox);
        const about = [sandbox.template, shape(sandbox), age(sandbox.created_at)];
        setText(this.#parts.about, about.join(" · "));
        setText(this.#parts.reason, sentence(reason));
        this.#parts.reason.hidden = !reason;
        setText(this.#parts.turn, state === "paused" || state === "resuming" ? "Resume" : "Pause");
        for (const [name, states] of Object.entries(POSSIBLE)) {
            this.#parts[name].disabled = !states.includes(state);
        }
        this.#parts.destroy.disabled = state === "stopped";
        this.#terminal.update(sandbox);
        if (state === "running") {
            const beginning = takeBeginning(this.#id);
            if (beginning) this.#terminal.begin(beginning);
        }
        if (changed && this.#pane === "Details") showDetails(this.#id, this.#parts.details);
        this.#metrics.update(sandbox);
    }

    /** Takes it away; what runs in its terminal goes on. */
    close() {
        this.#terminal.leave();
        this.root.remove();
    }

    /** Leads a keyboard here. */
    focus() {
        this.#parts.id.focus();
    }
}
