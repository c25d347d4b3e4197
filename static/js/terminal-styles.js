// xterm.js writes its colours and sizes into <style> elements, which our Content-Security-Policy
// forbids. Style sheets that a script constructs are allowed: this makes xterm write into those.

/** Does something, during which `<style>` elements that are made are not such. */
export function withConstructedStyles(work) {
    const createElement = document.createElement;
    document.createElement = (tag, options) =>
        tag === "style" ? constructedStyle() : createElement.call(document, tag, options);
    try {
        work();
    } finally {
        // What the prototype has comes into sight again.
        delete document.createElement;
    }
}

/** An element that passes its text on to a style sheet, and takes that away with itself. */
function constructedStyle() {
    const sheet = new CSSStyleSheet();
    document.adoptedStyleSheets.push(sheet);
    const element = document.createElement("template");
    let text = "";
    Object.defineProperty(element, "textContent", {
        get: () => text,
        set: (value) => {
            text = value;
            sheet.replaceSync(value);
        },
    });
    element.remove = () => {
        const others = document.adoptedStyleSheets.filter((other) => other !== sheet);
        document.adoptedStyleSheets = others;
        Element.prototype.remove.call(element);
    };
    return element;
}
