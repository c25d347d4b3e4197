// The list of sandboxes with their states.

import { call } from "./api.js";
import { byId, make, reconcile, setText } from "./dom.js";
import { complain, say } from "./notice.js";
import { chosen, hashOf } from "./route.js";
import { askForMore, hasMore, isKnown, refresh, sandboxes, showEnded } from "./store.js";
import { age, isEnded, shape } from "./words.js";

/** Shows the sandboxes as they are known now. */
export function showList() {
    const all = sandboxes();
    reconcile(byId("list"), all, (it) => it.id, create, update);
    byId("list-empty").hidden = all.length > 0 || !isKnown();
    byId("list-more").hidden = !hasMore();
    byId("list-clear").hidden = !all.some((it) => isEnded(it.state));
    setText(byId("list-count"), all.length > 0 ? `${all.length}${hasMore() ? "+" : ""}` : "");
}

function create({ id }) {
    const link = make("a", { href: hashOf(id), className: "item" },
        make("span", { className: "mono name" }, id),
        make("span", { className: "state" }),
        make("span", { className: "quiet" }));
    return make("li", {}, link);
}

function update(row, sandbox) {
    const link = row.firstElementChild;
    const [, state, about] = link.children;
    showState(state, sandbox);
    setText(about, `${sandbox.template} · ${shape(sandbox)} · ${age(sandbox.created_at)}`);
    if (sandbox.id === chosen()) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
}

/** Shows a state, in a word and a colour. */
export function showState(element, { state }) {
    setText(element, state);
    element.dataset.state = state;
}

byId("list-more").addEventListener("click", () => askForMore());

byId("list-ended").addEventListener("change", (event) => showEnded(event.target.checked));

byId("list-clear").addEventListener("click", async () => {
    try {
        const { cleared } = await call("DELETE", "/v1/sandboxes?state=ended");
        say(`${cleared} that had ended were taken off the list.`);
    } catch (error) {
        complain(error.message);
    }
    refresh();
});
