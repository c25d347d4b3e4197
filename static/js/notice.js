// What has happened, in words: for a moment what went well, until it is dismissed what did not.

import { byId, make } from "./dom.js";

const SHOWN_MS = 5000;
const MOST_NOTICES = 2;
const MOST_ALERTS = 4;

/** Says something that went well; it goes by itself. */
export function say(text) {
    const notice = make("p", { className: "notice" }, text);
    byId("notices").append(notice);
    setTimeout(() => notice.remove(), SHOWN_MS);
    atMost(byId("notices"), MOST_NOTICES);
}

/** Says what went wrong; it stays until it is dismissed. */
export function complain(text) {
    const alerts = byId("alerts");
    const dismiss = make("button", { type: "button", className: "plain" }, "Dismiss");
    const alert = make("div", { className: "notice bad" }, make("p", {}, text), dismiss);
    dismiss.addEventListener("click", () => alert.remove());
    alerts.append(alert);
    atMost(alerts, MOST_ALERTS);
}

function atMost(list, most) {
    while (list.children.length > most) list.firstElementChild.remove();
}
