//! Compiles this crate's C++ against the headers of the libtorch that tch links.

use std::path::PathBuf;

fn main() {
    for file in ["shim.h", "shim.cpp", "packed.cpp", "fused.cpp", "attention.cpp", "decode.cpp", "decode_kernel.h"] {
        println!("cargo:rerun-if-changed=src/cpu/{file}");
    }
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = std::env::var_os("LIBTORCH").map(PathBuf::from).expect("LIBTORCH, which .cargo/config.toml sets");
    let mut build = cc::Build::new();
    // Without OpenMP at::parallel_for runs on one thread. The runtime is the one that libtorch brings.
    if build.is_flag_supported("-fopenmp").is_ok_and(|yes| yes) {
        build.flag("-fopenmp");
        println!("cargo:rustc-link-search=native={}", libtorch.join("lib").display());
        println!("cargo:rustc-link-lib=dylib:+verbatim=libgomp.so.1");
    } else {
        println!("cargo:warning=the C++ compiler has no OpenMP: the fused CPU kernels run on one thread");
    }
    build
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .opt_level(3)
        .flag_if_supported("-fno-math-errno")
        .flag_if_supported("-fno-trapping-math")
        .file("src/cpu/shim.cpp")
        .compile("idiolect_shim");
}
