//! What can go wrong with networks.

use std::io;
use std::path::PathBuf;

use crate::domain::slot::{SLOT_COUNT, SlotIndex};

/// Why an operation on a network failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The process lacks the privilege to make namespaces and links.
    #[error("networks need root")]
    NotRoot,

    /// Every number is claimed, by this daemon or by others on the machine.
    #[error("all {SLOT_COUNT} network slots of this machine are in use")]
    Exhausted,

    /// The pool was shut down.
    #[error("the network pool is shut down")]
    Closed,

    /// The thread that did the work ended without an answer.
    #[error("the worker thread of a network operation died")]
    WorkerDied,

    /// The thread for the work could not be started.
    #[error("cannot start a worker thread")]
    StartWorker(#[source] io::Error),

    /// The data directory of the daemon cannot be named.
    #[error("cannot resolve the data directory {}", path.display())]
    DataDir { path: PathBuf, source: io::Error },

    /// A file that says who owns which slot cannot be read or written.
    #[error("cannot access the slot claims at {}", path.display())]
    Claims { path: PathBuf, source: io::Error },

    /// The slot belongs to another daemon.
    #[error("slot {slot} belongs to the daemon with data directory {}", owner.display())]
    ClaimedElsewhere { slot: SlotIndex, owner: PathBuf },

    /// A namespace or link of an unclaimed slot exists already.
    #[error("slot {slot} is not claimed, but its {what} exists")]
    Occupied { slot: SlotIndex, what: &'static str },

    /// A slot to adopt is not whole.
    #[error("slot {slot} cannot be adopted: it has no {missing}")]
    NotAdoptable { slot: SlotIndex, missing: &'static str, source: io::Error },

    /// The directory of namespaces could not be made a mount point.
    #[error("cannot prepare the directory of network namespaces")]
    NamespaceDir(#[source] io::Error),

    /// A step with a namespace failed.
    #[error("cannot {action} the network namespace of slot {slot}")]
    Namespace { slot: SlotIndex, action: &'static str, source: io::Error },

    /// A step with links, addresses, routes or neighbours failed.
    #[error("cannot {action} of slot {slot}")]
    Link { slot: SlotIndex, action: &'static str, source: io::Error },

    /// The links of slots could not be marked as what they are.
    #[error("cannot put the links of network slots into their group")]
    GroupLinks(#[source] io::Error),

    /// The tap device could not be opened.
    #[error("cannot open the tap device of slot {slot}")]
    Tap { slot: SlotIndex, source: io::Error },

    /// A kernel setting could not be read or changed.
    #[error("cannot set {} to {value}", path.display())]
    Setting { path: PathBuf, value: &'static str, source: io::Error },

    /// The packet filter was refused; the text is what `nft` said.
    #[error("cannot {action} the packet filter of {place}: {diagnosis}")]
    Filter {
        action: &'static str,
        place: String,
        diagnosis: String,
        source: Box<nftables::helper::NftablesError>,
    },

    /// Nobody could be made to answer the guest's questions for names.
    #[error("cannot serve names in slot {slot}")]
    NameGuard { slot: SlotIndex, source: io::Error },

    /// The guest has asked for so many names that the addresses do not fit the filter.
    #[error("too many addresses of names are allowed in slot {slot} at a time")]
    TooManyNames { slot: SlotIndex },

    /// Some of a slot is still there; each cause names a part.
    #[error("slot {slot} is not removed completely: {}", list(causes))]
    Incomplete { slot: SlotIndex, causes: Vec<NetworkError> },
}

/// Several errors in one line, each with its causes.
fn list(errors: &[NetworkError]) -> String {
    let chain = |error: &NetworkError| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    };
    errors.iter().map(chain).collect::<Vec<_>>().join("; ")
}
