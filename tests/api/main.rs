//! The API from outside: the real application on a real port with a real database; only the
//! machines are simulated. Every route, state and error.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

mod api_keys;
mod archive;
mod auth;
mod bad_input;
mod browser;
mod budget;
mod byte_names;
mod capacity;
mod cli;
mod cli_remote;
mod contract;
mod cp;
mod create;
mod doors;
mod events;
mod exec;
mod exec_stream;
mod exec_trouble;
mod file_contents;
mod file_tree;
mod file_watch;
mod files;
mod fork;
mod idempotency;
mod lease;
mod life;
mod list;
mod mcp;
mod nest;
mod network;
mod observe;
mod openapi;
mod own_names;
mod pause;
mod ports;
mod ports_answers;
mod ports_expect;
mod ports_sites;
mod ports_trouble;
mod processes;
mod processes_trouble;
mod pty;
mod rates;
mod resume;
#[path = "../support/skip.rs"]
mod skip;
mod snapshots;
#[path = "../support/socket.rs"]
mod socket;
mod trouble;
mod tunnels;
mod usage;
