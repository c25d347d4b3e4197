//! The pager against the real userfaultfd(2). Needs root, and no hypervisor: a process of the test
//! plays the VM.

// A run of pages is a range.
#![allow(clippy::single_range_in_vec_init)]

mod capture;
mod costs;
mod lab;
mod serve;
mod trouble;
mod vm;
