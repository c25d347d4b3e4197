//! The description of the API, which is to be read and tried out.

use super::page::on_the_page;

#[test]
fn a_visitor_reads_about_the_api_and_tries_it_out_without_any_other_server() {
    on_the_page(1, async |page, daemon, _| {
        let sandbox = daemon.create().await;
        page.visit().await;
        page.click("API").await;
        page.says("Make, look at, pause, resume, fork and destroy sandboxes.").await;
        page.keep_picture("docs").await;

        page.click("Authorize").await;
        // There is a form for each of the two kinds of keys.
        page.eventually("a key is asked for", async || {
            let fields = page.seen("//*[@class='modal-ux']//input").await;
            let Some(field) = fields.first() else { return false };
            page.fill(field, page.key()).await;
            true
        })
        .await;
        page.click("Apply credentials").await;
        page.click_on("//*[@class='modal-ux']//button[@class='close-modal']").await;
        page.click_on("//*[@id='operations-sandboxes-listSandboxes']//button[1]").await;
        page.click("Try it out").await;
        page.click("Execute").await;
        page.says(&format!("\"id\": \"{}\"", sandbox.id)).await;
        page.keep_picture("docs-tried-out").await;
        assert_eq!(page.complaints().await, [""; 0]);
    });
}
