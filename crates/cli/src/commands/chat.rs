//! `countdown chat`: a conversation through the model's chat template.

use crate::{
    answer::{AnswerArgs, End, answer},
    args::SessionArgs,
    console::{Console, print},
    failure::{Failure, Result},
    interrupt, load, plans,
};
use clap::Args;
use countdown::{
    Error, GenerateOptions, Session,
    chat::{ChatTemplate, Conversation, GenerationPrompt, Message},
    tokenizer::Tokenizer,
};
use std::{
    io::{self, BufRead, IsTerminal},
    path::PathBuf,
};

/// Talk with a model
///
/// Lines of standard input are turns of the user; a backslash at the end of a line continues it on the next one. /clear
/// starts a new conversation, /exit ends. Ctrl+C stops an answer.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  countdown chat -m model.gguf --method m-countdown --sparsity 0.7
  countdown chat -m model.gguf -p \"What is a neuron?\" -st
  countdown chat -m model.gguf -sys \"Answer in one sentence.\" --temp 0 < questions.txt")]
pub(crate) struct ChatArgs {
    /// First turn of the user
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// File with the first turn of the user
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// What the model is told before the conversation (also: -sys)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system_prompt: Option<String>,
    /// End after one answer (also: -st)
    #[arg(long)]
    single_turn: bool,
    /// Jinja file to use in place of the model's chat template
    #[arg(long, value_name = "FILE")]
    chat_template_file: Option<PathBuf>,
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    answer: AnswerArgs,
}

pub(crate) fn run(console: &Console, args: &ChatArgs) -> Result<()> {
    let options = args.answer.options()?;
    let choice = args.session.plan.choice()?;
    let first = first_turn(args)?;
    interrupt::listen();
    let checkpoint = args.session.model.model.open(console)?;
    let tokenizer = load::tokenizer(console, &checkpoint)?;
    let template = load::template(args.chat_template_file.as_deref(), &checkpoint, &tokenizer)?
        .ok_or_else(|| Error::Unsupported {
            path: checkpoint.path.clone(),
            cause: "has no chat template".into(),
            remedy: "use `countdown run`, or give a template with --chat-template-file".into(),
        })?;
    let session = plans::session(console, &args.session, &choice, &checkpoint, &tokenizer)?;
    let mut chat = Chat {
        console,
        session,
        tokenizer: &tokenizer,
        template: &template,
        options,
        shifts: args.answer.shifts(),
        system: args
            .system_prompt
            .as_ref()
            .map(|s| Message::new("system", s)),
        turns: Vec::new(),
    };
    let is_interactive = io::stdin().is_terminal();
    if is_interactive && !args.single_turn {
        console.note("/clear starts anew, /exit ends, Ctrl+C stops an answer");
    }
    let mut input = Input {
        console,
        is_interactive,
        first,
    };
    while let Some(turn) = input.next()? {
        match turn.trim() {
            "" => continue,
            "/exit" => break,
            "/clear" => {
                chat.turns.clear();
                continue;
            }
            text => match chat.turn(text) {
                // At a terminal the user can try again; a script cannot.
                Err(Failure::Engine(e)) if is_interactive && !args.single_turn => {
                    console.error(&e.to_string(), &e.remedy());
                }
                other => other?,
            },
        }
        if args.single_turn {
            break;
        }
    }
    Ok(())
}

fn first_turn(args: &ChatArgs) -> Result<Option<String>> {
    let text = match (&args.prompt, &args.file) {
        (Some(text), _) => Some(text.clone()),
        (None, Some(file)) => Some(load::text_file(file)?),
        (None, None) => None,
    };
    if text.as_ref().is_some_and(|t| t.trim().is_empty()) {
        return Err(Failure::input(
            "the prompt is empty",
            "give the first turn with -p TEXT, or leave -p out and type it",
        ));
    }
    Ok(text)
}

/// The turns of the user.
struct Input<'a> {
    console: &'a Console,
    is_interactive: bool,
    first: Option<String>,
}

impl Input<'_> {
    /// The next turn; `None` at the end of the input.
    fn next(&mut self) -> Result<Option<String>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let mut turn = String::new();
        loop {
            if self.is_interactive {
                self.console
                    .invite(if turn.is_empty() { "> " } else { ". " });
            }
            let mut line = String::new();
            let read = io::stdin().lock().read_line(&mut line);
            let read = read.map_err(|source| Error::Read {
                path: "standard input".into(),
                source,
            })?;
            if read == 0 {
                return Ok(Some(turn).filter(|t| !t.is_empty()));
            }
            match line.trim_end_matches(['\n', '\r']).strip_suffix('\\') {
                Some(part) => turn = turn + part + "\n",
                None => return Ok(Some(turn + &line)),
            }
        }
    }
}

/// A conversation.
struct Chat<'a> {
    console: &'a Console,
    session: Session,
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    options: GenerateOptions,
    shifts: bool,
    system: Option<Message>,
    /// Turns of the user and the assistant, by turns.
    turns: Vec<Message>,
}

impl Chat<'_> {
    /// Answers a turn of the user. If that fails, the turn is forgotten.
    fn turn(&mut self, user: &str) -> Result<()> {
        self.turns.push(Message::new("user", user));
        let before = self.turns.len();
        let answered = self.answer();
        if answered.is_err() && self.turns.len() == before {
            self.turns.pop();
        }
        answered
    }

    fn answer(&mut self) -> Result<()> {
        let prompt = self.prompt()?;
        let answer = answer(
            self.console,
            &mut self.session,
            self.tokenizer,
            &prompt,
            self.options.clone(),
            |piece| print(piece),
        )?;
        if matches!(answer.end, End::Failed(Failure::Closed)) {
            return Err(Failure::Closed);
        }
        print("\n")?;
        self.console.note(answer.figures());
        self.turns.push(Message::new("assistant", answer.text));
        match answer.end {
            End::Failed(e) => Err(e),
            End::Finished(_) | End::Interrupted => Ok(()),
        }
    }

    /// The conversation as tokens. With --context-shift the oldest turns are dropped until it fits.
    fn prompt(&mut self) -> Result<Vec<u32>> {
        loop {
            let messages: Vec<Message> = self.system.iter().chain(&self.turns).cloned().collect();
            let conversation = Conversation::from(messages);
            let text = self.template.render(&conversation, GenerationPrompt::Add)?;
            let tokens = self.tokenizer.encode_prompt(&text)?;
            if tokens.len() <= self.session.context() || !self.shifts || self.turns.len() < 3 {
                return Ok(tokens);
            }
            self.turns.drain(..2);
        }
    }
}
