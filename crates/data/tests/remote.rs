//! Files behind an address, with the feature `clouds`.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::common::{all, file, ingest, votes_card};
use crate::sources::{jsonl, rows};

/// Serves one file over HTTP, ranges included.
fn serve(bytes: Vec<u8>) -> String {
    serve_as(Arc::new(Mutex::new((bytes, DATED.into()))))
}

const DATED: &str = "Last-Modified: Tue, 01 Jan 2030 00:00:00 GMT\r\nETag: \"x\"\r\n";

/// Serves what is in the lock at the time, under these headers.
fn serve_as(content: Arc<Mutex<(Vec<u8>, String)>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, (bytes, version)) = (stream.unwrap(), content.lock().unwrap().clone());
            std::thread::spawn(move || {
                let mut request = Vec::new();
                let mut byte = [0u8];
                while !request.ends_with(b"\r\n\r\n") {
                    if stream.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    request.push(byte[0]);
                }
                let request = String::from_utf8_lossy(&request).to_lowercase();
                if request.contains(" /missing") {
                    stream
                        .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                        .unwrap();
                    return;
                }
                let range = request.lines().find_map(|l| l.strip_prefix("range: bytes=")?.split_once('-'));
                let (status, from, to) = match range {
                    Some((from, to)) => (
                        "206 Partial Content",
                        from.trim().parse().unwrap(),
                        to.trim().parse::<usize>().unwrap().min(bytes.len() - 1) + 1,
                    ),
                    None => ("200 OK", 0, bytes.len()),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\nAccept-Ranges: bytes\r\n\
                     {version}Connection: close\r\n\r\n",
                    to - from,
                    to - 1,
                    bytes.len()
                );
                stream.write_all(head.as_bytes()).unwrap();
                if !request.starts_with("head") {
                    stream.write_all(&bytes[from..to]).unwrap();
                }
            });
        }
    });
    format!("http://{address}")
}

#[test]
fn files_behind_an_address_are_read_by_ranges() {
    let rows = rows(2000);
    let (_dir, path) = file(&rows);
    let (want, _) = ingest(&votes_card(), &path, &all()).unwrap();
    let root = serve(fs_err::read(&path).unwrap());
    let (votes, _) = ingest(&votes_card(), Path::new(&format!("{root}/v.parquet")), &all()).unwrap();
    assert_eq!(votes, want);
    let root = serve(jsonl(&rows).into_bytes());
    let (votes, _) = ingest(&votes_card(), Path::new(&format!("{root}/some/v.jsonl")), &all()).unwrap();
    assert_eq!(votes.len(), want.len());
    let error = ingest(&votes_card(), Path::new(&format!("{root}/missing.jsonl")), &all()).unwrap_err().to_string();
    assert!(error.contains("/missing.jsonl"), "{error}");
    assert!(ingest(&votes_card(), Path::new("nonsense://x/y.parquet"), &all()).is_err());
}

#[test]
fn what_changes_behind_its_address_is_not_taken_for_what_was_looked_up() {
    let lines = |n: usize| jsonl(&rows(n)).into_bytes();
    let changes = [
        (DATED, "etag \"x\", ", DATED.replace("\"x\"", "\"y\"")),
        (
            "Last-Modified: Tue, 01 Jan 2030 00:00:00 GMT\r\n",
            "modified 2030-01-01",
            "Last-Modified: Wed, 02 Jan 2030 00:00:00 GMT\r\n".into(),
        ),
        ("", "sha256 ", String::new()),
    ];
    for (version, identity, later) in changes {
        let content = Arc::new(Mutex::new((lines(10), version.to_owned())));
        let source = format!("{}/v.jsonl", serve_as(content.clone()));
        let pinned = data::pin(std::slice::from_ref(&source), &run::hash_file).unwrap();
        assert!(pinned.identities[&source].starts_with(identity), "{:?}", pinned.identities);
        let read = || ingest(&votes_card(), Path::new(&pinned.sources[0]), &all());
        let (votes, _) = read().unwrap();
        assert_eq!(votes.len(), 10);
        assert_eq!(votes[0].source_row, "v.jsonl:1", "as without a pin");
        *content.lock().unwrap() = (lines(10).to_ascii_uppercase(), later);
        let error = read().unwrap_err();
        assert!(error.to_string().contains("what it was when it was looked up"), "{error}");
        assert_ne!(data::identities_of(std::slice::from_ref(&source)).unwrap(), pinned.identities);
    }
}
