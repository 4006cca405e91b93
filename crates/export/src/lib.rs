//! merge, write, read back and verify: PEFT adapter, merged Hugging Face folder
