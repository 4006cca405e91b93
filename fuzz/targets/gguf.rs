//! A GGUF file of any bytes: its size and its import end in a model folder or a message, never in a panic or an allocation
//! without end.
#![no_main]

use libfuzzer_sys::fuzz_target;

fn look_at(input: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.gguf");
    std::fs::write(&path, input).expect("space");
    _ = lm::gguf_size(&path);
    let out = folder.path().join("out");
    match lm::import_gguf(&path, &out) {
        Ok(_) => {
            let compute = device::Compute::new("cpu", "float32", Some(1)).expect("a processor");
            _ = lm::Lm::load(&out, &compute);
            _ = text::Tokenizer::from_folder(&out);
        }
        Err(error) => {
            assert_eq!(error.kind(), problem::Kind::User, "{error}");
            assert!(!out.exists(), "something is left");
        }
    }
}

fuzz_target!(init: std::panic::set_hook(Box::new(|_| ())), |input: &[u8]| fuzz_targets::abort_on_panic(|| look_at(input)));
