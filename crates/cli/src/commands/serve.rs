//! `countdown serve`: an OpenAI-compatible HTTP server.

use crate::{
    args::{SessionArgs, at_least},
    console::Console,
    failure::{Failure, Result},
    load, plans,
};
use clap::Args;
use countdown_server::{ServeOptions, Served};
use std::path::PathBuf;

/// Holds the key that clients must send, out of sight of other users' process lists.
pub(crate) const KEY_VARIABLE: &str = "COUNTDOWN_API_KEY";

/// Serve a model over HTTP, as OpenAI's API has it
///
/// Paths: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics. Requests are answered one after another.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  countdown serve -m model.gguf --method m-countdown --sparsity 0.7
  COUNTDOWN_API_KEY=secret countdown serve -m model.gguf --host 0.0.0.0 --port 8000
  curl localhost:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}'

Ctrl+C stops taking requests and lets the present answer end.")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    session: SessionArgs,
    /// Interface to listen on
    #[arg(long, value_name = "HOST", default_value_t = defaults().host)]
    host: String,
    /// Port to listen on; 0 for any that is free
    #[arg(long, value_name = "N", default_value_t = defaults().port)]
    port: u16,
    /// Key that clients must send; the environment's COUNTDOWN_API_KEY if not given
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// The model's name in answers [default: the file's]
    #[arg(short, long, value_name = "NAME")]
    alias: Option<String>,
    /// Requests that may wait while one is answered
    #[arg(long, value_name = "N", default_value_t = defaults().queue, value_parser = at_least(0))]
    queue: usize,
    /// Jinja file to use in place of the model's chat template
    #[arg(long, value_name = "FILE")]
    chat_template_file: Option<PathBuf>,
}

fn defaults() -> ServeOptions {
    ServeOptions::new("")
}

pub(crate) fn run(console: &Console, args: &ServeArgs) -> Result<()> {
    let choice = args.session.plan.choice()?;
    let options = ServeOptions {
        host: args.host.clone(),
        port: args.port,
        model_name: match &args.alias {
            Some(alias) => alias.clone(),
            None => args.session.model.model.stem(),
        },
        api_key: args
            .api_key
            .clone()
            .or_else(|| std::env::var(KEY_VARIABLE).ok()),
        queue: args.queue,
    };
    if options.api_key.as_deref() == Some("") {
        return Err(Failure::input(
            "the API key is empty",
            format!("give a key with --api-key, or leave it out and unset {KEY_VARIABLE}"),
        ));
    }
    let checkpoint = args.session.model.model.open(console)?;
    let tokenizer = load::tokenizer(console, &checkpoint)?;
    let template = load::template(args.chat_template_file.as_deref(), &checkpoint, &tokenizer)?;
    if template.is_none() {
        console.warn("the model has no chat template: /v1/chat/completions will refuse");
    }
    let session = plans::session(console, &args.session, &choice, &checkpoint, &tokenizer)?;
    let served = Served {
        session,
        tokenizer,
        template,
    };
    countdown_server::serve(served, &options, |address| {
        console.note(format_args!("listening on http://{address}"));
    })?;
    Ok(())
}
