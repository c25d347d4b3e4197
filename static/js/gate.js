// The way in: asks for the API key, and tries it.

import { call } from "./api.js";
import { busy, byId, isOff } from "./dom.js";
import { forgetKey, keepKey } from "./key.js";

/** Asks for the key, saying what was wrong with the last one. */
export function showGate(said) {
    byId("gate").hidden = false;
    byId("gate-error").textContent = said;
    byId("gate-key").value = "";
    byId("gate-key").focus();
}

/** Calls `onOpen` each time somebody has given a good key. */
export function listenAtGate(onOpen) {
    const form = byId("gate-form");
    const button = form.querySelector("[type=submit]");
    form.addEventListener("submit", (event) => {
        event.preventDefault();
        if (isOff(button)) return;
        busy(button, async () => {
            keepKey(byId("gate-key").value.trim());
            try {
                await call("GET", "/v1/sandboxes?limit=1");
            } catch (error) {
                forgetKey();
                showGate(error.message);
                return;
            }
            byId("gate").hidden = true;
            onOpen();
        });
    });
}
