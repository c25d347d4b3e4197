//! What pages of other sites can do in a browser that has the cookie of a sandbox's ports: nothing. The
//! requests here are those that a browser sends for them.

use reqwest::{Method, RequestBuilder, redirect};
use serde_json::json;

use crate::nest::{Answer, Nest};
use crate::ports::{OK, Server, name};

const SITE: &str = "sec-fetch-site";

/// A request by a browser with the cookie.
async fn with_cookie(
    nest: &Nest,
    id: &str,
    port: u16,
) -> impl Fn(&[(&str, &str)]) -> RequestBuilder {
    let cookie = format!("nestbox_token={}", nest.ports_token(id).await);
    move |headers| {
        let mut request = nest.by_name(Method::GET, id, port, "/do?it").header("cookie", &cookie);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request
    }
}

#[actix_web::test]
async fn a_page_of_another_site_gets_nothing_done_with_the_cookie_not_even_by_get() {
    let nest = Nest::start().await;
    let (port, mut heads) = Server::answering(OK).await;
    let id = nest.create(json!({})).await;
    let browser = with_cookie(&nest, &id, port).await;
    let upgrade = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    for site in ["cross-site", "same-site", "", "new-word", "same-origin, cross-site"] {
        for kind in [
            // A script's request, a picture, a form or a link, and a frame.
            &[("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "empty")][..],
            &[("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "image")],
            &[("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")],
            &[("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")],
            &upgrade,
        ] {
            let answer = Answer::of(browser(kind).header(SITE, site)).await;
            let message = answer.error(401, "unauthorized");
            assert!(message.contains("another one has led here"), "{message}");
        }
    }
    let both = browser(&[(SITE, "same-origin"), (SITE, "cross-site")]);
    Answer::of(both).await.error(401, "unauthorized");
    assert!(heads.try_recv().is_err(), "nothing of it has reached the server");
}

#[actix_web::test]
async fn its_own_pages_and_the_user_get_everything_done() {
    let nest = Nest::start().await;
    let (port, _heads) = Server::answering(OK).await;
    let id = nest.create(json!({})).await;
    let browser = with_cookie(&nest, &id, port).await;
    let origin = format!("http://{}", name(&id, port));
    for headers in [
        &[][..],
        &[(SITE, "same-origin")],
        &[(SITE, "none"), ("sec-fetch-mode", "navigate")],
        &[(SITE, "same-origin"), ("origin", &origin)],
    ] {
        assert_eq!(Answer::of(browser(headers)).await.status, 200, "{headers:?}");
    }
    // The origin counts also where the browser says that the site is the same.
    let lie = browser(&[(SITE, "same-origin"), ("origin", "http://evil.example")]);
    Answer::of(lie).await.error(401, "unauthorized");
    // Who sends a token in a header is no browser that was led here.
    let token = nest.ports_token(&id).await;
    let script = nest.by_name(Method::GET, &id, port, "/").header("x-sandbox-token", token);
    assert_eq!(Answer::of(script.header(SITE, "cross-site")).await.status, 200);
}

#[actix_web::test]
async fn a_link_with_the_token_works_from_any_site() {
    let nest = Nest::start().await;
    let (port, _heads) = Server::answering(OK).await;
    let id = nest.create(json!({})).await;
    let token = nest.ports_token(&id).await;
    let browser =
        reqwest::Client::builder().no_proxy().redirect(redirect::Policy::none()).build().unwrap();
    let path = format!("/a%22b/?x=\"'%3E<&nestbox_token={token}&y");
    let request = browser.get(format!("{}{path}", nest.url)).header("host", name(&id, port));
    let answer = Answer::of(request.header(SITE, "cross-site")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let cookie = answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    assert_eq!(cookie, format!("nestbox_token={token}"));
    let page = String::from_utf8(answer.body.to_vec()).unwrap();
    // To the same place without the token, and nothing of the URL is markup.
    assert!(page.contains("content=\"0; url=/a%22b/?x="), "{page}");
    assert!(!page.contains(&token), "{page}");
    let target = page.split("url=").nth(1).unwrap().split("\">").next().unwrap();
    assert!(!target.contains(['"', '\'', '<', '>']), "{target}");
    assert!(target.ends_with("&amp;y"), "{target}");
    let policy = answer.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
    // What the page leads to comes from our own origin then.
    let next = nest.by_name(Method::GET, &id, port, "/").header("cookie", cookie);
    assert_eq!(Answer::of(next.header(SITE, "same-origin")).await.status, 200);
}
