//! Generates messages, service traits and clients from the `.proto` files, without `protoc`.

use std::error::Error;
use std::path::PathBuf;

use connectrpc_build::CodeGenConfig;

/// Relative to the crate's root, which is also the include path.
const FILES: [&str; 3] =
    ["background/background.proto", "filesystem/filesystem.proto", "process/process.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let descriptors = out_dir.join("descriptors.bin");

    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;
    std::fs::write(&descriptors, compiler.encode_file_descriptor_set())?;

    let mut messages = CodeGenConfig::default();
    messages.generate_json = true;
    // Nobody reads them, and each takes many times the memory here that its bytes take on the wire.
    messages.preserve_unknown_fields = false;

    // Its own directives would name the descriptor set, which this script writes: every build
    // would then start with a recompilation.
    connectrpc_build::Config::new()
        .descriptor_set(descriptors)
        .files(&FILES)
        .include_file("_connectrpc.rs")
        .buffa_config(messages)
        .emit_rerun_directives(false)
        .compile()?;

    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    Ok(())
}
