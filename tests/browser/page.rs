//! The page, in the words of somebody who looks at it.

use std::cell::Cell;
use std::ops::Deref;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::driver::{Browser, Element, missing};
use super::support::skip::skip;
use super::support::{Daemon, Lab, PATIENCE, in_a_lab};

/// For what is asked of a browser after it has not done what a test waits for.
const LAST_LOOK: Duration = Duration::from_secs(20);

/// What a person can press.
const PRESSABLE: &str = "self::button or self::a or self::summary";

/// The page in a browser of its own.
pub struct Page {
    browser: Browser,
    url: String,
    key: String,
    clicks: Cell<u32>,
}

impl Deref for Page {
    type Target = Browser;

    fn deref(&self) -> &Browser {
        &self.browser
    }
}

/// Runs a test with a daemon and a browser, which has at most `vms` VMs at a time.
pub fn on_the_page(vms: u32, test: impl AsyncFnOnce(&Page, &mut Daemon, &Lab) + Send + 'static) {
    if let Some(reason) = missing() {
        skip(&reason);
        return;
    }
    in_a_lab(vms, async move |lab| {
        let mut daemon = lab.daemon().await;
        let browser = Browser::start(lab).await;
        let (url, key) = (format!("{}/test", daemon.url), daemon.key.clone());
        let page = Page { browser, url, key, clicks: Cell::new(0) };
        test(&page, &mut daemon, lab).await;
        page.browser.close().await;
        for id in daemon.ids().await {
            daemon.sandbox(&id).destroy().await;
        }
        daemon.stop().await;
    });
}

/// A condition of XPath: what is called so, by its text, its label or its heading.
fn named(name: &str) -> String {
    ["normalize-space(.)", "@aria-label", "normalize-space(h2)"]
        .map(|text| format!("{text}=\"{name}\""))
        .join(" or ")
}

impl Page {
    /// Opens it as somebody who knows nothing.
    pub async fn visit(&self) {
        self.open(&self.url).await;
        self.says("API key").await;
    }

    /// Opens it with the link that the daemon prints.
    pub async fn enter(&self) {
        self.open(&format!("{}#key={}", self.url, self.key)).await;
        self.says("Connected").await;
    }

    /// The API key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Waits until a condition holds. A test that fails here says what was to be seen instead.
    pub async fn eventually(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        let looking = async {
            while !condition().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(PATIENCE, looking).await.is_err() {
            let shown = timeout(LAST_LOOK, self.last_look(what)).await;
            let shown = shown.unwrap_or_else(|_| "nothing: the browser does not answer".to_owned());
            panic!("{PATIENCE:?} later still not: {what}; the page shows\n{shown}");
        }
    }

    /// What is to be seen, and where a picture of it is.
    async fn last_look(&self, what: &str) -> String {
        let text = self.text().await;
        let letters = what.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' });
        let name = format!("failed-{}", letters.take(60).collect::<String>());
        self.keep_picture(&name).await;
        format!("{text}\n--- at {}, as in target/browser/{name}.png", self.address().await)
    }

    /// All text that can be seen.
    async fn text(&self) -> String {
        let shown = self.script("return document.body.innerText", json!([])).await;
        shown.as_str().expect("a text").to_owned()
    }

    /// Waits until it is to be read.
    pub async fn says(&self, text: &str) {
        let what = format!("the page says {text:?}");
        self.eventually(&what, async || self.text().await.contains(text)).await;
    }

    /// Waits until it is not to be read any more.
    pub async fn says_no_more(&self, text: &str) {
        let what = format!("the page no longer says {text:?}");
        self.eventually(&what, async || !self.text().await.contains(text)).await;
    }

    /// Waits for what can be pressed under this name.
    async fn pressable(&self, name: &str) -> Element {
        let off = "@disabled or @aria-disabled='true'";
        self.wait_for(name, &format!("//*[{PRESSABLE}][{}][not({off})]", named(name))).await
    }

    /// Waits until something under this name can be pressed.
    pub async fn offers(&self, name: &str) {
        self.pressable(name).await;
    }

    async fn wait_for(&self, what: &str, xpath: &str) -> Element {
        let mut found = Vec::new();
        self.eventually(&format!("{what} can be seen"), async || {
            found = self.seen(xpath).await;
            !found.is_empty()
        })
        .await;
        found.remove(0)
    }

    /// How often something was clicked on.
    pub fn clicks(&self) -> u32 {
        self.clicks.get()
    }

    /// Clicks on a sandbox in the list.
    pub async fn choose(&self, id: &str) {
        let link = self.wait_for(id, &format!("//nav//a[contains(., \"{id}\")]")).await;
        assert!(self.try_click(&link).await, "nothing is before {id}");
        self.eventually("it is shown", async || self.address().await.ends_with(id)).await;
    }

    /// Clicks on what is called so.
    pub async fn click(&self, name: &str) {
        self.clicks.set(self.clicks.get() + 1);
        self.eventually(&format!("{name} can be clicked"), async || {
            let element = self.pressable(name).await;
            self.try_click(&element).await
        })
        .await;
    }

    /// Clicks on what an XPath leads to, where it has no name that could be written here.
    pub async fn click_on(&self, xpath: &str) {
        self.clicks.set(self.clicks.get() + 1);
        self.eventually(&format!("{xpath} can be clicked"), async || {
            let element = self.wait_for(xpath, xpath).await;
            self.try_click(&element).await
        })
        .await;
    }

    /// Writes into the field with this label.
    pub async fn write(&self, label: &str, text: &str) {
        let xpath = format!("//label[contains(normalize-space(.), \"{label}\")]//input");
        let field = self.wait_for(label, &xpath).await;
        self.fill(&field, text).await;
    }

    /// The id of the sandbox that is looked at.
    pub async fn sandbox_id(&self) -> String {
        let address = self.address().await;
        address.split_once("#/").expect("a sandbox is chosen").1.to_owned()
    }

    /// Waits until the panel shows this state.
    pub async fn shows_state(&self, state: &str) {
        let script = "return document.querySelector('.panel:not([hidden]) [data-of=state]')\
                      ?.textContent ?? ''";
        let what = format!("the state is {state}");
        self.eventually(&what, async || self.script(script, json!([])).await == state).await;
    }

    /// The lines of the terminal that are not empty.
    pub async fn terminal(&self) -> Vec<String> {
        let script = "return [...document.querySelectorAll('.panel:not([hidden]) .xterm-rows > div')]\
                      .map((row) => row.textContent.replaceAll('\\u00a0', ' ').trimEnd())";
        let lines = self.script(script, json!([])).await;
        let lines = lines.as_array().expect("a list").iter();
        let lines = lines.map(|line| line.as_str().expect("a text").to_owned());
        lines.filter(|line| !line.is_empty()).collect()
    }

    /// Waits until the terminal is as a condition says; gives what that has found.
    async fn terminal_shows<T>(&self, what: &str, find: impl Fn(&[String]) -> Option<T>) -> T {
        let mut found = None;
        self.eventually(&format!("the terminal shows {what}"), async || {
            found = find(&self.terminal().await);
            found.is_some()
        })
        .await;
        found.expect("it was waited for")
    }

    /// Waits until the last lines of the terminal are these.
    pub async fn terminal_ends(&self, with: &[&str]) {
        let ends = |shown: &[String]| {
            let last = shown.get(shown.len().checked_sub(with.len())?..)?;
            (last == with).then_some(())
        };
        self.terminal_shows(&format!("{with:?} at its end"), ends).await;
    }

    /// Waits for a line of the terminal that begins and ends so.
    pub async fn terminal_says(&self, start: &str, end: &str) -> String {
        let says = |line: &&String| line.starts_with(start) && line.ends_with(end);
        let find = |shown: &[String]| shown.iter().find(says).cloned();
        self.terminal_shows(&format!("a line with {start:?} and {end:?}"), find).await
    }

    /// What the keyboard is at: an element's label or its text.
    pub async fn focus(&self) -> String {
        let script = "const at = document.activeElement; return at.getAttribute('aria-label') \
                      ?? at.labels?.[0]?.innerText ?? at.innerText";
        self.script(script, json!([])).await.as_str().unwrap_or_default().trim().to_owned()
    }

    /// Presses Tab until the keyboard is there.
    pub async fn tab_to(&self, name: &str) {
        let mut seen = Vec::new();
        for _ in 0..80 {
            let at = self.focus().await;
            if at.starts_with(name) {
                return;
            }
            seen.push(at);
            self.keys(&super::keys::TAB.to_string()).await;
        }
        panic!("Tab does not lead to {name:?}: {seen:?}");
    }

    /// The lines of `Timings`, newest first: action and how long it took.
    pub async fn timings(&self) -> Vec<(String, String)> {
        let script = "return [...document.querySelectorAll('#timings tbody tr')]\
                      .map((row) => [row.cells[1].textContent, row.cells[3].textContent])";
        let rows: Value = self.script(script, json!([])).await;
        serde_json::from_value(rows).expect("pairs")
    }

    /// Panics if the browser has complained: of the policy, of a script, of a file that is missing.
    /// What the daemon has refused is no complaint.
    pub async fn is_content(&self) {
        let refused = |text: &String| {
            text.contains("Failed to load resource") && text.contains("/v1/")
                || text.contains("Error during WebSocket handshake")
        };
        let complaints: Vec<String> =
            self.complaints().await.into_iter().filter(|text| !refused(text)).collect();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}
