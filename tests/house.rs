//! Rules that a machine can check.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::circles::Files;
use crate::tiny::repository;

/// Imports go down a row or more, never up, never sideways.
fn row(name: &str) -> Option<u32> {
    match name {
        "idiolect" => Some(5),
        "reward" | "policy" | "study" | "export" => Some(4),
        "eval" | "lab" => Some(3),
        "lm" | "data" | "estimate" => Some(2),
        "device" | "stats" | "report" | "run" | "text" => Some(1),
        "problem" => Some(0),
        _ => None,
    }
}

/// What may reach libtorch, and what may not.
const WITHOUT_LIBTORCH: [&str; 9] = ["problem", "text", "stats", "report", "run", "data", "estimate", "eval", "lab"];

/// What links libtorch: nothing that must not may import it, by whatever way.
const WITH_LIBTORCH: [&str; 8] = ["tch", "torch-sys", "device", "lm", "reward", "policy", "study", "export"];

fn packages() -> BTreeMap<String, Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(repository())
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages.map(|p| (p["name"].as_str().unwrap().to_owned(), p.clone())).collect()
}

#[test]
fn imports_go_down() {
    let packages = packages();
    assert!(packages.len() >= 16);
    let mut edges = 0;
    for (name, package) in &packages {
        let own = row(name).unwrap_or_else(|| panic!("crate `{name}` has no row in design and test"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let dependency = dependency["name"].as_str().unwrap();
            if let Some(theirs) = row(dependency).filter(|_| packages.contains_key(dependency)) {
                assert!(theirs < own, "`{name}` (row {own}) imports `{dependency}` (row {theirs})");
                edges += 1;
            }
            let links = WITH_LIBTORCH.contains(&dependency) && WITHOUT_LIBTORCH.contains(&name.as_str());
            assert!(!links, "`{name}` imports `{dependency}`, and with it libtorch");
        }
    }
    assert!(edges > 40, "only {edges} imports seen");
}

#[test]
fn files_import_each_other_in_no_circle() {
    let (mut files, mut imports, mut circles) = (0, 0, Vec::new());
    for name in packages().keys() {
        let all = Files::read(&repository().join("crates").join(name).join("src"));
        let found = all.circles();
        (files, imports) = (files + all.len(), imports + all.imports().values().map(BTreeSet::len).sum::<usize>());
        eprintln!("{name}: {} files, {} circles", all.len(), found.len());
        circles.extend(found.into_iter().map(|circle| format!("{name}: {circle}")));
    }
    assert!(circles.is_empty(), "files in a circle:\n{}", circles.join("\n"));
    assert!(files > 150 && imports > 300, "only {files} files with {imports} imports seen");
}

#[test]
fn the_code_map_says_what_the_manifests_say() {
    let map = fs_err::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    for (name, package) in packages() {
        let line = format!("| `{name}` | {} |", package["description"].as_str().unwrap());
        assert!(map.contains(&line), "ARCHITECTURE.md lacks the line: {line}");
    }
}

pub(crate) fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

#[test]
fn a_file_is_one_idea() {
    let mut sources = Vec::new();
    files(&repository().join("crates"), "rs", &mut sources);
    files(&repository().join("tests"), "rs", &mut sources);
    assert!(sources.len() > 50, "only {} files seen", sources.len());
    for path in sources {
        let lines = fs_err::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 500, "{} has {lines} lines", path.display());
    }
}

#[test]
fn every_pipeline_resolves() {
    let mut pipelines = Vec::new();
    files(&repository().join("pipelines"), "toml", &mut pipelines);
    assert!(pipelines.len() >= 2);
    let mut used = String::new();
    for path in &pipelines {
        // In a copy of the repository's settings, so that no checkpoint of the reader's is touched.
        let folder = tempfile::tempdir().unwrap();
        for part in ["pipelines", "configs", "datasets"] {
            copy(&repository().join(part), &folder.path().join(part));
        }
        let base = repository().join(".deps/base/SmolLM2-135M-Instruct.Q4_1.gguf");
        assert!(base.exists(), "./setup fetches {}", base.display());
        fs_err::create_dir_all(folder.path().join(".deps/base")).unwrap();
        std::os::unix::fs::symlink(&base, folder.path().join(".deps/base").join(base.file_name().unwrap())).unwrap();
        let below = path.strip_prefix(repository().join("pipelines")).unwrap();
        let file = folder.path().join("pipelines").join(below);
        let mut command = crate::tiny::program();
        command.arg("run").arg(&file).args(["--dry-run", "--threads", "1"]);
        let text = fs_err::read_to_string(path).unwrap();
        if text.contains("[variables]") {
            let votes = votes_of_its_schema(&text, folder.path());
            command.arg("--set").arg(format!("data={}", votes.display()));
        }
        let output = command.output().unwrap();
        let said = crate::tiny::stderr(&output);
        assert!(output.status.success(), "{}: {said}", path.display());
        assert!(
            !said.contains("was not found from there"),
            "{}: a path is not relative to its file: {said}",
            path.display()
        );
        used += &text;
    }
    let mut configs = Vec::new();
    files(&repository().join("configs"), "toml", &mut configs);
    assert!(configs.len() >= 8, "only {} seen", configs.len());
    for config in configs {
        let name = config.strip_prefix(repository()).unwrap().display().to_string();
        assert!(used.contains(&name), "no pipeline uses {name}");
    }
}

/// Votes of the published schema that a pipeline reads: a dry run counts them.
fn votes_of_its_schema(pipeline: &str, folder: &Path) -> PathBuf {
    let lines = |rows: Vec<Value>| rows.iter().map(|row| format!("{row}\n")).collect::<String>();
    let (name, text) = if pipeline.contains("tldr") {
        ("comparisons.jsonl", lines(crate::pipeline::tldr_rows(8)))
    } else if pipeline.contains("helpsteer2") {
        ("train.jsonl", lines(crate::pipeline::helpsteer2_rows(0..10)))
    } else {
        let vote = |i: usize| {
            let (user, prompt) = (i % 12, i / 12);
            serde_json::json!({"user_id": format!("u{user}"), "prompt": format!("p {prompt}?"), "response_a": "yes", "response_b": "no",
                "label": if (user + prompt) % 2 == 0 { "a" } else { "b" }, "debate": format!("t{prompt}_x"), "submitted": "2020-01-01"})
        };
        ("votes.jsonl", lines((0..12 * 50).map(vote).collect()))
    };
    let path = folder.join(name);
    fs_err::write(&path, text).unwrap();
    path
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs_err::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
