//! Compiles the allocator against the headers of the libtorch that tch links.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=src/allocator.cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = std::env::var_os("LIBTORCH").map(PathBuf::from).expect("LIBTORCH, which .cargo/config.toml sets");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(libtorch.join("include"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .opt_level(3)
        .file("src/allocator.cpp")
        .compile("idiolect_allocator");
}
