//! The page without a mouse.

use serde_json::json;

use crate::keys::{ARROW_RIGHT, END, ENTER, ESCAPE, F6, SHIFT, SPACE, TAB};
use crate::page::{Page, on_the_page};
use crate::support::eventually;

#[test]
fn a_keyboard_alone_leads_from_the_key_to_the_end() {
    on_the_page(1, async |page, daemon, _| {
        let key = |key: char| key.to_string();
        page.visit().await;
        assert_eq!(page.focus().await, "Key", "it can be typed at once");
        page.keys(&format!("{}{ENTER}", page.key())).await;
        page.says("Connected").await;
        page.tab_to("New sandbox with Python").await;
        page.keys(&key(ENTER)).await;
        page.terminal_ends(&[">>>"]).await;
        page.keys("1+1\n").await;
        page.terminal_ends(&["2", ">>>"]).await;
        let id = page.sandbox_id().await;

        // Tab belongs to the program in the terminal.
        page.chord(SHIFT, F6).await;
        assert_eq!(page.focus().await, "End");
        back_to(page, "Terminal").await;
        page.keys(&key(ARROW_RIGHT)).await;
        assert_eq!(page.focus().await, "Command");
        page.keys(&key(TAB)).await;
        page.keys(&format!("echo is-$((40+2)){ENTER}")).await;
        page.says("is-42").await;
        back_to(page, "Command").await;
        page.keys(&key(END)).await;
        page.says("Hypervisor").await;

        back_to(page, "Destroy…").await;
        page.keys(&key(ENTER)).await;
        page.says("will be lost").await;
        page.keys(&key(ESCAPE)).await;
        page.says_no_more("will be lost").await;
        assert_eq!(page.focus().await, "Destroy…", "the dialog gives the keyboard back");
        page.keys(&key(SPACE)).await;
        page.says("will be lost").await;
        page.keys(&key(ENTER)).await;
        eventually("it is gone", || async { daemon.sandbox(&id).state().await == "stopped" }).await;
        page.says("is destroyed").await;
        assert!(page.focus().await.starts_with("Sandboxes"), "{}", page.focus().await);
        page.is_content().await;
    });
}

/// Presses Shift+Tab until the keyboard is there.
async fn back_to(page: &Page, name: &str) {
    for _ in 0..80 {
        if page.focus().await == name {
            return;
        }
        page.chord(SHIFT, TAB).await;
    }
    panic!("Shift+Tab does not lead to {name:?}");
}

#[test]
fn every_stop_of_the_keyboard_is_seen_and_has_a_name() {
    on_the_page(1, async |page, daemon, _| {
        let sandbox = daemon.create().await;
        page.enter().await;
        page.choose(&sandbox.id).await;
        for pane in ["Terminal", "Command", "Files", "Details"] {
            page.click(pane).await;
            // From the beginning.
            page.script("document.querySelector('h1 a').focus()", json!([])).await;
            let mut stops = Vec::new();
            for _ in 0..60 {
                page.keys(&TAB.to_string()).await;
                let at = "const at = document.activeElement; const style = getComputedStyle(at); \
                          return [at === document.body, at.matches(':focus-visible'), \
                          style.outlineStyle, parseFloat(style.outlineWidth)]";
                let at = page.script(at, json!([])).await;
                if at[0] == true {
                    break;
                }
                let name = page.focus().await;
                assert!(!name.is_empty(), "a stop without a name after {stops:?}");
                assert_eq!((&at[1], &at[2]), (&true.into(), &"solid".into()), "{name}");
                assert!(at[3].as_f64() >= Some(2.0), "{name}: {at}");
                stops.push(name);
            }
            assert!(stops.len() > 10, "{pane}: {stops:?}");
        }
        page.is_content().await;
    });
}
