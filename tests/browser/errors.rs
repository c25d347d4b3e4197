//! Everything that goes wrong is said in words, in those of the API where it has any.

use serde_json::json;

use crate::page::on_the_page;

#[test]
fn a_wrong_key_and_one_that_is_taken_away_lead_to_the_gate() {
    on_the_page(0, async |page, daemon, _| {
        page.visit().await;
        page.write("Key", "nb_wrong").await;
        page.click("Open").await;
        page.says("The API key is not valid.").await;
        page.keep_picture("wrong-key").await;

        let made = daemon.post("/v1/api-keys", &json!({ "name": "second" })).await.expect(201);
        page.write("Key", made["key"].as_str().expect("a key")).await;
        page.click("Open").await;
        page.says("Connected").await;
        let path = format!("/v1/api-keys/{}", made["id"].as_str().expect("an id"));
        daemon.delete(&path).await.expect(204);
        page.says("The API key is not valid.").await;
        page.says_no_more("Connected").await;
        page.is_content().await;
    });
}

#[test]
fn the_key_of_a_link_leaves_the_address_bar_and_is_kept_until_it_is_forgotten() {
    on_the_page(0, async |page, _, _| {
        page.enter().await;
        assert!(page.address().await.ends_with("/test"), "{}", page.address().await);
        page.reload().await;
        page.says("Connected").await;
        page.click("Forget key").await;
        page.says("API key").await;
        page.reload().await;
        page.says("API key").await;
        page.is_content().await;
    });
}

#[test]
fn what_the_api_refuses_is_shown_in_its_words() {
    on_the_page(1, async |page, daemon, _| {
        let sandbox = daemon.create().await;
        sandbox.pause().await;
        let refused = sandbox.try_exec(json!({ "cmd": "true" })).await;
        let refused = &refused.is_error(409, "invalid_state").message()[1..];
        page.enter().await;
        page.choose(&sandbox.id).await;
        page.click("Command").await;
        page.write("Command", "echo hi").await;
        page.click("Run").await;
        page.says(refused).await;
        page.keep_picture("paused-command").await;
        page.click("Files").await;
        page.says("Reload").await;
        page.says(refused).await;

        page.click("Choose template and size").await;
        for (label, value) in [("Template", "no-such"), ("Memory", "3")] {
            page.write(label, value).await;
            page.click("Create sandbox").await;
            let wish = match label {
                "Template" => json!({ "template": value }),
                _ => json!({ "memory_mb": 3 }),
            };
            let answer = daemon.try_create(wish).await;
            assert!(answer.status >= 400, "{answer:?}");
            page.says(&answer.message()[1..]).await;
            page.write(label, "").await;
        }

        sandbox.resume().await;
        page.shows_state("running").await;
        page.click("Reload").await;
        page.says_no_more(refused).await;
        page.write("Directory", "/no/such").await;
        page.click("Go").await;
        let path = format!("/v1/sandboxes/{}/files/list?path=/no/such&depth=1", sandbox.id);
        page.says(&daemon.get(&path).await.is_error(404, "not_found").message()[1..]).await;
        sandbox.snapshot("taken").await;
        page.click("Snapshot…").await;
        page.write("Name", "taken").await;
        // Before the page asks the same: one at a time is done to a sandbox.
        let answer = sandbox.try_snapshot("taken", false).await;
        page.click("Take snapshot").await;
        page.says(&answer.is_error(409, "conflict").message()[1..]).await;
        page.keep_picture("taken-name").await;
        daemon.delete_snapshot("taken").await;

        sandbox.kill_vm();
        page.shows_state("error").await;
        let reason = sandbox.becomes("error").await;
        page.says(&reason[1..]).await;
        page.is_content().await;

        // It lies over the list.
        page.click("Dismiss").await;
        let row = format!("//ul[@id='list']//*[text()='{}']", sandbox.id);
        page.click_on("//input[@id='list-ended']").await;
        page.click_on(&row).await;
        page.is_content().await;
        page.keep_picture("ended").await;
        page.click("Clear those that have ended").await;
        page.says("1 that had ended").await;
        daemon.get(&format!("/v1/sandboxes/{}", sandbox.id)).await.is_error(404, "not_found");
    });
}

#[test]
fn a_daemon_that_does_not_answer_and_a_sandbox_that_is_not_there_are_named() {
    on_the_page(0, async |page, daemon, _| {
        page.enter().await;
        let link = format!("{}#/nosuchsandbox", page.address().await);
        page.open(&link).await;
        let answer = daemon.get("/v1/sandboxes/nosuchsandbox").await;
        assert!(answer.status >= 400, "{answer:?}");
        page.says(&answer.message()[1..]).await;
        let network = |offline: bool| {
            json!({ "offline": offline, "latency": 0, "downloadThroughput": -1,
                "uploadThroughput": -1 })
        };
        page.devtools("Network.enable", json!({})).await;
        page.devtools("Network.emulateNetworkConditions", network(true)).await;
        page.says("The daemon does not answer. Is it still running?").await;
        page.click("New sandbox with Python").await;
        page.says("The sandbox was not made.").await;
        page.keep_picture("no-daemon").await;
        page.devtools("Network.emulateNetworkConditions", network(false)).await;
        page.says("Connected").await;
        page.click("Dismiss").await;
        page.says_no_more("The sandbox was not made.").await;
    });
}
