// Questions before something is done: one dialog for all of them.

import { byId } from "./dom.js";

/**
 * Asks. Gives `null` if the answer is no, else `{ value, checked }`.
 *
 * `field` is `{ name, ...properties of the input }`, `check` the text of a check box.
 */
export function ask({ title, text, yes, danger = false, field, check }) {
    const dialog = byId("ask");
    const input = byId("ask-field");
    byId("ask-title").textContent = title;
    byId("ask-text").textContent = text;
    const confirm = byId("ask-yes");
    confirm.textContent = yes;
    confirm.className = danger ? "primary danger" : "primary";
    byId("ask-label").hidden = !field;
    byId("ask-check-label").hidden = !check;
    byId("ask-check-name").textContent = check ?? "";
    byId("ask-check").checked = false;
    for (const name of ["min", "max", "pattern", "maxlength", "title"]) input.removeAttribute(name);
    const { name = "", ...properties } = field ?? {};
    byId("ask-name").textContent = name;
    Object.assign(input, { type: "text", value: "", required: Boolean(field), ...properties });
    dialog.returnValue = "";
    dialog.showModal();
    (field ? input : confirm).focus();
    if (field) input.select();
    return new Promise((resolve) => {
        const answer = () => {
            const said = { value: input.value, checked: byId("ask-check").checked };
            resolve(dialog.returnValue === "yes" ? said : null);
        };
        dialog.addEventListener("close", answer, { once: true });
    });
}

byId("ask-no").addEventListener("click", () => byId("ask").close(""));
