// Tabs: one pane at a time, chosen with the mouse or with arrow keys.

import { make } from "./dom.js";

/** Makes tabs for the panes of `root`; calls `onShown` with the name of the one that is shown. */
export function makeTabs(root, id, onShown) {
    const tablist = root.querySelector("[role=tablist]");
    const panes = [...root.querySelectorAll("[data-pane]")];
    const tabs = panes.map((pane) => {
        const name = pane.dataset.pane;
        pane.id = `${id}-${name}`;
        pane.setAttribute("role", "tabpanel");
        pane.setAttribute("aria-labelledby", `${pane.id}-tab`);
        const aria = { controls: pane.id };
        const tab = make("button", { type: "button", id: `${pane.id}-tab`, aria }, name);
        tab.setAttribute("role", "tab");
        tab.addEventListener("click", () => show(name));
        return tab;
    });
    tablist.append(...tabs);

    function show(name) {
        panes.forEach((pane, at) => {
            const shown = pane.dataset.pane === name;
            pane.hidden = !shown;
            tabs[at].setAttribute("aria-selected", String(shown));
            tabs[at].tabIndex = shown ? 0 : -1;
        });
        onShown(name);
    }

    tablist.addEventListener("keydown", (event) => {
        const at = tabs.indexOf(document.activeElement);
        const last = tabs.length - 1;
        const to = {
            ArrowLeft: at > 0 ? at - 1 : last,
            ArrowRight: at < last ? at + 1 : 0,
            Home: 0,
            End: last,
        }[event.key];
        if (at < 0 || to === undefined) return;
        event.preventDefault();
        tabs[to].focus();
        tabs[to].click();
    });

    show(panes[0].dataset.pane);
    return { show };
}
