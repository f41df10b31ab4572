//! A tiny server that behaves like the Hub: it says what a repository holds, names contents by their hashes, and redirects large
//! files to another host, which has ranges, loses connections and lies where a test wants it to.

#![allow(dead_code)] // each test file uses its part

use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

pub(crate) fn hash(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// A file of the repository.
#[derive(Clone)]
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
    pub(crate) etag: String,
    /// Whether it lies on the other host.
    pub(crate) large: bool,
    /// The size that the server claims, where it lies.
    pub(crate) claimed: Option<usize>,
    /// After how many bytes of an answer the connection breaks, the first time, the second time and so on.
    pub(crate) cuts: Vec<usize>,
    pub(crate) ranges: bool,
    /// Whether only the bearer of `secret` may have the repository.
    pub(crate) gated: bool,
}

impl File {
    pub(crate) fn small(name: &str, content: &[u8]) -> File {
        File {
            name: name.into(),
            content: content.into(),
            // As git names contents: 40 digits, no SHA-256.
            etag: hash(content)[..40].into(),
            large: false,
            claimed: None,
            cuts: Vec::new(),
            ranges: true,
            gated: false,
        }
    }

    pub(crate) fn large(name: &str, content: Vec<u8>) -> File {
        File {
            etag: hash(&content),
            large: true,
            ..File::small(name, &content)
        }
    }
}

#[derive(Default)]
struct Log {
    /// Method, path and authorisation of every request.
    requests: Vec<String>,
    /// Where each answer with content began.
    ranges: Vec<usize>,
    /// How often each file was sent.
    sent: HashMap<String, usize>,
}

pub(crate) struct Mirror {
    port: u16,
    log: Arc<Mutex<Log>>,
}

impl Mirror {
    pub(crate) fn start(files: Vec<File>) -> Mirror {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::new(Mutex::new(Log::default()));
        let (files, shared) = (Arc::new(files), log.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, log) = (files.clone(), shared.clone());
                // A client that goes away is no concern of the server.
                thread::spawn(move || answer(stream, port, &files, &log));
            }
        });
        Mirror { port, log }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.log.lock().unwrap().requests.clone()
    }

    pub(crate) fn ranges(&self) -> Vec<usize> {
        self.log.lock().unwrap().ranges.clone()
    }
}

/// Answers one request and closes the connection.
fn answer(stream: TcpStream, port: u16, files: &[File], log: &Mutex<Log>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut out = stream;
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let bearer = headers.get("authorization").cloned().unwrap_or_default();
    log.lock()
        .unwrap()
        .requests
        .push(format!("{method} {path} {bearer}"));
    let mut say = |status: &str, headers: &str, body: &[u8]| -> std::io::Result<()> {
        write!(
            out,
            "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        )?;
        if method != "HEAD" {
            out.write_all(body)?;
        }
        out.flush()
    };
    if let Some(name) = path.strip_prefix("/cdn/") {
        let Some(file) = files.iter().find(|f| f.name == name) else {
            return say("404 Not Found", "", b"");
        };
        return content(&mut out, file, headers.get("range"), log);
    }
    if let Some(file) = path
        .strip_prefix("/cache/")
        .and_then(|name| files.iter().find(|f| f.name == name))
    {
        let headers = format!("ETag: W/\"{}\"\r\n", file.etag);
        return say("200 OK", &headers, &file.content);
    }
    let denied = files.iter().any(|f| f.gated) && bearer != "Bearer secret";
    if denied && path.contains("org/name") {
        let status = if bearer.is_empty() {
            "401 Unauthorized"
        } else {
            "403 Forbidden"
        };
        return say(status, "", b"");
    }
    let revisions = ["main", COMMIT].map(|r| format!("/api/models/org/name/revision/{r}"));
    if revisions.iter().any(|r| r == path) {
        let siblings: Vec<_> = files
            .iter()
            .map(|f| serde_json::json!({"rfilename": f.name}))
            .collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return say("200 OK", "", body.as_bytes());
    }
    let wanted = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"));
    let Some(file) = wanted.and_then(|name| files.iter().find(|f| f.name == name)) else {
        return say("404 Not Found", "", b"");
    };
    if file.large {
        let size = file.claimed.unwrap_or(file.content.len());
        let (name, etag) = (&file.name, &file.etag);
        // Another name of the same machine is another host.
        let headers = format!(
            "X-Repo-Commit: {COMMIT}\r\nX-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {size}\r\nLocation: http://localhost:{port}/cdn/{name}\r\n"
        );
        return say("302 Found", &headers, b"");
    }
    // Small files lie elsewhere on the same host.
    let location = format!(
        "ETag: \"of-the-redirect\"\r\nLocation: /cache/{}\r\n",
        file.name
    );
    say("307 Temporary Redirect", &location, b"")
}

/// Sends a large file from where it is asked for, as far as the connection holds.
fn content(
    out: &mut TcpStream,
    file: &File,
    range: Option<&String>,
    log: &Mutex<Log>,
) -> std::io::Result<()> {
    let asked = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let start = asked.filter(|_| file.ranges).unwrap_or(0);
    let cut = {
        let mut log = log.lock().unwrap();
        log.ranges.push(start);
        let sent = log.sent.entry(file.name.clone()).or_default();
        *sent += 1;
        file.cuts.get(*sent - 1).copied()
    };
    let (all, rest) = (file.content.len(), &file.content[start..]);
    match start {
        0 => write!(out, "HTTP/1.1 200 OK\r\n")?,
        _ => write!(
            out,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{all}\r\n",
            all - 1
        )?,
    }
    write!(
        out,
        "Connection: close\r\nContent-Length: {}\r\n\r\n",
        rest.len()
    )?;
    let end = cut.map_or(rest.len(), |cut| cut.saturating_sub(start).min(rest.len()));
    out.write_all(&rest[..end])?;
    out.flush()
}
