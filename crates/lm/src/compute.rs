//! Where to compute, and in which type.
#![expect(unsafe_code, reason = "loading libtorch_cuda and setting the allocator are calls into C++")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use tch::{Device, Kind};

use crate::Result;
use crate::error::invalid;

/// Pinned together with tch and `./setup`.
pub(crate) const LIBTORCH_VERSION: &str = "2.11.0";

/// Device, dtype of the frozen base, threads. Adapters, heads and optimiser state are float32 everywhere.
#[derive(Clone, Debug)]
pub struct Compute {
    /// CPU or one CUDA device.
    pub device: Device,
    /// Type of the base's weights and activations.
    pub kind: Kind,
    /// libtorch's threads.
    pub threads: usize,
}

impl Compute {
    /// `device`: `cpu`, `cuda` or `cuda:N`; `dtype`: `auto` (bfloat16 where this machine is fast at it), `float32`,
    /// `bfloat16`; `threads`: all cores unless given. Loads CUDA if the device asks for it.
    pub fn new(device: &str, dtype: &str, threads: Option<usize>) -> Result<Self> {
        let device = match device.split_once(':').unwrap_or((device, "0")) {
            ("cpu", "0") => Device::Cpu,
            ("cuda", index) => {
                let index = index.parse().map_err(|_| {
                    invalid("--device", "`cuda:N` with a number N", format!("`{device}`"), "nvidia-smi lists them")
                })?;
                load_cuda();
                if !tch::Cuda::is_available() || tch::Cuda::device_count() <= index as i64 {
                    let found = format!("{} CUDA devices", tch::Cuda::device_count());
                    return Err(invalid(
                        "--device",
                        format!("a machine with `{device}`"),
                        found,
                        "use --device cpu, or run ./setup on a machine with an NVIDIA driver",
                    ));
                }
                Device::Cuda(index)
            }
            _ => {
                let hint = "leave the flag out for the CPU";
                return Err(invalid("--device", "`cpu`, `cuda` or `cuda:N`", format!("`{device}`"), hint));
            }
        };
        let kind = match dtype {
            "float32" => Kind::Float,
            "bfloat16" => Kind::BFloat16,
            "auto" if device != Device::Cpu || fast_bfloat16() => Kind::BFloat16,
            "auto" => Kind::Float,
            other => {
                let hint = "leave the flag out to let the machine decide";
                return Err(invalid("--dtype", "`auto`, `float32` or `bfloat16`", format!("`{other}`"), hint));
            }
        };
        let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        tch::set_num_threads(threads as i32);
        Ok(Self { device, kind, threads })
    }

    /// What else than config and inputs decides the bits of a result, for a fingerprint.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let entries = [
            ("device", format!("{:?}", self.device)),
            ("dtype", self.dtype().into()),
            ("threads", self.threads.to_string()),
            ("libtorch", LIBTORCH_VERSION.into()),
            ("machine", machine()),
        ];
        entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
    }

    /// The same, with a float32 base.
    pub fn in_float32(&self) -> Self {
        Self { kind: Kind::Float, ..self.clone() }
    }

    /// `float32` or `bfloat16`.
    pub fn dtype(&self) -> &'static str {
        if self.kind == Kind::BFloat16 { "bfloat16" } else { "float32" }
    }
}

#[cfg(target_arch = "x86_64")]
fn fast_bfloat16() -> bool {
    std::is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn fast_bfloat16() -> bool {
    false
}

/// The instruction sets that libtorch chooses its kernels by.
pub(crate) fn machine() -> String {
    let mut name = std::env::consts::ARCH.to_owned();
    #[cfg(target_arch = "x86_64")]
    for (feature, there) in [
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
        ("avx512bf16", std::is_x86_feature_detected!("avx512bf16")),
        ("avx512fp16", std::is_x86_feature_detected!("avx512fp16")),
        ("amx", amx()),
    ] {
        if there {
            name.push('+');
            name.push_str(feature);
        }
    }
    name
}

/// Does the kernel list AMX's bfloat16 tiles? (Rust's own test for it is not stable.)
#[cfg(target_arch = "x86_64")]
fn amx() -> bool {
    fs_err::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.split_whitespace().any(|flag| flag == "amx_bf16"))
}

/// The folder that `libtorch_cpu.so` was loaded from.
pub(crate) fn libtorch_folder() -> Option<PathBuf> {
    let maps = fs_err::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|l| l.ends_with("/libtorch_cpu.so"))?;
    Some(PathBuf::from(&line[line.find('/')?..]).parent()?.to_owned())
}

/// Loads `libtorch_cuda.so` from `../cuda` (where `./setup` puts it) or from libtorch's own folder (a Python wheel).
/// The program is linked without it, so that one binary runs on machines with and without CUDA.
pub(crate) fn load_cuda() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let Some(folder) = libtorch_folder() else { return };
        for path in [folder.join("../cuda/libtorch_cuda.so"), folder.join("libtorch_cuda.so")] {
            if !path.exists() {
                continue;
            }
            // SAFETY: loading runs the library's initialisers. They register CUDA kernels with the libtorch_cpu of the
            // same wheel, and run before any CUDA query, as libtorch expects. The handle is leaked: never unloaded.
            let flags = libloading::os::unix::RTLD_NOW | libloading::os::unix::RTLD_GLOBAL;
            match unsafe { libloading::os::unix::Library::open(Some(&path), flags) } {
                Ok(library) => std::mem::forget(library),
                Err(error) => eprintln!("warning: {} is there but does not load: {error}", path.display()),
            }
            return;
        }
    });
}

/// Makes libtorch keep freed CPU blocks instead of giving them back and faulting them in again at the next step: large
/// temporaries come and go in training. To be called once, before the first tensor.
pub fn tune_allocator() {
    unsafe extern "C" {
        fn idiolect_keep_memory();
    }
    // SAFETY: replaces libtorch's CPU allocator; tensors that exist already keep their own deleter.
    unsafe { idiolect_keep_memory() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_devices_and_dtypes_are_named() {
        let error = Compute::new("tpu", "auto", Some(1)).unwrap_err();
        assert!(error.to_string().contains("`tpu`"), "{error}");
        let error = Compute::new("cpu", "int3", Some(1)).unwrap_err();
        assert!(error.to_string().contains("`int3`"), "{error}");
    }

    #[test]
    fn libtorch_is_found_where_it_was_loaded_from() {
        tch::set_num_threads(1);
        assert!(libtorch_folder().unwrap().join("libtorch_cpu.so").exists());
    }
}
