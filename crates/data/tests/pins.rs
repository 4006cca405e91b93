//! What a source stands for: the commit of a branch, and that it is read and nothing newer.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::common::{all, ingest, votes_card, write_rows};
use crate::sources::rows;

const OLD: &str = "0123456789abcdef0123456789abcdef01234567";
const NEW: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// A hub of one data set, `me/votes`, with two commits. `POST /move` lets its branch `main` point to the newer one.
fn hub(old: Vec<u8>, new: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let main = Arc::new(Mutex::new(OLD));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut byte = [0u8];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                request.push(byte[0]);
            }
            let request = String::from_utf8_lossy(&request).to_lowercase();
            let path = request.split(' ').nth(1).unwrap_or_default();
            let range = request.lines().find_map(|l| l.strip_prefix("range: bytes=")?.split_once('-'));
            let commit = [OLD, NEW].into_iter().find(|c| path.contains(c)).unwrap_or(*main.lock().unwrap());
            let bytes = if commit == OLD { &old } else { &new };
            let (head, body) = if path == "/move" {
                *main.lock().unwrap() = NEW;
                (String::new(), vec![])
            } else if path.starts_with("/api/datasets/me/votes/") {
                let info = format!("{{\"sha\": \"{commit}\", \"siblings\": [{{\"rfilename\": \"v.parquet\"}}]}}");
                (String::new(), info.into_bytes())
            } else {
                let from: usize = range.and_then(|(from, _)| from.trim().parse().ok()).unwrap_or(0);
                let to = range.and_then(|(_, to)| to.trim().parse().ok()).map_or(bytes.len(), |to: usize| to + 1);
                let head = format!(
                    "Content-Range: bytes {from}-{}/{}\r\nx-repo-commit: {commit}\r\nETag: \"{}\"\r\n",
                    to - 1,
                    bytes.len(),
                    run::hash_bytes(bytes)
                );
                (head, bytes[from..to].to_vec())
            };
            let length = body.len();
            _ = stream.write_all(
                format!("HTTP/1.1 200 OK\r\n{head}Content-Length: {length}\r\nConnection: close\r\n\r\n").as_bytes(),
            );
            _ = stream.write_all(&body);
        }
    });
    format!("http://{address}")
}

/// This test binary's test `name`, as a process of its own with these variables.
fn child(name: &str, variables: &[(&str, &str)]) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--ignored"])
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
fn a_branch_of_the_hub_is_pinned_to_its_commit_and_read_at_that_commit() {
    let home = tempfile::tempdir().unwrap();
    let bytes = |n: usize| {
        write_rows(&home.path().join("v.parquet"), &rows(n));
        fs_err::read(home.path().join("v.parquet")).unwrap()
    };
    let hub = hub(bytes(10), bytes(20));
    let folder = home.path().to_str().unwrap();
    let online = [("HF_ENDPOINT", hub.as_str()), ("HF_HOME", folder), ("HF_HUB_OFFLINE", "0")];
    child("pins::child_pins_a_branch_that_moves", &online);
    let offline = [("HF_ENDPOINT", "http://127.0.0.1:9"), ("HF_HOME", folder), ("HF_HUB_OFFLINE", "1")];
    child("pins::child_pins_from_the_cache", &offline);
}

const SOURCE: &str = "hf://datasets/me/votes/*.parquet";

fn votes(source: &str) -> usize {
    ingest(&votes_card(), Path::new(source), &all()).unwrap().0.len()
}

#[test]
#[ignore = "a part of another test"]
fn child_pins_a_branch_that_moves() {
    let sources = [SOURCE.to_owned()];
    let old = data::pin(&sources, &run::hash_file).unwrap();
    assert_eq!(old.sources, [format!("hf://datasets/me/votes@{OLD}/*.parquet")]);
    assert_eq!(old.identities[SOURCE], OLD);
    // Somebody pushes. What was pinned is read; the branch is another thing now.
    let address = std::env::var("HF_ENDPOINT").unwrap();
    let mut stream = std::net::TcpStream::connect(address.trim_start_matches("http://")).unwrap();
    stream.write_all(b"POST /move HTTP/1.1\r\n\r\n").unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(votes(&old.sources[0]), 10);
    assert_eq!(data::identities_of(&sources).unwrap()[SOURCE], NEW);
    assert_eq!(votes(SOURCE), 20);
    assert_eq!(votes(&old.sources[0]), 10, "from the cache");
    assert_eq!(data::pinned_to(SOURCE, OLD).unwrap(), old.sources[0]);
    // A pin is pinned already.
    assert_eq!(data::pin(&old.sources, &run::hash_file).unwrap().sources, old.sources);
}

#[test]
#[ignore = "a part of another test"]
fn child_pins_from_the_cache() {
    let source = ["hf://datasets/me/votes/v.parquet".to_owned()];
    assert_eq!(data::identities_of(&source).unwrap()[&source[0]], NEW, "the newest that was fetched");
    assert_eq!(votes(&source[0]), 20);
    assert_eq!(votes(&format!("hf://datasets/me/votes@{OLD}/v.parquet")), 10);
}

#[test]
fn local_files_are_what_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.parquet", "b.parquet"] {
        write_rows(&dir.path().join(name), &rows(3));
    }
    let source = dir.path().display().to_string();
    let before = data::identities_of(std::slice::from_ref(&source)).unwrap();
    let a = dir.path().join("a.parquet");
    assert_eq!(before.len(), 2);
    assert_eq!(before[&a.display().to_string()], run::hash_file(&a).unwrap());
    write_rows(&a, &rows(4));
    let pinned = data::pin(std::slice::from_ref(&source), &run::hash_file).unwrap();
    assert_ne!(pinned.identities, before);
    assert_eq!(pinned.sources, [source]);
}
