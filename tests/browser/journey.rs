//! What a person does with the page, from the first visit to nothing left.

use std::fs;

use serde_json::json;

use crate::page::{Page, on_the_page};
use crate::support::{Lab, Sandbox, eventually};

/// The most clicks from nothing to a Python prompt.
const CLICKS: u32 = 3;

#[test]
fn a_first_visitor_gets_to_a_python_prompt_and_can_do_all_there_is() {
    on_the_page(3, async |page, daemon, lab| {
        page.visit().await;
        page.keep_picture("1-key").await;
        page.write("Key", page.key()).await;
        page.click("Open").await;
        page.says("None yet").await;
        page.keep_picture("2-empty").await;
        page.click("New sandbox with Python").await;
        page.terminal_ends(&[">>>"]).await;
        assert!(page.clicks() <= CLICKS, "{} clicks to a prompt", page.clicks());
        page.keys("6*7\n").await;
        page.terminal_ends(&[">>> 6*7", "42", ">>>"]).await;
        page.keep_picture("3-python").await;

        let sandbox = daemon.sandbox(&page.sandbox_id().await);
        follows_a_command(page, &sandbox).await;
        moves_files(page, &sandbox, lab).await;
        goes_on_after_a_pause(page).await;
        copies_and_keeps(page).await;

        page.choose(&sandbox.id).await;
        page.click("Destroy…").await;
        page.says("will be lost").await;
        page.click("Destroy").await;
        eventually("it is gone", || async { sandbox.state().await == "stopped" }).await;
        page.says("Nothing chosen").await;

        for action in [
            "create",
            "start Python",
            "command",
            "upload",
            "download",
            "pause",
            "resume",
            "fork",
            "snapshot",
            "destroy",
        ] {
            let timings = page.timings().await;
            let took = timings.iter().find(|(name, _)| name == action).map(|(_, took)| took);
            assert!(took.is_some_and(|took| took.ends_with('s')), "{action}: {timings:?}");
        }
        page.click("Timings").await;
        page.keep_picture("9-timings").await;
        page.is_content().await;
    });
}

async fn follows_a_command(page: &Page, sandbox: &Sandbox) {
    page.click("Command").await;
    page.write("Command", "echo on$((0+1)); until [ -e /tmp/go ]; do sleep 0.1; done; exit 3")
        .await;
    page.click("Run").await;
    // While it runs.
    page.says("on1").await;
    page.says("Running.").await;
    sandbox.sh("touch /tmp/go").await;
    page.says("Exit code 3").await;
    page.keep_picture("4-command").await;

    page.write("Command", "sleep 1000").await;
    page.click("Run").await;
    page.click("Stop").await;
    page.says("Exit code 143").await;
}

async fn moves_files(page: &Page, sandbox: &Sandbox, lab: &Lab) {
    let content: Vec<u8> =
        (0..300_000u32).map(|number| (number.wrapping_mul(number) >> 7) as u8).collect();
    let here = lab.path("a file & more.bin");
    fs::write(&here, &content).expect("a file");
    page.click("Files").await;
    page.choose_files(".panel:not([hidden]) input[type=file]", &[&here]).await;
    page.offers("Download a file & more.bin").await;
    assert!(sandbox.read("/home/user/a file & more.bin").await == content, "the upload differs");

    page.click("Download a file & more.bin").await;
    let back = page.downloads().join("a file & more.bin");
    eventually("it is downloaded", || async {
        fs::read(&back).is_ok_and(|bytes| bytes.len() == content.len())
    })
    .await;
    assert!(fs::read(&back).expect("the copy") == content, "the download differs");

    page.click("New directory…").await;
    page.write("Name", "box").await;
    page.click("Make").await;
    page.click("Open box").await;
    page.says("Nothing in here").await;
    // A drop, as the browser tells the page of one.
    let drop = "const data = new DataTransfer(); data.items.add(new File(['dropped'], 'drop.txt')); \
                const place = document.querySelector('.panel:not([hidden]) [data-of=drop]'); \
                place.dispatchEvent(new DragEvent('drop', { dataTransfer: data, cancelable: true }))";
    page.script(drop, json!([])).await;
    page.offers("Download drop.txt").await;
    assert_eq!(sandbox.read("/home/user/box/drop.txt").await, b"dropped");
    page.click("Up").await;
    page.says("a file & more.bin").await;
    page.keep_picture("5-files").await;
    page.click("Delete a file & more.bin").await;
    page.click("Delete").await;
    page.says_no_more("a file & more.bin").await;
    assert_eq!(sandbox.sh("ls /home/user").await, "box");
}

async fn goes_on_after_a_pause(page: &Page) {
    page.click("Terminal").await;
    page.click("Pause").await;
    page.shows_state("paused").await;
    page.says("The terminal goes on when the sandbox is resumed").await;
    page.keep_picture("6-paused").await;
    page.click("Resume").await;
    page.shows_state("running").await;
    page.says("Python is open").await;
    page.keys("_+1\n").await;
    page.terminal_ends(&["42", ">>> _+1", "43", ">>>"]).await;
}

async fn copies_and_keeps(page: &Page) {
    page.click("Fork…").await;
    page.keep_picture("7-fork").await;
    page.click("Fork").await;
    page.says("The copy is").await;
    page.says("Sandboxes 2").await;
    page.click("Snapshot…").await;
    page.write("Name", "ready").await;
    page.click("Take snapshot").await;
    page.says("The snapshot ready is taken").await;
    page.says("Snapshots 1").await;
    let here = page.address().await;
    page.click("Create a sandbox from ready").await;
    page.says("Sandboxes 3").await;
    page.eventually("it is shown", async || page.address().await != here).await;
    page.shows_state("running").await;
    page.says("ready · 1 vCPU").await;
    page.keep_picture("8-from-a-snapshot").await;
    page.click("Delete the snapshot ready").await;
    page.click("Delete").await;
    page.says("The snapshot ready is deleted").await;
}
