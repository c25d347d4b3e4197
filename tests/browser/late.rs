//! The page, while answers take their time.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::page::{Page, on_the_page};

/// Has the answer to the next request of a method and a part of its address wait, as it was when it
/// was asked for, until `window.release` is called.
const HOLD: &str = "const [method, part] = arguments; const real = window.fetch; \
    const released = new Promise((release) => { window.release = release; }); \
    window.held = false; \
    window.fetch = async (...request) => { \
        if (request[1].method !== method || !String(request[0]).includes(part)) \
            return real(...request); \
        window.fetch = real; \
        const answer = await real(...request); \
        window.held = true; \
        await released; \
        return answer; \
    }";

/// A moment for the page to do with a late answer what it should not.
const MOMENT: Duration = Duration::from_millis(300);

impl Page {
    async fn holds(&self, method: &str, part: &str) {
        self.script(HOLD, json!([method, part])).await;
    }

    /// Lets the answer go that was held, as soon as there is one.
    async fn late_answer(&self) {
        let held = async || self.script("return window.held", json!([])).await == true;
        self.eventually("there is an answer to hold", held).await;
        self.script("window.release()", json!([])).await;
        sleep(MOMENT).await;
    }
}

#[test]
fn a_late_answer_neither_hides_what_was_asked_for_after_it_nor_what_is_being_written() {
    on_the_page(1, async |page, daemon, _| {
        let sandbox = daemon.create().await;
        sandbox.sh("mkdir -p /tmp/first /tmp/second; touch /tmp/first/one /tmp/second/two").await;
        page.enter().await;
        page.choose(&sandbox.id).await;
        page.click("Files").await;
        page.offers("Download .bashrc").await;
        page.write("Directory", "/tmp/first").await;
        page.click("Go").await;
        page.offers("Download one").await;

        page.holds("GET", "/files/list").await;
        page.click("Reload").await;
        page.write("Directory", "/tmp/second").await;
        page.click("Go").await;
        page.offers("Download two").await;
        page.late_answer().await;
        page.offers("Download two").await;
        let field = "return document.querySelector('.panel:not([hidden]) [name=path]').value";
        assert_eq!(page.script(field, json!([])).await, "/tmp/second");
        page.is_content().await;
    });
}

#[test]
fn a_new_sandbox_is_gone_to_unless_something_else_is_done_meanwhile() {
    on_the_page(3, async |page, daemon, _| {
        let first = daemon.create().await;
        page.enter().await;
        page.choose(&first.id).await;
        page.holds("POST", "/v1/sandboxes?").await;
        page.click("New sandbox with Python").await;
        page.click("Files").await;
        page.late_answer().await;
        assert_eq!(page.sandbox_id().await, first.id, "it was being looked at");
        page.offers("Download .bashrc").await;
        page.says("Sandboxes 2").await;
        let ids = daemon.ids().await;
        let second = ids.iter().find(|id| **id != first.id).expect("it is made");
        page.choose(second).await;
        page.terminal_ends(&[">>>"]).await;

        page.holds("POST", "/v1/sandboxes?").await;
        page.click("New sandbox with Python").await;
        // Impatience is nothing else.
        page.click_on("//*[@id='new-python']").await;
        page.late_answer().await;
        page.says("Sandboxes 3").await;
        let third = page.sandbox_id().await;
        assert!(third != first.id && third != *second, "{third} is looked at");
        page.is_content().await;
    });
}

#[test]
fn the_end_of_a_sandbox_leads_nobody_away_from_another_one() {
    on_the_page(2, async |page, daemon, _| {
        let (first, second) = (daemon.create().await, daemon.create().await);
        page.enter().await;
        page.choose(&first.id).await;
        page.holds("DELETE", &first.id).await;
        page.click("Destroy…").await;
        page.click("Destroy").await;
        page.choose(&second.id).await;
        page.late_answer().await;
        assert_eq!(page.sandbox_id().await, second.id);
        page.says(&format!("{} is destroyed", first.id)).await;
        page.is_content().await;
    });
}
