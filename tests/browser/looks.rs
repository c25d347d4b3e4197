//! What the page looks like: light and dark, on a desk and on a phone.

use serde_json::{Value, json};

use crate::page::{Page, on_the_page};

/// Narrow phones' width, in CSS pixels.
const PHONE: u32 = 360;

/// Text whose contrast with what is behind it is below 4.5, as WCAG counts; no text of disabled
/// controls. Colours may be written in any way: a canvas turns them into numbers.
const FAINT: &str = r"
const paint = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
const numbers = (colour) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = colour;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
};
const light = ([r, g, b]) => [r, g, b]
    .map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
        const colour = numbers(getComputedStyle(at).backgroundColor);
        if (colour[3] === 255) return colour;
    }
    return numbers('Canvas');
};
const faint = [];
let seen = 0;
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    const text = texts.currentNode.textContent.trim();
    const off = element.closest(':disabled, [aria-disabled=true], .unseen, .xterm-helpers');
    if (!text || off || !element.checkVisibility()) continue;
    seen += 1;
    const both = [light(numbers(getComputedStyle(element).color)), light(behind(element))];
    const contrast = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    if (contrast < 4.5) faint.push(`${text}: ${contrast.toFixed(2)}`);
}
return [seen, faint];
";

/// What reaches beyond the right edge of the window, and is not in something that scrolls.
const TOO_WIDE: &str = r"
const wide = [...document.body.querySelectorAll('*')].filter((element) =>
    element.checkVisibility() && !element.closest('.scroll, .tabs, .unseen, .xterm')
    && element.getBoundingClientRect().right > innerWidth + 0.5);
const all = document.documentElement.scrollWidth > innerWidth ? ['the page'] : [];
return [...all, ...wide.map((element) => element.outerHTML.slice(0, 80))];
";

/// Roles that a person can do something with.
const ROLES: &[&str] = &[
    "button",
    "link",
    "textbox",
    "tab",
    "checkbox",
    "spinbutton",
    "combobox",
    "DisclosureTriangle",
];

async fn looks_right(page: &Page, name: &str) {
    let found = page.script(FAINT, json!([])).await;
    assert!(found[0].as_u64() > Some(5), "{name}: text is not found: {found}");
    assert_eq!(found[1], json!([]), "{name}: text that is hard to read");
    let wide = page.script(TOO_WIDE, json!([])).await;
    assert_eq!(wide, json!([]), "{name}: wider than the window");
    page.keep_picture(name).await;
}

async fn everything_has_a_name(page: &Page) {
    let tree = page.devtools("Accessibility.getFullAXTree", json!({})).await;
    let nodes = tree["nodes"].as_array().expect("nodes").iter();
    let usable: Vec<&Value> = nodes
        .filter(|node| node["ignored"] == false)
        .filter(|node| ROLES.iter().any(|role| node["role"]["value"] == *role))
        .collect();
    assert!(usable.len() > 10, "only {} things can be used", usable.len());
    for node in usable {
        assert_ne!(node["name"]["value"].as_str().unwrap_or_default(), "", "{node}");
    }
}

#[test]
fn the_page_can_be_read_in_light_and_dark_on_a_desk_and_on_a_phone() {
    on_the_page(2, async |page, daemon, _| {
        let sandbox = daemon.create().await;
        sandbox.snapshot("kept").await;
        daemon.create().await.pause().await;
        sandbox.sh("mkdir -p project && echo hello > notes.txt").await;
        for (size, width, height) in [("desk", 1280, 900), ("phone", PHONE, 740)] {
            let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1,
                "mobile": width == PHONE });
            page.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
            for scheme in ["light", "dark"] {
                let media = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
                page.devtools("Emulation.setEmulatedMedia", json!({ "features": media })).await;
                let picture = |name: &str| format!("looks-{size}-{scheme}-{name}");
                page.visit().await;
                looks_right(page, &picture("1-key")).await;
                page.enter().await;
                page.says("kept").await;
                page.click("Choose template and size").await;
                looks_right(page, &picture("2-list")).await;
                page.choose(&sandbox.id).await;
                page.click("Shell").await;
                page.says("Shell is open").await;
                page.keys("echo is-$((6*7))\n").await;
                page.says("is-42").await;
                looks_right(page, &picture("3-terminal")).await;
                everything_has_a_name(page).await;
                page.click("End").await;
                page.says("Shell has ended").await;
                page.click("Command").await;
                page.write("Command", "ls; ls /no").await;
                page.click("Run").await;
                page.says("Exit code 2").await;
                looks_right(page, &picture("4-command")).await;
                page.click("Files").await;
                page.says("notes.txt").await;
                looks_right(page, &picture("5-files")).await;
                page.click("Details").await;
                page.says("Hypervisor").await;
                looks_right(page, &picture("6-details")).await;
                page.click("Destroy…").await;
                page.says("will be lost").await;
                looks_right(page, &picture("7-question")).await;
                page.click("Cancel").await;
                page.click("Forget key").await;
            }
        }
        daemon.delete_snapshot("kept").await;
        page.is_content().await;
    });
}
