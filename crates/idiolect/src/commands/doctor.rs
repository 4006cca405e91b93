//! `idiolect doctor`: is everything here, and what is this machine fast at?

use std::path::Path;
use std::time::Duration;

use clap::Args;
use device::{Compute, Device, Rate};
use problem::Result;

use crate::pipeline::Speed;
use crate::{hub, table};

/// Nothing to set.
#[derive(Args)]
pub(crate) struct DoctorArgs {}

impl DoctorArgs {
    #[expect(clippy::unused_self, reason = "every command is executed alike")]
    pub(crate) fn execute(&self) -> Result<()> {
        print()
    }
}

/// How long each product is measured.
const SPAN: Duration = Duration::from_millis(200);

/// Prints what was found; what is missing comes last, with its remedy.
fn print() -> Result<()> {
    let mut missing: Vec<String> = Vec::new();
    let line = |name: &str, value: String| table::print(&format!("{name:<12}{value}"));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let folder = device::libtorch_folder().map_or("?".into(), |f| f.display().to_string());
    line("libtorch", format!("{}, from {folder}", device::LIBTORCH_VERSION))?;
    line("machine", format!("{}, {threads} cores", device::instruction_set()))?;
    let cpu = device::cpu_kind();
    let why = if cpu.has_fast_bfloat16() { "has bfloat16 products" } else { "has no bfloat16 products" };
    let default = Compute::new("cpu", "auto", None)?;
    line("dtype", format!("{} by default, since this processor ({}) {why}", default.dtype(), cpu.name()))?;
    let (total, free) = (memory("MemTotal:"), memory("MemAvailable:"));
    line("memory", format!("{free:.1} GiB available of {total:.1} GiB"))?;

    let mut devices = vec![("cpu".to_owned(), Device::Cpu)];
    let cuda = device::cuda_devices();
    devices.extend((0..cuda).map(|i| (format!("cuda:{i}"), Device::Cuda(i))));
    for (name, device) in devices {
        let rates = device::product_rates(device, SPAN).map(|r| {
            let packed = lm::packed_product_rate(device, r.kind, SPAN);
            (packed.unwrap_or(r.plain), packed, r)
        });
        let fastest = rates.iter().map(|(best, ..)| *best).fold(0.0, f64::max);
        for (best, packed, Rate { dtype, plain, .. }) in rates {
            let packed = packed.map_or(String::new(), |p| format!(", {p:.0} with packed weights"));
            let mark = if best == fastest { ": the fastest here" } else { "" };
            line(&name, format!("{dtype} products at {plain:.0} GFLOP/s{packed}{mark}"))?;
        }
    }
    line("docs", Speed::measure(&default, 1.0).compared_with_the_documents())?;
    if cuda == 0 {
        line("cuda", "no device".into())?;
        if Path::new("/proc/driver/nvidia/version").exists() {
            missing.push("an NVIDIA driver is here but no CUDA half of libtorch: run ./setup".into());
        }
    }
    let base = Path::new(".deps/base");
    if base.exists() {
        line("base", format!("{} is fetched", base.display()))?;
    } else {
        missing.push(format!("{}: the default base is not fetched: run ./setup in the repository", base.display()));
    }
    line(
        "hub",
        format!(
            "models by name {}",
            if hub::offline() { "from the cache alone (HF_HUB_OFFLINE)" } else { "are fetched on demand" }
        ),
    )?;
    if missing.is_empty() {
        line("missing", "nothing".into())?;
    }
    missing.iter().try_for_each(|m| line("missing", m.clone()))
}

/// A line of /proc/meminfo in GiB; 0 where there is no such file.
fn memory(name: &str) -> f64 {
    let text = fs_err::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = text.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse::<f64>().ok());
    value.unwrap_or(0.0) / f64::from(1 << 20)
}
