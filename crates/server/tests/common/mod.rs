//! A server of the fixture model on a free port, and an HTTP client of a few lines.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "a module of several test files, none of which uses all of it"
)]

use countdown::{
    DownLayout, Model, Session, SessionOptions, SparsityPlan,
    chat::ChatTemplate,
    sparsity::{Method, Signal},
    tokenizer::Tokenizer,
};
use countdown_server::{ServeError, ServeOptions, Served, serve};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const CHATML: &str = "{% for m in messages %}\
{% if m.role == 'alien' %}{{ raise_exception('nobody speaks alien') }}{% endif %}\
<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// What is served.
pub struct Setup {
    pub options: ServeOptions,
    pub context: usize,
    pub template: Option<&'static str>,
    /// Neurons skipped, exactly.
    pub sparsity: Option<f64>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            options: ServeOptions {
                port: 0,
                ..ServeOptions::new("byte-llama")
            },
            context: 256,
            template: Some(CHATML),
            sparsity: None,
        }
    }
}

impl Setup {
    /// Room for answers that take many seconds.
    pub fn slow() -> Setup {
        Setup {
            context: 16384,
            ..Setup::default()
        }
    }
}

/// The fixture, or a copy of it that claims to have been trained for `context` positions.
fn open(context: usize, layout: DownLayout) -> Model {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/fixtures/byte-llama");
    let open = |path: &Path| Model::open(path, layout, 1).unwrap();
    if context <= 256 {
        return open(&fixture);
    }
    let folder = tempfile::tempdir().unwrap();
    let copy: PathBuf = folder.path().into();
    let config = std::fs::read_to_string(fixture.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["max_position_embeddings"] = context.into();
    std::fs::write(copy.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(
        fixture.join("model.safetensors"),
        copy.join("model.safetensors"),
    )
    .unwrap();
    // A mapped file stays readable after its folder is gone.
    open(&copy)
}

pub struct Server {
    pub address: SocketAddr,
    pub thread: JoinHandle<Result<(), ServeError>>,
}

fn served(setup: &Setup) -> Served {
    let layout = match setup.sparsity {
        Some(_) => DownLayout::Transposed,
        None => DownLayout::Stored,
    };
    let model = Arc::new(open(setup.context, layout));
    let session = SessionOptions {
        context: Some(setup.context),
        threads: Some(1),
        ..SessionOptions::default()
    };
    let mut session = Session::new(model.clone(), &session).unwrap();
    let plan = setup.sparsity.map(|sparsity| {
        let method = Method::by_name("m-countdown").unwrap();
        Arc::new(SparsityPlan::ideal(&model, method, Signal::Up, sparsity).unwrap())
    });
    session.set_plan(plan).unwrap();
    let template = setup
        .template
        .map(|s| ChatTemplate::new(s, "", "").unwrap());
    Served {
        session,
        tokenizer: Tokenizer::bytes(256),
        template,
    }
}

/// Serves until it fails.
pub fn serve_to_the_end(setup: Setup) -> Result<(), ServeError> {
    serve(served(&setup), &setup.options, |_| ())
}

/// Serves until the process ends.
pub fn start(setup: Setup) -> Server {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || {
        serve(served(&setup), &setup.options, |address| {
            sender.send(address).unwrap();
        })
    });
    Server {
        address: receiver
            .recv_timeout(Duration::from_secs(60))
            .expect("the server listens"),
        thread,
    }
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// `[status, param, code]` of an error in OpenAI's shape.
    #[track_caller]
    pub fn error(&self) -> (u16, Option<String>, Option<String>) {
        let json = self.json();
        let error = json["error"].as_object().expect("an error object");
        let keys: Vec<&str> = error.keys().map(String::as_str).collect();
        assert_eq!(keys, ["message", "type", "param", "code"]);
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()));
        assert!(
            error["type"]
                .as_str()
                .is_some_and(|m| m.ends_with("_error"))
        );
        let text = |key: &str| error[key].as_str().map(String::from);
        (self.status, text("param"), text("code"))
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

/// An answer of which only the head has been read.
pub struct Open {
    pub status: u16,
    pub head: String,
    rest: BufReader<TcpStream>,
}

impl Open {
    /// The next server-sent event's data, `None` at the end.
    pub fn event(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.rest.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // Chunk sizes and blank lines stand on lines of their own.
            if let Some(data) = line.strip_prefix("data: ") {
                return Some(data.trim_end().into());
            }
        }
    }

    /// All the data that is still to come.
    pub fn events(mut self) -> Vec<String> {
        std::iter::from_fn(|| self.event()).collect()
    }

    fn body(mut self) -> Reply {
        let mut bytes = Vec::new();
        self.rest.read_to_end(&mut bytes).unwrap();
        if header(&self.head, "transfer-encoding") == Some("chunked") {
            bytes = unchunked(&bytes);
        }
        Reply {
            status: self.status,
            head: self.head,
            body: String::from_utf8(bytes).unwrap(),
        }
    }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|w| w == b"\r\n").unwrap();
        let size = std::str::from_utf8(&bytes[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&bytes[end + 2..][..size]);
        bytes = &bytes[end + 2 + size + 2..];
    }
}

impl Server {
    /// Sends bytes as they are, and returns the connection.
    pub fn connect(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream.write_all(bytes).unwrap();
        stream
    }

    /// Sends a request without waiting for anything.
    pub fn send(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> TcpStream {
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n");
        for header in headers {
            request += &format!("{header}\r\n");
        }
        request += &format!("Content-Length: {}\r\n\r\n", body.len());
        self.connect(&[request.as_bytes(), body].concat())
    }

    /// Sends a request and reads the head of the answer.
    pub fn open(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Open {
        read_head(self.send(method, path, headers, body))
    }

    pub fn get(&self, path: &str) -> Reply {
        self.open("GET", path, &[], b"").body()
    }

    pub fn post_bytes(&self, path: &str, body: &[u8]) -> Reply {
        self.open("POST", path, &["Content-Type: application/json"], body)
            .body()
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_bytes(path, body.to_string().as_bytes())
    }

    /// As [`Server::open`] and reading all of it.
    pub fn request(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Reply {
        self.open(method, path, headers, body).body()
    }

    /// A stream of which the head has been read.
    #[track_caller]
    pub fn stream(&self, path: &str, body: &Value) -> Open {
        let open = self.open("POST", path, &[], body.to_string().as_bytes());
        assert_eq!(open.status, 200);
        assert_eq!(
            header(&open.head, "content-type"),
            Some("text/event-stream")
        );
        open
    }

    /// A value of `/metrics`.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("countdown_{name} ")));
        value
            .unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .unwrap()
    }

    /// Waits until a value of `/metrics` is `value`.
    #[track_caller]
    pub fn wait_for(&self, name: &str, value: f64) {
        let start = Instant::now();
        while self.metric(name) != value {
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "{name} never is {value}"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Reads the head of an answer.
pub fn read_head(stream: TcpStream) -> Open {
    let mut rest = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(rest.read_line(&mut head).unwrap(), 0, "no head: {head:?}");
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Open { status, head, rest }
}

/// Reads an answer to its end.
pub fn read(stream: TcpStream) -> Reply {
    read_head(stream).body()
}
