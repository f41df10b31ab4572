//! Whether a card chooses the tokens that the CPU chooses: both are given prompts, and then what the CPU chooses greedily, token by token. A yardstick stands beside it, the CPU with a
//! cache of 32 bits for 16: as much as that the CPU differs from itself.
//!
//! ```text
//! devices MODEL PROMPTS TOKENS [PLAN]
//! ```
//!
//! PROMPTS is a file with one a line, PLAN a sparsity plan that steps of all follow.

use countdown::{
    Device, DownLayout, Model, Phase, Result, Session, SessionOptions, SparsityPlan,
    formats::Checkpoint, kernels::DType, tokenizer::Tokenizer,
};
use std::{path::Path, sync::Arc};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, prompts, tokens, plan) = match &arguments[..] {
        [model, prompts, tokens] => (model, prompts, tokens, None),
        [model, prompts, tokens, plan] => (model, prompts, tokens, Some(plan.as_ref())),
        _ => {
            eprintln!("devices MODEL PROMPTS TOKENS [PLAN]");
            std::process::exit(2);
        }
    };
    let (Ok(prompts), Ok(tokens)) = (std::fs::read_to_string(prompts), tokens.parse()) else {
        eprintln!("PROMPTS is a file with one a line, TOKENS a number; not {prompts} and {tokens}");
        std::process::exit(2);
    };
    if let Err(e) = compare(model.as_ref(), &prompts, tokens, plan) {
        eprintln!("{e}\n{}", e.remedy());
        std::process::exit(1);
    }
}

fn compare(path: &Path, prompts: &str, tokens: usize, plan: Option<&Path>) -> Result<()> {
    let threads = countdown::session::physical_cores();
    let down = match plan {
        Some(_) => DownLayout::Transposed,
        None => DownLayout::Stored,
    };
    let tokenizer = countdown::text::tokenizer(&Checkpoint::open(path)?)?;
    let model = Arc::new(Model::open(path, down, threads)?);
    let plan = plan.map(SparsityPlan::load).transpose()?.map(Arc::new);
    let open = |device, cache_dtype| {
        let options = SessionOptions {
            context: Some(1024),
            device,
            cache_dtype,
            ..SessionOptions::default()
        };
        let mut session = Session::new(model.clone(), &options)?;
        session.set_plan(plan.clone())?;
        Ok(session)
    };
    let mut cpu = open(Device::Cpu, DType::F16)?;
    let answers = prompts.lines().filter(|l| !l.is_empty());
    let answers: Vec<Answer> = answers
        .map(|prompt| Answer::greedy(&mut cpu, &tokenizer, prompt, tokens))
        .collect::<Result<_>>()?;
    for (device, cache) in [(Device::Cuda(0), DType::F16), (Device::Cpu, DType::F32)] {
        let mut session = open(device, cache)?;
        println!("{}, cache {cache}:", session.device());
        let mut seen = Differences::default();
        for answer in &answers {
            seen.add(&mut session, answer)?;
        }
        seen.print();
    }
    Ok(())
}

/// What the CPU makes of a prompt: the tokens it chooses, and the logits of each.
struct Answer {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

impl Answer {
    fn greedy(
        session: &mut Session,
        tokenizer: &Tokenizer,
        prompt: &str,
        tokens: usize,
    ) -> Result<Answer> {
        let mut answer = Answer {
            prompt: tokenizer.encode_prompt(prompt)?,
            chosen: Vec::new(),
            logits: Vec::new(),
        };
        for i in 0..tokens {
            let logits = answer.step(session, i)?;
            answer.chosen.push(largest(&logits) as u32);
            answer.logits.push(logits);
        }
        Ok(answer)
    }

    /// The logits that token `i` is chosen by.
    fn step(&self, session: &mut Session, i: usize) -> Result<Vec<f32>> {
        let logits = if i == 0 {
            session.reset();
            session.prompt(&self.prompt, |_, _| ())?
        } else {
            session.feed(&self.chosen[i - 1..i], Phase::Decode)?
        };
        Ok(logits.all()?.to_vec())
    }
}

#[derive(Default)]
struct Differences {
    same: usize,
    all: usize,
    /// Answers that are the same from beginning to end, and answers.
    whole: usize,
    answers: usize,
    /// Where another token would have been chosen, how much larger the CPU's logit of its own is.
    gaps: Vec<f32>,
    /// How far logits are off at most, of the largest.
    off: f32,
}

impl Differences {
    fn add(&mut self, session: &mut Session, answer: &Answer) -> Result<()> {
        let before = self.same;
        for (i, expected) in answer.logits.iter().enumerate() {
            let got = answer.step(session, i)?;
            let [own, other] = [expected, &got].map(|l| largest(l));
            let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
            let differences = expected.iter().zip(&got).map(|(a, b)| (a - b).abs());
            self.off = differences.map(|d| d / scale).fold(self.off, f32::max);
            if own == other {
                self.same += 1;
            } else {
                self.gaps.push(expected[own] - expected[other]);
            }
        }
        self.all += answer.logits.len();
        self.whole += usize::from(self.same - before == answer.logits.len());
        self.answers += 1;
        Ok(())
    }

    fn print(mut self) {
        self.gaps.sort_by(f32::total_cmp);
        let Differences {
            same,
            all,
            whole,
            answers,
            gaps,
            off,
        } = &self;
        println!("  the same token {same} of {all} times, {whole} of {answers} answers as a whole");
        println!("  logits off by at most {off:.4} of the largest");
        if let Some(largest) = gaps.last() {
            let median = gaps[gaps.len() / 2];
            println!(
                "  the CPU's own token ahead of the other by {median:.3} (median), at most {largest:.3}"
            );
        }
    }
}

fn largest(logits: &[f32]) -> usize {
    let indices = 0..logits.len();
    indices
        .max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
        .expect("there is a vocabulary")
}
