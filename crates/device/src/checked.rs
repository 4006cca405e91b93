//! libtorch's errors as ours.

use problem::{Problem, Result, bug, machine};
use tch::TchError;

/// Turns what libtorch returned into this workspace's result.
pub trait Checked<T> {
    /// The value; a lack of memory is the machine's matter, any other refusal a bug of ours, since shapes are checked at the
    /// borders of our crates.
    fn checked(self) -> Result<T>;
}

impl<T> Checked<T> for std::result::Result<T, TchError> {
    fn checked(self) -> Result<T> {
        self.map_err(|error| {
            if let TchError::Io(io) = error {
                return Problem::from(io);
            }
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default().to_owned();
            let problem = match machine_failure(&text) {
                Some((_, hint)) => machine(format!("libtorch: {first}"), hint),
                None => bug("libtorch", "an operation that it accepts", first),
            };
            problem.caused_by(error)
        })
    }
}

/// What failed and what to do about it, if this text of libtorch's says that the machine failed: too little memory, or a CUDA device that
/// stopped. Results and the panic hook both read libtorch's words here.
pub fn machine_failure(text: &str) -> Option<(&'static str, &'static str)> {
    const MEMORY: [&str; 5] =
        ["out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory", "ALLOC_FAILED"];
    if MEMORY.iter().any(|words| text.contains(words)) {
        let hint = "lower `micro_batch_tokens`, set `activations = \"recompute\"`, or use a device with more memory";
        return Some(("out of memory", hint));
    }
    let hint = "run the same command again; nvidia-smi tells whether the device still answers";
    text.contains("CUDA error").then_some(("the device failed", hint))
}

#[cfg(test)]
mod tests {
    use problem::Kind;
    use tch::Tensor;

    use super::*;

    #[test]
    fn a_lack_of_memory_is_the_machines_and_a_refusal_ours() {
        let lack: Result<()> = Err(TchError::Torch("CUDA out of memory. Tried to allocate 2 GiB".into())).checked();
        let lack = lack.unwrap_err();
        assert_eq!((lack.kind(), lack.to_string().contains("2 GiB")), (Kind::Machine, true));
        let failed: Result<()> = Err(TchError::Torch("CUDA error: an illegal memory access".into())).checked();
        assert_eq!(failed.unwrap_err().kind(), Kind::Machine);
        let missing: Result<()> = Err(TchError::Io(std::io::Error::from_raw_os_error(2))).checked();
        assert_eq!(missing.unwrap_err().kind(), Kind::User);
        assert!(lack.hint().unwrap().contains("micro_batch_tokens"));
        let refused = Tensor::ones([2], (tch::Kind::Float, tch::Device::Cpu)).f_view([3]).checked().unwrap_err();
        assert_eq!(refused.kind(), Kind::Ours, "{refused}");
        assert!(!refused.to_string().contains('\n'), "C++ frames stay out of the message: {refused}");
    }
}
