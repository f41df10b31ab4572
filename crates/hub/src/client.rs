//! The server's side: lists of files, what a file is, and its bytes from a position on.

use crate::{
    Settings,
    cache::is_commit,
    error::{Error, Result},
    spec::is_path,
};
use serde::Deserialize;
use std::{io::Read, sync::Arc, time::Duration};
use ureq::{
    Agent, Body, RequestBuilder,
    config::RedirectAuthHeaders,
    http::{HeaderMap, Response, StatusCode, header},
    tls::{Certificate, RootCerts, TlsConfig},
    typestate::WithoutBody,
};

/// A connection that says nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest list of files read, in bytes.
const MAX_LISTING: u64 = 64 << 20;

/// What a revision holds.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    pub(crate) files: Vec<String>,
}

/// What the server says of a file.
#[derive(Debug)]
pub(crate) struct About {
    /// Names the content; of large files it is the SHA-256.
    pub(crate) etag: String,
    pub(crate) size: Option<u64>,
}

impl About {
    /// The SHA-256 of the content, where the server says it.
    pub(crate) fn sha256(&self) -> Option<&str> {
        let is_hash = self.etag.len() == 64 && self.etag.bytes().all(|b| b.is_ascii_hexdigit());
        is_hash.then_some(&*self.etag)
    }
}

/// One repository of a server.
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    repository: String,
    token: Option<String>,
}

impl Client {
    pub(crate) fn new(settings: &Settings, repository: &str) -> Result<Client> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(provider)
            .root_certs(roots())
            .build();
        let mut config = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("countdown/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE));
        if is_here(&settings.endpoint) {
            config = config.proxy(None);
        }
        Ok(Client {
            agent: config.build().new_agent(),
            endpoint: settings.endpoint.clone(),
            repository: repository.to_owned(),
            token: settings.token.clone(),
        })
    }

    /// The commit of a revision and its files.
    pub(crate) fn listing(&self, revision: &str) -> Result<Listing> {
        #[derive(Deserialize)]
        struct Answer {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let url = format!(
            "{}/api/models/{}/revision/{}",
            self.endpoint,
            self.repository,
            revision.replace('/', "%2F")
        );
        let mut response = self.call(&url, self.agent.get(&url))?;
        let body = response
            .body_mut()
            .with_config()
            .limit(MAX_LISTING)
            .read_to_vec();
        let body = body.map_err(|e| network(&url, &e))?;
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|e| odd(&url, format!("no list of files: {e}")))?;
        let files: Vec<String> = answer.siblings.into_iter().map(|s| s.rfilename).collect();
        if !is_commit(&answer.sha) {
            return Err(odd(&url, format!("{:?} is no commit", answer.sha)));
        }
        Ok(Listing {
            commit: answer.sha,
            // A name that leads elsewhere is no file of a model.
            files: files.into_iter().filter(|f| is_path(f)).collect(),
        })
    }

    /// Name and size of a file's content, as the first answer says, before it redirects to where large files are.
    pub(crate) fn about(&self, commit: &str, file: &str) -> Result<About> {
        let mut url = self.file_url(commit, file);
        for _ in 0..5 {
            let request = self.agent.head(&url).config();
            let request = request.max_redirects(0).max_redirects_will_error(false);
            // Sizes are those of what is stored, not of a compressed form.
            let request = request.build().header(header::ACCEPT_ENCODING, "identity");
            let response = self.call(&url, request)?;
            let headers = response.headers();
            let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
            let linked = text("x-linked-etag").map(|etag| (etag, text("x-linked-size")));
            // A renamed repository, or a small file elsewhere: a redirect within the server.
            let within = text("location").filter(|place| place.starts_with('/'));
            let plain = || text("etag").map(|etag| (etag, text("content-length")));
            match (linked, within) {
                (Some(found), _) => return about(&url, found),
                (None, Some(place)) => url = format!("{}{place}", self.endpoint),
                (None, None) => match plain() {
                    Some(found) => return about(&url, found),
                    None => break,
                },
            }
        }
        Err(odd(&url, "no ETag in the answer".into()))
    }

    /// A file's bytes from `start` on, or from its beginning where the server has no ranges: the position and the bytes.
    pub(crate) fn content(
        &self,
        commit: &str,
        file: &str,
        start: u64,
    ) -> Result<(u64, impl Read + use<>)> {
        let url = self.file_url(commit, file);
        let mut request = self
            .agent
            .get(&url)
            .header(header::ACCEPT_ENCODING, "identity");
        if start > 0 {
            request = request.header(header::RANGE, format!("bytes={start}-"));
        }
        let response = self.call(&url, request)?;
        let at = match response.status() {
            StatusCode::PARTIAL_CONTENT => range_start(response.headers())
                .filter(|at| *at == start)
                .ok_or_else(|| odd(&url, "another range than asked for".into()))?,
            _ => 0,
        };
        Ok((at, response.into_body().into_reader()))
    }

    fn file_url(&self, commit: &str, file: &str) -> String {
        let file = file.replace(' ', "%20").replace('+', "%2B");
        format!(
            "{}/{}/resolve/{commit}/{file}",
            self.endpoint, self.repository
        )
    }

    fn call(&self, url: &str, request: RequestBuilder<WithoutBody>) -> Result<Response<Body>> {
        let request = match &self.token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        };
        let response = request.call().map_err(|e| network(url, &e))?;
        match response.status().as_u16() {
            200..=399 => Ok(response),
            status @ (401 | 403) => Err(Error::Denied {
                url: url.to_owned(),
                status,
                has_token: self.token.is_some(),
            }),
            404 => Err(Error::NotFound(url.to_owned())),
            status => Err(odd(url, format!("the server answers {status}"))),
        }
    }
}

fn about(url: &str, (etag, size): (&str, Option<&str>)) -> Result<About> {
    Ok(About {
        etag: clean(etag, url)?,
        size: size.and_then(|s| s.parse().ok()),
    })
}

/// Whether a server is this machine, which no proxy leads to.
fn is_here(endpoint: &str) -> bool {
    let host = endpoint.split("://").last().unwrap_or("");
    ["127.", "localhost", "[::1]"]
        .iter()
        .any(|here| host.starts_with(here))
}

/// The certificates that this machine trusts.
fn roots() -> RootCerts {
    let found = rustls_native_certs::load_native_certs().certs;
    let certificate = |der: &[u8]| Certificate::from_der(der).to_owned();
    RootCerts::Specific(Arc::new(found.iter().map(|c| certificate(c)).collect()))
}

/// An ETag without its marks, if it can be the name of a file.
fn clean(etag: &str, url: &str) -> Result<String> {
    let bare = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    match !bare.is_empty() && bare.len() <= 128 && bare.bytes().all(plain) {
        true => Ok(bare.to_owned()),
        false => Err(odd(url, format!("the ETag {etag:?}"))),
    }
}

/// The first position of `Content-Range: bytes 5-9/10`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    range
        .strip_prefix("bytes ")?
        .split('-')
        .next()?
        .parse()
        .ok()
}

fn network(url: &str, cause: &ureq::Error) -> Error {
    Error::Network {
        url: url.to_owned(),
        cause: cause.to_string(),
    }
}

fn odd(url: &str, cause: String) -> Error {
    Error::Answer {
        url: url.to_owned(),
        cause,
    }
}
