// The screen of a terminal: xterm.js, in our colours, as large as its place.

import { withConstructedStyles } from "./terminal-styles.js";

const dark = matchMedia("(prefers-color-scheme: dark)");

/** Loaded when the first terminal is opened: it is by far the largest part of the page. */
async function load() {
    const [{ Terminal }, { FitAddon }] = await Promise.all([
        import("../vendor/xterm/xterm.mjs"),
        import("../vendor/xterm/addon-fit.mjs"),
    ]);
    return { Terminal, FitAddon };
}

/** The colours of the page's terminal, which are in the style sheet. */
function theme(place) {
    const style = getComputedStyle(place);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const names = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];
    const theme = {
        background: colour("screen"),
        foreground: colour("screen-text"),
        cursor: colour("screen-text"),
        cursorAccent: colour("screen"),
        selectionBackground: colour("screen-selection"),
    };
    for (const name of names) {
        theme[name] = colour(`ansi-${name}`);
        theme[`bright${name[0].toUpperCase()}${name.slice(1)}`] = colour(`ansi-${name}`);
    }
    theme.brightBlack = colour("ansi-grey");
    return theme;
}

/**
 * Makes a screen in `place`. `onInput` hears what is typed: text, or bytes. `onSize` hears its columns
 * and rows. `onLeave` is called for the keys that lead out of it.
 */
export async function makeScreen(place, { onInput, onSize, onLeave }) {
    const { Terminal, FitAddon } = await load();
    const terminal = new Terminal({
        theme: theme(place),
        fontFamily: "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace",
        fontSize: 14,
        // Less, and rows cut off underscores in some fonts.
        lineHeight: 1.2,
        scrollback: 5000,
        cursorBlink: !matchMedia("(prefers-reduced-motion: reduce)").matches,
        // What programs print may be chosen for another background.
        minimumContrastRatio: 4.5,
    });
    const fit = new FitAddon();
    terminal.loadAddon(fit);
    withConstructedStyles(() => terminal.open(place));
    terminal.textarea.setAttribute("aria-label", "Terminal input");
    terminal.onData(onInput);
    terminal.onBinary((text) => onInput(Uint8Array.from(text, (char) => char.charCodeAt(0))));
    // It tells more than that, which the daemon would not take.
    terminal.onResize(({ cols, rows }) => onSize({ cols, rows }));
    terminal.attachCustomKeyEventHandler((event) => {
        if (event.key !== "F6" || !event.shiftKey) return true;
        if (event.type === "keydown") onLeave();
        event.preventDefault();
        return false;
    });
    new ResizeObserver(() => {
        if (place.offsetParent) fit.fit();
    }).observe(place);
    dark.addEventListener("change", () => {
        terminal.options.theme = theme(place);
    });
    fit.fit();
    return {
        write: (bytes) => terminal.write(bytes),
        clear: () => terminal.reset(),
        focus: () => terminal.focus(),
        size: () => ({ cols: terminal.cols, rows: terminal.rows }),
    };
}
