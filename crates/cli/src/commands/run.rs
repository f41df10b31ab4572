//! `countdown run`: continues a text.

use crate::{
    answer::{Answer, AnswerArgs, End, answer},
    args::SessionArgs,
    console::{Console, json, print},
    failure::{Failure, Result},
    interrupt, load, plans,
};
use clap::Args;
use countdown::Session;
use std::path::{Path, PathBuf};

/// Continue a text
///
/// The prompt is taken as it is; a model's BOS token is put in front of it where it wants one, and special tokens in it
/// are recognised. For a conversation, use `countdown chat`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  countdown run -m model.gguf -p \"Once upon a time\" -n 100
  countdown run -m model.gguf -f prompt.txt --temp 0 --method m-countdown --sparsity 0.7
  countdown run -m model.gguf -p \"Q: How high is Mont Blanc? A:\" -r Q: --plan plan.safetensors
  cat notes.txt | countdown run -m model.gguf -p - --json")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    answer: AnswerArgs,
    /// Print one JSON object when the answer is complete
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct PromptArgs {
    /// The text to continue (- for standard input)
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// File with the text to continue (- for standard input); one line break at its end is left out
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl PromptArgs {
    fn text(&self) -> Result<String> {
        let text = match (&self.prompt, &self.file) {
            (Some(text), _) if text != "-" => text.clone(),
            (_, file) => {
                let mut text = load::text_file(file.as_deref().unwrap_or(Path::new("-")))?;
                if text.ends_with('\n') {
                    text.pop();
                }
                text
            }
        };
        if text.is_empty() {
            return Err(Failure::input(
                "the prompt is empty",
                "give the text to continue with -p TEXT or -f FILE",
            ));
        }
        Ok(text)
    }
}

pub(crate) fn run(console: &Console, args: &RunArgs) -> Result<()> {
    let options = args.answer.options()?;
    let choice = args.session.plan.choice()?;
    let text = args.prompt.text()?;
    interrupt::listen();
    let checkpoint = args.session.model.model.open(console)?;
    let tokenizer = load::tokenizer(console, &checkpoint)?;
    let prompt = tokenizer.encode_prompt(&text)?;
    let mut session = plans::session(console, &args.session, &choice, &checkpoint, &tokenizer)?;
    let show = |piece: &str| if args.json { Ok(()) } else { print(piece) };
    let answer = answer(console, &mut session, &tokenizer, &prompt, options, show)?;
    if args.json && !matches!(answer.end, End::Failed(_)) {
        print(json(&object(&answer, &session))? + "\n")?;
    }
    if !args.json && !matches!(answer.end, End::Failed(Failure::Closed)) {
        print("\n")?;
    }
    console.note(answer.figures());
    match answer.end {
        End::Failed(e) => Err(e),
        End::Finished(_) | End::Interrupted => Ok(()),
    }
}

fn object(answer: &Answer, session: &Session) -> serde_json::Value {
    let t = &answer.timings;
    serde_json::json!({
        "text": answer.text,
        "tokens": answer.tokens,
        "prompt_tokens": t.prompt_tokens,
        "finish_reason": answer.end.name(),
        "timings": {
            "prompt_ms": t.prompt_time.as_secs_f64() * 1e3,
            "prompt_per_second": t.prompt_rate(),
            "generated": t.tokens,
            "steps": t.steps,
            "generation_ms": t.step_time.as_secs_f64() * 1e3,
            "generation_per_second": t.step_rate(),
            "gb_s": answer.bandwidth,
        },
        "realised": answer.realised,
        "plan": session.plan().map(|p| &p.provenance),
        "device": session.device(),
    })
}
