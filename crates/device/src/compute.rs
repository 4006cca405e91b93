//! Where to compute, and in which type.

use std::collections::BTreeMap;

use problem::{Result, invalid};
use tch::{Device, Kind};

use crate::library::{LIBTORCH_VERSION, cuda_devices, cuda_model};
use crate::machine::{cpu_kind, instruction_set, plain_kernels};

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
    ///
    /// # Errors
    /// A device or dtype that does not exist, or a CUDA device that this machine lacks.
    pub fn new(device: &str, dtype: &str, threads: Option<usize>) -> Result<Self> {
        let device = parse_device(device)?;
        let kind = match dtype {
            "float32" => Kind::Float,
            "bfloat16" => Kind::BFloat16,
            "auto" if device != Device::Cpu || cpu_kind().has_fast_bfloat16() => Kind::BFloat16,
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

    /// What moves the last bits of a result: the model of the device and not its number, dtype, threads, libtorch, instruction set.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let plain = plain_kernels().then(|| ("kernels", "libtorch".to_owned()));
        let entries = [
            ("device", self.model()),
            ("dtype", self.dtype().into()),
            ("threads", self.threads.to_string()),
            ("libtorch", LIBTORCH_VERSION.into()),
            ("machine", instruction_set()),
        ];
        entries.into_iter().chain(plain).map(|(k, v)| (k.to_owned(), v)).collect()
    }

    /// `cpu`, or the model of the CUDA device.
    fn model(&self) -> String {
        match self.device {
            Device::Cuda(index) => cuda_model(index).unwrap_or_else(|| "cuda".into()),
            _ => "cpu".into(),
        }
    }

    /// The same, with a float32 base.
    pub fn in_float32(&self) -> Self {
        Self { kind: Kind::Float, ..self.clone() }
    }

    /// `float32` or `bfloat16`.
    pub fn dtype(&self) -> &'static str {
        if self.kind == Kind::BFloat16 { "bfloat16" } else { "float32" }
    }

    /// `cpu` or `cuda:N`, as `--device` takes it.
    pub fn device_name(&self) -> String {
        match self.device {
            Device::Cuda(index) => format!("cuda:{index}"),
            _ => "cpu".into(),
        }
    }
}

fn parse_device(device: &str) -> Result<Device> {
    let index = match device.split_once(':').unwrap_or((device, "0")) {
        ("cpu", "0") => return Ok(Device::Cpu),
        ("cuda", index) => index.parse::<usize>().map_err(|_| {
            invalid("--device", "`cuda:N` with a number N", format!("`{device}`"), "nvidia-smi lists the devices")
        })?,
        _ => {
            let hint = "leave the flag out for the CPU";
            return Err(invalid("--device", "`cpu`, `cuda` or `cuda:N`", format!("`{device}`"), hint));
        }
    };
    let devices = cuda_devices();
    if devices <= index {
        let hint = "use --device cpu, or run ./setup on a machine with an NVIDIA driver";
        let expected = format!("a machine with `{device}`");
        return Err(invalid("--device", expected, format!("{devices} CUDA devices"), hint));
    }
    Ok(Device::Cuda(index))
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
}
