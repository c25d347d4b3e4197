// The files of a sandbox: look around, upload, download, make directories, delete.

import { call, sandboxPath } from "./api.js";
import { ask } from "./ask.js";
import { button, make, setText } from "./dom.js";
import { timed } from "./timings.js";
import { download, uploadAll } from "./transfer.js";
import { bytes, moment } from "./words.js";

const HOME = "/home/user";

export class FilesPane {
    #id;
    #parts;
    #path = HOME;
    #shown = false;
    #looks = 0;

    constructor(id, parts, root) {
        this.#id = id;
        this.#parts = parts;
        const path = parts.go.elements.path;
        path.value = this.#path;
        parts.go.addEventListener("submit", (event) => {
            event.preventDefault();
            this.#look(path.value.trim());
        });
        parts.up.addEventListener("click", () => this.#look(parentOf(this.#path)));
        parts.reload.addEventListener("click", () => this.#look(this.#path));
        parts.mkdir.addEventListener("click", () => this.#try(() => this.#makeDirectory()));
        const input = root.querySelector("input[type=file]");
        parts.upload.addEventListener("click", () => input.click());
        input.addEventListener("change", () => {
            this.#upload([...input.files]);
            input.value = "";
        });
        this.#takeDrops(parts.drop);
    }

    /** Looks at the directory when the pane is seen the first time. */
    async show() {
        if (this.#shown) return;
        this.#shown = true;
        await this.#look(this.#path);
    }

    #fail(text) {
        setText(this.#parts["files-error"], text);
    }

    /** Does something; says so if it fails. */
    async #try(work) {
        this.#fail("");
        try {
            await work();
        } catch (error) {
            this.#fail(error.message);
        }
    }

    /** Shows a directory. Of several that are asked for at once the last one counts. */
    async #look(path) {
        const turn = ++this.#looks;
        const isLast = () => turn === this.#looks;
        const field = this.#parts.go.elements.path;
        const written = field.value;
        this.#fail("");
        setText(this.#parts["files-state"], "Reading.");
        try {
            const query = new URLSearchParams({ path, depth: "1" });
            const list = sandboxPath(this.#id, `/files/list?${query}`);
            const { entries } = await call("GET", list);
            if (!isLast()) return;
            this.#path = path;
            // Somebody may be writing already where to go next.
            if (field.value === written) field.value = path;
            this.#list(entries);
        } catch (error) {
            if (isLast()) this.#fail(error.message);
        } finally {
            if (isLast()) setText(this.#parts["files-state"], "");
        }
    }

    #list(entries) {
        const directories = (entry) => (entry.type === "directory" ? 0 : 1);
        entries.sort((a, b) => directories(a) - directories(b) || a.name.localeCompare(b.name));
        this.#parts.entries.replaceChildren(...entries.map((entry) => this.#row(entry)));
        this.#parts["files-empty"].hidden = entries.length > 0;
        this.#parts.up.disabled = this.#path === "/";
    }

    #row(entry) {
        const directory = entry.type === "directory";
        const shown = directory ? `${entry.name}/` : entry.name;
        const name = directory
            ? button(shown, { label: `Open ${entry.name}`, kind: "plain mono" },
                () => this.#look(entry.path))
            : make("span", { className: "mono" }, shown);
        const leads = entry.symlink_target ? ` → ${entry.symlink_target}` : "";
        const get = button("Download", { label: `Download ${entry.name}`, kind: "small" },
            () => this.#download(entry));
        const remove = button("Delete…", { label: `Delete ${entry.name}`, kind: "small danger" },
            () => this.#try(() => this.#remove(entry)));
        const owner = `${entry.owner}:${entry.group}`;
        return make("tr", {},
            make("td", {}, name, make("span", { className: "quiet" }, leads)),
            make("td", { className: "number" }, directory ? "" : bytes(entry.size)),
            make("td", { className: "spare quiet" }, moment(entry.modified_at)),
            make("td", { className: "spare mono quiet", title: owner }, entry.permissions),
            make("td", {}, make("div", { className: "row end" }, directory ? null : get, remove)));
    }

    async #makeDirectory() {
        const answer = await ask({
            title: "New directory",
            text: `In ${this.#path}.`,
            yes: "Make",
            field: { name: "Name" },
        });
        if (!answer) return;
        const path = join(this.#path, answer.value);
        await timed("make directory", this.#id,
            () => call("POST", sandboxPath(this.#id, "/files/mkdir"), { path }));
        await this.#look(this.#path);
    }

    async #remove(entry) {
        const sure = await ask({
            title: `Delete ${entry.name}?`,
            text: lossOf(entry),
            yes: "Delete",
            danger: true,
        });
        if (!sure) return;
        await timed("delete", this.#id, () => call("DELETE", this.#filePath(entry.path)));
        await this.#look(this.#path);
        this.#parts.reload.focus();
    }

    #filePath(path) {
        return sandboxPath(this.#id, `/files?${new URLSearchParams({ path })}`);
    }

    #download(entry) {
        return this.#try(() => timed("download", this.#id,
            () => download(this.#filePath(entry.path), entry, this.#parts.transfers)));
    }

    #upload(files) {
        const directory = this.#path;
        return this.#try(async () => {
            try {
                await timed("upload", this.#id, () => uploadAll(files,
                    (file) => this.#filePath(join(directory, file.name)), this.#parts.transfers));
            } finally {
                await this.#refreshAfter(directory);
            }
        });
    }

    /** Shows what was uploaded, unless somebody has gone elsewhere; a complaint stays. */
    async #refreshAfter(directory) {
        const said = this.#parts["files-error"].textContent;
        if (this.#path === directory) await this.#look(directory);
        if (said) this.#fail(said);
    }

    #takeDrops(place) {
        const over = (event) => {
            if (!event.dataTransfer?.types.includes("Files")) return;
            event.preventDefault();
            place.classList.add("over");
        };
        place.addEventListener("dragenter", over);
        place.addEventListener("dragover", over);
        place.addEventListener("dragleave", (event) => {
            if (!place.contains(event.relatedTarget)) place.classList.remove("over");
        });
        place.addEventListener("drop", (event) => {
            event.preventDefault();
            place.classList.remove("over");
            this.#upload([...event.dataTransfer.files]);
        });
    }
}

/** What will not be there any more. */
function lossOf({ type, symlink_target: target }) {
    if (target) return `The link will be lost, ${target} will not.`;
    const directory = type === "directory";
    return directory ? "The directory and all in it will be lost." : "The file will be lost.";
}

function join(directory, name) {
    return directory.endsWith("/") ? `${directory}${name}` : `${directory}/${name}`;
}

function parentOf(path) {
    const at = path.replace(/\/+$/, "").lastIndexOf("/");
    return at > 0 ? path.slice(0, at) : "/";
}
