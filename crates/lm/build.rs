//! Compiles `src/packed.cpp` against the headers of the libtorch that tch links.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=src/packed.cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = std::env::var_os("LIBTORCH").map(PathBuf::from).expect("LIBTORCH, which .cargo/config.toml sets");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .file("src/packed.cpp")
        .compile("idiolect_packed");
}
