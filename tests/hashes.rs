//! SHA-256 of every tensor file and table of the tiny pipelines. The bytes depend on the machine, so no test compares them with
//! committed ones: whoever moves code runs `just hashes` before and after, on one machine, and compares.

use std::fmt::Write;

use crate::tiny::Workspace;

#[test]
#[ignore = "prints what `just hashes` is asked for"]
fn of_every_tensor_file() {
    let mut out = String::new();
    for (name, workspace) in [
        ("dpo", Workspace::new()),
        ("sft", Workspace::new().with_sft()),
        ("sft-per-user", Workspace::new().with_per_user_sft()),
        ("ppo", Workspace::new().with_ppo()),
    ] {
        workspace.run(&[]).assert().success();
        let mut files = Vec::new();
        for extension in ["safetensors", "parquet"] {
            crate::house::files(&workspace.path("checkpoints/tiny"), extension, &mut files);
        }
        files.sort();
        for file in files {
            let below = file.strip_prefix(workspace.path("checkpoints/tiny")).unwrap().display();
            writeln!(out, "{} {name}/{below}", run::hash_file(&file).unwrap()).unwrap();
        }
    }
    let path = crate::tiny::repository().join("target/hashes.txt");
    fs_err::write(&path, &out).unwrap();
    eprintln!("written: {}", path.display());
}
