// Uploads and downloads, with how far they are.

import { send, upload } from "./api.js";
import { make, setText } from "./dom.js";
import { bytes } from "./words.js";

/** A line that says how far a transfer is, with a button that ends it. */
function line(place, text, size) {
    const control = new AbortController();
    const progress = make("progress", { aria: { label: text } });
    // None while nobody knows: an empty file has no part of itself.
    if (size > 0) Object.assign(progress, { max: size, value: 0 });
    const amount = make("span", { className: "quiet number" });
    const cancel = make("button", { type: "button", on: { click: () => control.abort() } }, "Cancel");
    const item = make("li", {}, make("span", { className: "name" }, text), progress, amount, cancel);
    place.append(item);
    return {
        signal: control.signal,
        at(done) {
            if (size > 0) progress.value = done;
            setText(amount, size > 0 ? `${bytes(done)} of ${bytes(size)}` : bytes(done));
        },
        done: () => item.remove(),
    };
}

/** Uploads files one after the other; the first that fails is the last. */
export async function uploadAll(files, pathOf, place) {
    for (const file of files) {
        const shown = line(place, `Uploading ${file.name}`, file.size);
        try {
            await upload(pathOf(file), file, shown.at, shown.signal);
        } catch (error) {
            const cancelled = error.name === "AbortError";
            const why = cancelled ? "It was cancelled." : error.message;
            throw new Error(`${file.name} was not uploaded. ${why}`);
        } finally {
            shown.done();
        }
    }
}

/** Downloads a file, and has the browser keep it under its name. */
export async function download(path, { name, size }, place) {
    const shown = line(place, `Downloading ${name}`, size);
    try {
        const response = await send("GET", path, { signal: shown.signal });
        let done = 0;
        const counted = response.body.pipeThrough(new TransformStream({
            transform(chunk, controller) {
                done += chunk.length;
                shown.at(done);
                controller.enqueue(chunk);
            },
        }));
        save(await new Response(counted).blob(), name);
    } catch (error) {
        const cancelled = error.name === "AbortError";
        const why = cancelled ? "It was cancelled." : error.message;
        throw new Error(`${name} was not downloaded. ${why}`);
    } finally {
        shown.done();
    }
}

function save(blob, name) {
    const url = URL.createObjectURL(blob);
    make("a", { href: url, download: name }).click();
    // The browser has taken hold of it before this; a short while is to be sure.
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
