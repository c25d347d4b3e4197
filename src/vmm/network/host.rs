//! What all slots of a machine share: the host's packet filter and its forwarding. Functions here
//! block; they work on the namespace of the calling thread.

use std::fs;
use std::path::Path;

use super::NetworkError;
use super::filter::rules;
use super::filter::ruleset;
use super::link::{self, Netlink};

const PLACE: &str = "the host";
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Whether [`ensure`] had to load the packet filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    WasLoaded,
    WasMissing,
}

/// Loads the host's packet filter, replacing an older one, and turns forwarding on.
///
/// The filter comes first: from the moment that the host forwards, it does so by our rules. It knows
/// links by their group, and those of an older daemon, of which VMs live on, are in none.
pub(super) fn prepare() -> Result<(), NetworkError> {
    group_links()?;
    rules::of_host().replace(PLACE)?;
    ensure_forwarding()
}

/// Restores what somebody else on the machine may have taken away: reloading a firewall often begins
/// with removing every table there is.
pub(super) fn ensure() -> Result<Filter, NetworkError> {
    group_links()?;
    let filter = if ruleset::is_loaded(PLACE)? {
        Filter::WasLoaded
    } else {
        rules::of_host().replace(PLACE)?;
        Filter::WasMissing
    };
    ensure_forwarding()?;
    Ok(filter)
}

/// Removes the host's packet filter. Forwarding stays on: others may have come to rely on it.
pub(super) fn clean_up() -> Result<(), NetworkError> {
    ruleset::unload(PLACE)
}

fn group_links() -> Result<(), NetworkError> {
    link::block_on(async { Netlink::open()?.group_slot_links().await })
        .map_err(NetworkError::GroupLinks)
}

fn ensure_forwarding() -> Result<(), NetworkError> {
    let path = Path::new(FORWARDING);
    let now = fs::read_to_string(path).unwrap_or_default();
    if now.trim() == "1" {
        return Ok(());
    }
    set(path, "1")?;
    tracing::info!("turned on IPv4 forwarding of this machine; it stays on");
    Ok(())
}

/// Writes a kernel setting. Below `/proc/sys/net` it is the one of the calling thread's namespace.
pub(super) fn set(path: &Path, value: &'static str) -> Result<(), NetworkError> {
    fs::write(path, value).map_err(|source| NetworkError::Setting {
        path: path.to_owned(),
        value,
        source,
    })
}
