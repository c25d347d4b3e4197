//! The file browser, while answers take their time.

use serde_json::json;

use crate::page::on_the_page;

/// Has the first list of a directory arrive late, with the answer of when it was asked for.
const DELAY: &str = "const real = window.fetch; let late = true; \
    window.fetch = async (...request) => { \
        const answer = await real(...request); \
        if (late && String(request[0]).includes('/files/list')) { \
            late = false; \
            await new Promise((done) => setTimeout(done, 1500)); \
            window.lateHasCome = true; \
        } \
        return answer; \
    }";

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

        page.script(DELAY, json!([])).await;
        page.click("Reload").await;
        page.write("Directory", "/tmp/second").await;
        page.click("Go").await;
        page.offers("Download two").await;
        let come = "return window.lateHasCome === true";
        crate::support::eventually("the late answer is there", async || {
            page.script(come, json!([])).await == true
        })
        .await;
        // A moment for the page to do with it what it should not.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        page.offers("Download two").await;
        let field = "return document.querySelector('.panel:not([hidden]) [name=path]').value";
        assert_eq!(page.script(field, json!([])).await, "/tmp/second");
        page.is_content().await;
    });
}
