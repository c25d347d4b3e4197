//! The files of the browser page, as browsers load them. What is done with it: tests/browser.

use reqwest::Method;

use crate::nest::{Answer, Nest};

async fn load(nest: &Nest, path: &str) -> Answer {
    Answer::of(nest.anonymous(Method::GET, path)).await
}

#[actix_web::test]
async fn the_page_needs_no_key_and_loads_only_what_is_built_in() {
    let nest = Nest::start().await;
    let page = load(&nest, "/test").await;
    assert_eq!(page.status, 200, "{page:?}");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let html = std::str::from_utf8(&page.body).unwrap();
    let mut loaded = 0;
    for attribute in ["src=\"", "<link rel=\"stylesheet\" href=\"", "<link rel=\"icon\" href=\""] {
        for rest in html.split(attribute).skip(1) {
            let path = rest.split('"').next().unwrap();
            let answer = load(&nest, &format!("/{path}")).await;
            assert_eq!(answer.status, 200, "{path}");
            loaded += 1;
        }
    }
    assert!(loaded >= 6, "only {loaded} files are loaded: the test does not find them");
    assert!(!html.contains("//"), "the page names another server");
}

#[actix_web::test]
async fn each_file_comes_with_its_type_and_a_strict_policy() {
    let nest = Nest::start().await;
    for (path, content_type) in [
        ("/test", "text/html; charset=utf-8"),
        ("/test/js/main.js", "text/javascript; charset=utf-8"),
        ("/test/vendor/xterm/xterm.mjs", "text/javascript; charset=utf-8"),
        ("/test/css/base.css", "text/css; charset=utf-8"),
        ("/test/icon.svg", "image/svg+xml"),
        ("/test/vendor/xterm/LICENSE-xterm", "text/plain; charset=utf-8"),
    ] {
        let answer = load(&nest, path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.header("content-type"), Some(content_type), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-cache"), "{path}");
        let policy = answer.header("content-security-policy").unwrap();
        for said in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(said), "{policy}");
        }
        let rest = policy.replace("style-src-attr 'unsafe-inline'", "");
        assert!(!rest.contains("unsafe") && !rest.contains('*'), "{policy}");
    }
}

#[actix_web::test]
async fn who_has_a_file_already_does_not_get_it_again() {
    let nest = Nest::start().await;
    let path = "/test/vendor/xterm/xterm.mjs";
    let first = load(&nest, path).await;
    let tag = first.header("etag").unwrap();
    let again = nest.anonymous(Method::GET, path).header("If-None-Match", tag);
    let again = Answer::of(again).await;
    assert_eq!((again.status, again.body.len()), (304, 0));
    assert_eq!(again.header("etag"), Some(tag));
    let other = nest.anonymous(Method::GET, path).header("If-None-Match", "\"another\"");
    let other = Answer::of(other).await;
    assert_eq!((other.status, other.body), (200, first.body.clone()));
    let head = Answer::of(nest.anonymous(Method::HEAD, path)).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), Some(first.body.len().to_string().as_str()));
    assert_ne!(load(&nest, "/test").await.header("etag"), Some(tag));
}

#[actix_web::test]
async fn what_is_no_file_of_the_page_is_refused() {
    let nest = Nest::start().await;
    for path in ["/test/", "/test/no.js", "/test/js", "/test/..%2fCargo.toml", "/tests"] {
        load(&nest, path).await.error(404, "not_found");
    }
    for path in ["/test", "/test/js/main.js"] {
        let answer = Answer::of(nest.anonymous(Method::POST, path)).await;
        answer.error(405, "method_not_allowed");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
}
