//! The network layer against the real kernel. Needs root; each test has a machine of its own.

mod lab;
mod life;
mod measure;
mod reach;
