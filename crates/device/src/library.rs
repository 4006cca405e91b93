//! The libtorch in use, and loading its CUDA half.
#![expect(unsafe_code, reason = "loading libtorch_cuda is a call into the dynamic loader")]

use std::path::PathBuf;

use tch::Cuda;

/// Pinned together with tch and `./setup`.
pub const LIBTORCH_VERSION: &str = "2.11.0";

/// The folder that `libtorch_cpu.so` was loaded from.
pub fn libtorch_folder() -> Option<PathBuf> {
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
                Err(error) => tracing::warn!("{} exists but does not load: {error}", path.display()),
            }
            return;
        }
    });
}

/// Loads the CUDA half of libtorch, if there is one, and counts the devices that it sees.
pub fn cuda_devices() -> usize {
    load_cuda();
    if Cuda::is_available() { Cuda::device_count() as usize } else { 0 }
}

/// The model of a CUDA device, such as `NVIDIA H100 80GB HBM3`, as the driver names it; none without a driver. Devices count as
/// `CUDA_VISIBLE_DEVICES` lets them.
pub(crate) fn cuda_model(index: usize) -> Option<String> {
    type Init = unsafe extern "C" fn(u32) -> i32;
    type Get = unsafe extern "C" fn(*mut i32, i32) -> i32;
    type Name = unsafe extern "C" fn(*mut std::ffi::c_char, i32, i32) -> i32;
    let mut name = [0; 256];
    // SAFETY: the signatures are those of the CUDA driver's API; the buffer is as long as it is said to be, and the driver ends what it writes
    // with a zero. The library stays loaded while its functions are called.
    unsafe {
        let driver = libloading::Library::new("libcuda.so.1").ok()?;
        let init: libloading::Symbol<Init> = driver.get(b"cuInit\0").ok()?;
        let get: libloading::Symbol<Get> = driver.get(b"cuDeviceGet\0").ok()?;
        let name_of: libloading::Symbol<Name> = driver.get(b"cuDeviceGetName\0").ok()?;
        let mut device = 0;
        let found = init(0) == 0
            && get(&raw mut device, index as i32) == 0
            && name_of(name.as_mut_ptr(), name.len() as i32, device) == 0;
        if !found {
            return None;
        }
    }
    let bytes: Vec<u8> = name.iter().take_while(|c| **c != 0).map(|c| c.to_ne_bytes()[0]).collect();
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_has_no_model() {
        let driver = std::path::Path::new("/proc/driver/nvidia/version").exists();
        assert_eq!(cuda_model(0).is_some(), driver);
    }

    #[test]
    fn libtorch_is_found_where_it_was_loaded_from() {
        tch::set_num_threads(1);
        assert!(libtorch_folder().unwrap().join("libtorch_cpu.so").exists());
    }
}
