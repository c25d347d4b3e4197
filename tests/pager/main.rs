//! The pager against the real userfaultfd(2). Needs root, and no hypervisor: a process of the test
//! plays the VM.

mod capture;
mod costs;
mod lab;
mod serve;
mod trouble;
mod vm;
