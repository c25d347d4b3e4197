//! The terminal: a real one, which is found again.

use serde_json::json;

use crate::page::{Page, on_the_page};
use crate::support::eventually;

/// Columns that the terminal's programs know of.
async fn columns(page: &Page, word: &str) -> u32 {
    page.keys(&format!("clear; echo {word} $(stty size) end\n")).await;
    let said = page.terminal_says(&format!("{word} "), " end").await;
    let columns = said.split(' ').nth(2).expect("rows and columns");
    columns.parse().unwrap_or_else(|error| panic!("{said}: {error}"))
}

#[test]
fn a_terminal_is_a_real_one_and_is_found_again_after_the_page_was_left() {
    on_the_page(1, async |page, daemon, _| {
        let sandbox = daemon.create().await;
        page.enter().await;
        page.choose(&sandbox.id).await;
        page.click("Shell").await;
        page.says("Shell is open").await;
        page.keys("test -t 0 && echo is $((1+1)) $TERM\n").await;
        page.says("is 2 xterm-256color").await;
        let before = columns(page, "one").await;
        let narrow =
            json!({ "width": 700, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        page.devtools("Emulation.setDeviceMetricsOverride", narrow).await;
        eventually("it is told that it is narrower", || async {
            columns(page, "two").await < before
        })
        .await;
        // Ctrl+C reaches the program.
        // The program says so itself: what comes while the shell still begins it does not reach it.
        page.keys("sh -c 'echo asleep $((1+2)); exec sleep 1000'\n").await;
        page.says("asleep 3").await;
        page.chord('\u{E009}', 'c').await;
        page.says("^C").await;
        page.keys("echo after $((40+2))\n").await;
        page.says("after 42").await;

        // What is typed has arrived before the page is left.
        page.keys("kept=still; echo set $((40+3))\n").await;
        page.says("set 43").await;
        page.reload().await;
        page.says("Shell is open").await;
        // What it showed last comes again.
        page.says("set 43").await;
        page.keys("echo $kept here\n").await;
        page.says("still here").await;

        page.click("End").await;
        page.says("Shell has ended with exit code").await;
        page.click("Python prompt").await;
        page.terminal_ends(&[">>>"]).await;
        page.keys("exit()\n").await;
        page.says("Python has ended with exit code 0").await;
        page.click("Shell").await;
        page.says("Shell is open").await;
        sandbox.destroy().await;
        page.says("and the terminal with it").await;
        page.is_content().await;
    });
}
