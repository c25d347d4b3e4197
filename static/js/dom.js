// Small helpers for the document. Text only ever becomes text: nothing here takes markup.

/** The element with this id, which is in the page. */
export function byId(id) {
    const found = document.getElementById(id);
    if (!found) throw new Error(`no element #${id}`);
    return found;
}

/**
 * Makes an element: `properties` are set on it (`data` and `aria` become attributes, `on`
 * listeners), `children` are elements or text.
 */
export function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    const { data = {}, aria = {}, on = {}, ...rest } = properties;
    Object.assign(element, rest);
    Object.assign(element.dataset, data);
    for (const [name, value] of Object.entries(aria)) element.setAttribute(`aria-${name}`, value);
    for (const [name, listener] of Object.entries(on)) element.addEventListener(name, listener);
    element.append(...children.filter((child) => child !== null));
    return element;
}

/**
 * Makes a button; `label` says what it is for where `text` alone does not. It is busy while `work`
 * takes.
 */
export function button(text, { label, kind = "" }, work) {
    const aria = label ? { label } : {};
    const made = make("button", { type: "button", className: kind, aria }, text);
    made.addEventListener("click", () => {
        if (!isOff(made)) busy(made, work);
    });
    return made;
}

/** Sets text only where it differs, so that nothing is announced, selected or laid out anew. */
export function setText(element, text) {
    if (element.textContent !== text) element.textContent = text;
}

/** The parts of a piece of the document by the names in their `data-of` and `data-do`. */
export function partsOf(root) {
    const parts = {};
    for (const element of root.querySelectorAll("[data-of], [data-do]")) {
        parts[element.dataset.of ?? element.dataset.do] = element;
    }
    return parts;
}

/**
 * Makes the children of `parent` those of `items`, in order; elements whose key is still there
 * stay, and with them the focus.
 */
export function reconcile(parent, items, keyOf, create, update) {
    const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
    let place = parent.firstElementChild;
    for (const item of items) {
        const key = keyOf(item);
        let child = old.get(key);
        if (child) old.delete(key);
        else {
            child = create(item);
            child.dataset.key = key;
        }
        update(child, item);
        if (child === place) place = place.nextElementSibling;
        else parent.insertBefore(child, place);
    }
    for (const child of old.values()) child.remove();
}

/** Disables a control for as long as something takes; a screen reader hears that it is busy. */
export async function busy(button, work) {
    button.setAttribute("aria-busy", "true");
    button.setAttribute("aria-disabled", "true");
    try {
        return await work();
    } finally {
        button.removeAttribute("aria-busy");
        button.removeAttribute("aria-disabled");
    }
}

/** Whether a control is disabled in either way. */
export function isOff(button) {
    return button.disabled || button.getAttribute("aria-disabled") === "true";
}
