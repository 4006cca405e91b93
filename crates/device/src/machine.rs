//! What this machine's processor is.

/// Classes of processors by what decides their speed here, and the default dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuKind {
    /// Tiles of bfloat16 products (Intel AMX).
    Amx,
    /// Bfloat16 dot products in AVX-512, no AMX.
    Avx512Bf16,
    /// AVX-512 without bfloat16.
    Avx512,
    /// AVX2: most laptops and many cloud machines.
    Avx2,
    /// Anything else, other architectures included.
    Other,
}

impl CpuKind {
    /// The name that our documents use for this kind.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amx => "AMX",
            Self::Avx512Bf16 => "AVX512-BF16",
            Self::Avx512 => "AVX-512 without bfloat16",
            Self::Avx2 => "AVX2 without bfloat16",
            Self::Other => "neither AVX2 nor AVX-512",
        }
    }

    /// Is bfloat16 faster than float32 here? Then `--dtype auto` takes it.
    pub fn has_fast_bfloat16(self) -> bool {
        matches!(self, Self::Amx | Self::Avx512Bf16)
    }
}

/// The kind of this machine's processor.
pub fn cpu_kind() -> CpuKind {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512bf16") {
            return if amx() { CpuKind::Amx } else { CpuKind::Avx512Bf16 };
        }
        if std::is_x86_feature_detected!("avx512f") {
            return CpuKind::Avx512;
        }
        if std::is_x86_feature_detected!("avx2") {
            return CpuKind::Avx2;
        }
    }
    CpuKind::Other
}

/// Does `IDIOLECT_KERNELS=libtorch` ask for libtorch's own operations in place of this workspace's CPU kernels? Then the CPU takes the path
/// that a GPU takes, for comparisons; the bits of results change, so the environment of a run names it.
pub fn plain_kernels() -> bool {
    static ASKED: std::sync::LazyLock<bool> =
        std::sync::LazyLock::new(|| std::env::var("IDIOLECT_KERNELS").is_ok_and(|v| v == "libtorch"));
    *ASKED
}

/// The instruction sets that libtorch chooses its kernels by, such as `x86_64+avx2+avx512f`.
pub fn instruction_set() -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_and_the_instruction_set_agree() {
        let set = instruction_set();
        assert_eq!(cpu_kind().has_fast_bfloat16(), set.contains("avx512bf16"), "{set}");
        assert_eq!(cpu_kind() == CpuKind::Amx, set.contains("amx") && set.contains("bf16"), "{set}");
        assert!(set.starts_with(std::env::consts::ARCH));
    }
}
