//! Compiles this crate's C++ against the headers of the libtorch that tch links.

use std::path::PathBuf;

fn main() {
    for file in ["shim.h", "packed.cpp", "fused.cpp", "attention.cpp", "allocator.cpp"] {
        println!("cargo:rerun-if-changed=src/{file}");
    }
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = std::env::var_os("LIBTORCH").map(PathBuf::from).expect("LIBTORCH, which .cargo/config.toml sets");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .opt_level(3)
        .flag_if_supported("-fno-math-errno")
        .flag_if_supported("-fno-trapping-math")
        .file("src/packed.cpp")
        .file("src/fused.cpp")
        .file("src/attention.cpp")
        .file("src/allocator.cpp")
        .compile("idiolect_shim");
}
