//! How often an idle stream is kept alive.

use std::time::Duration;

use http::HeaderMap;

/// Asked for in whole seconds.
const HEADER: &str = "keepalive-ping-interval";
/// Where nothing is asked for.
const USUAL: Duration = Duration::from_secs(90);

/// The time after which a stream without events gets a keepalive.
pub fn interval(headers: &HeaderMap) -> Duration {
    let asked = headers.get(HEADER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    asked.filter(|&seconds: &u64| seconds > 0).map_or(USUAL, Duration::from_secs)
}
