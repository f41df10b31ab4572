//! An OpenAI-compatible HTTP server over a countdown engine.
//!
//! [`serve`] listens until it is told to stop; [`router`] gives the same paths to a program with a server of its own. The
//! engine runs on one thread of its own ([`Engine`]) and answers one request at a time; the others wait in order. What
//! the last conversation left in the session's cache is used again where a prompt begins with it.

mod api;
mod engine_thread;
mod error;
mod fields;
mod metrics;
mod queue;
mod reply;
mod routes;

pub use engine_thread::Engine;
pub use routes::router;

use axum::serve::ListenerExt;
use countdown::{Session, chat::ChatTemplate, tokenizer::Tokenizer};
use std::{future::IntoFuture, io, net::SocketAddr, pin::pin, time::Duration};
use tokio::{net::TcpListener, runtime, sync::oneshot};

/// How long answers may go on after the server was told to stop.
const GRACE: Duration = Duration::from_secs(30);
/// How long connections may take for their last bytes when there is nothing left to answer.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// The model being served.
pub struct Served {
    /// A session of it, with its sparsity plan.
    pub session: Session,
    /// The tokenizer that belongs to it.
    pub tokenizer: Tokenizer,
    /// How conversations are written; without it only `/v1/completions` answers.
    pub template: Option<ChatTemplate>,
}

/// Where and for whom to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Name or address of the interface to listen on.
    pub host: String,
    /// 0 is any that is free.
    pub port: u16,
    /// The model's name in answers.
    pub model_name: String,
    /// What clients must send as `Authorization: Bearer KEY`, if anything. `/health` is open to all.
    pub api_key: Option<String>,
    /// Requests that may wait while one is answered; more are refused with status 503.
    pub queue: usize,
}

impl ServeOptions {
    /// Port 8080 of this machine, for itself only, without a key.
    pub fn new(model_name: impl Into<String>) -> ServeOptions {
        ServeOptions {
            host: "127.0.0.1".into(),
            port: 8080,
            model_name: model_name.into(),
            api_key: None,
            queue: 64,
        }
    }
}

/// Why a server could not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address is taken, unknown or not allowed.
    #[error("cannot listen on {host}:{port}: {source}")]
    Listen {
        /// As in the options.
        host: String,
        /// As in the options.
        port: u16,
        /// The operating system's reason.
        source: io::Error,
    },
    /// An empty API key would look like protection.
    #[error("the API key is empty: give one, or none at all")]
    EmptyKey,
    /// The engine's thread could not be started.
    #[error("cannot start the engine's thread: {0}")]
    Thread(#[source] io::Error),
    /// The system's events could not be waited for.
    #[error("cannot wait for connections and signals: {0}")]
    Runtime(#[source] io::Error),
    /// The engine's thread ended by itself; its message is on standard error.
    #[error("the engine has stopped after an internal error")]
    EngineStopped,
}

/// Serves until Ctrl+C or SIGTERM comes: then no more requests are taken, and the present answer may end within half a
/// minute; a second signal ends it at once. `listening` is told the address once requests can come.
///
/// # Errors
/// [`ServeError`].
pub fn serve(
    served: Served,
    options: &ServeOptions,
    listening: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    if options.api_key.as_deref() == Some("") {
        return Err(ServeError::EmptyKey);
    }
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    runtime.block_on(async {
        let unreachable = |source| ServeError::Listen {
            host: options.host.clone(),
            port: options.port,
            source,
        };
        let listener = TcpListener::bind((options.host.as_str(), options.port))
            .await
            .map_err(unreachable)?;
        let address = listener.local_addr().map_err(unreachable)?;
        let mut signals = Signals::new().map_err(ServeError::Runtime)?;
        let engine = Engine::start(served, options.queue)?;
        listening(address);
        run(listener, engine, options, &mut signals).await
    })
}

async fn run(
    listener: TcpListener,
    engine: Engine,
    options: &ServeOptions,
    signals: &mut Signals,
) -> Result<(), ServeError> {
    // Tokens are small and must not wait for one another.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("cannot set TCP_NODELAY: {error}");
        }
    });
    let (stop, stopped) = oneshot::channel::<()>();
    let mut server = pin!(
        axum::serve(listener, router(engine.clone(), options))
            .with_graceful_shutdown(async {
                let _ = stopped.await;
            })
            .into_future()
    );
    let result = tokio::select! {
        ended = &mut server => return ended.map_err(ServeError::Runtime),
        () = engine.ended() => Err(ServeError::EngineStopped),
        () = signals.next() => Ok(()),
    };
    tracing::info!("stopping");
    engine.close();
    drop(stop);
    let patience = async {
        if tokio::time::timeout(GRACE, engine.ended()).await.is_err() {
            tracing::warn!("the present answer is cut short");
            return;
        }
        // Clients that neither finish a request nor go away are not waited for.
        tokio::time::sleep(LAST_BYTES).await;
    };
    tokio::select! {
        _ = server => {}
        () = signals.next() => {}
        () = patience => {}
    }
    result
}

/// Requests to stop: Ctrl+C, and SIGTERM where there are signals.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(windows)]
    interrupt: tokio::signal::windows::CtrlC,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> io::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    #[cfg(windows)]
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: tokio::signal::windows::ctrl_c()?,
        })
    }

    #[cfg(windows)]
    async fn next(&mut self) {
        let _ = self.interrupt.recv().await;
    }
}
