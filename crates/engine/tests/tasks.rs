//! Tasks with the tiny trained model of bytes: scores against a naive computation, shared prompts, results that go on.

use countdown::{
    DownLayout, Model, Phase, Session, SessionOptions, SparsityPlan,
    eval::{
        ChoiceOptions, ChoiceRow, ChoiceTask, GenerationOptions, GenerationTask, Stepping, choice,
        generation,
    },
    kernels::DType,
    sparsity::{METHODS, Signal},
    tokenizer::Tokenizer,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;

const CONTEXT: usize = 200;

struct Bench {
    folder: TempDir,
    session: Session,
    tokenizer: Tokenizer,
    plans: Vec<Arc<SparsityPlan>>,
}

impl Bench {
    fn new() -> Bench {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/byte-llama");
        let model = Arc::new(Model::open(&path, DownLayout::Transposed, 2).unwrap());
        let plan = |signal, sparsity| {
            let method = METHODS.iter().find(|m| m.signal == Some(signal)).unwrap();
            Arc::new(SparsityPlan::ideal(&model, method, signal, sparsity).unwrap())
        };
        let plans = vec![plan(Signal::Up, 0.5), plan(Signal::Product, 0.7)];
        let options = SessionOptions {
            context: Some(CONTEXT),
            threads: Some(2),
            batch: 256,
            cache_dtype: DType::F32,
            ..SessionOptions::default()
        };
        Bench {
            folder: tempfile::tempdir().unwrap(),
            session: Session::new(model, &options).unwrap(),
            tokenizer: Tokenizer::bytes(256),
            plans,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str, lines: &[Value]) -> PathBuf {
        let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn choice(&mut self, task: &ChoiceTask, options: &ChoiceOptions) -> Vec<ChoiceRow> {
        let (session, plans) = (&mut self.session, &self.plans);
        choice(session, &self.tokenizer, task, plans, options, |_, _| ()).unwrap()
    }

    /// The rows, and the lines of the results after the first.
    fn kept(&mut self, lines: &[Value], stepping: Stepping) -> (Vec<ChoiceRow>, Vec<Value>) {
        let task = ChoiceTask::open(&self.file("task", lines)).unwrap();
        let results = self.path("fresh");
        let _ = fs::remove_file(&results);
        let options = ChoiceOptions {
            stepping,
            results: Some(results.clone()),
            ..ChoiceOptions::default()
        };
        let rows = self.choice(&task, &options);
        (rows, records(&results))
    }

    /// Makes all tokens of a text but the last a prompt, and puts a plan in force. Returns the last token.
    fn begin(&mut self, plan: usize, text: &str) -> u32 {
        let s = &mut self.session;
        s.set_plan(plan.checked_sub(1).map(|i| self.plans[i].clone()))
            .unwrap();
        s.reset();
        let mut fed = bytes(text);
        let last = fed.pop().unwrap();
        if !fed.is_empty() {
            s.feed(&fed, Phase::Prompt).unwrap();
        }
        last
    }

    /// The most likely character after a text, predicted by a step.
    fn most_likely(&mut self, plan: usize, text: &str) -> String {
        let last = self.begin(plan, text);
        let logits = self
            .session
            .feed(&[last], Phase::Decode)
            .unwrap()
            .all()
            .unwrap();
        let most = (0..=255u8).max_by(|a, b| logits[*a as usize].total_cmp(&logits[*b as usize]));
        self.session.set_plan(None).unwrap();
        self.session.reset();
        char::from(most.unwrap()).into()
    }

    /// log P(continuation | context), each token predicted by a step of its own but for the prompt's.
    fn naive(&mut self, plan: usize, context: &str, continuation: &str) -> f64 {
        let mut next = self.begin(plan, context);
        let s = &mut self.session;
        let mut sum = 0.0;
        for target in bytes(continuation) {
            let logits: Vec<f64> = {
                let logits = s.feed(&[next], Phase::Decode).unwrap().all().unwrap();
                logits.iter().map(|&x| f64::from(x)).collect()
            };
            let log_sum = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
            sum += logits[target as usize] - log_sum;
            next = target;
        }
        s.set_plan(None).unwrap();
        s.reset();
        sum
    }
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn records(results: &Path) -> Vec<Value> {
    let text = fs::read_to_string(results).unwrap();
    text.lines()
        .skip(1)
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

fn log_ps(record: &Value) -> Vec<f64> {
    let candidates = record["candidates"].as_array().unwrap();
    candidates
        .iter()
        .map(|c| c["log_p"].as_f64().unwrap())
        .collect()
}

fn request(doc: u64, idx: u64, label: u64, context: &str, continuation: &str) -> Value {
    json!({
        "request_type": "loglikelihood", "doc_id": doc, "idx": idx, "label": label, "doc": {"id": "x"},
        "request": {"context": context, "continuation": continuation},
    })
}

const SHARED: &str = "She had been so long and so well known to the family, that ";
const CHOICES: [(&str, &[&str]); 4] = [
    ("she was not to be ", &["surprised.", "xqzzk.", "of the"]),
    ("he would be ", &["a", "very happy", "an"]),
    // Contexts of their own, and a blank at the end of one.
    ("\n", &["It is", "zz"]),
    ("every body was of the ", &["same opinion", "the"]),
];

/// Four documents with few-shot-like contexts, and their unconditional forms.
fn lines() -> Vec<Value> {
    let mut lines = Vec::new();
    for (offset, conditional) in [(0, true), (1_000_000, false)] {
        for (doc, (question, choices)) in CHOICES.iter().enumerate() {
            for (idx, choice) in choices.iter().enumerate() {
                let context = match (doc, conditional) {
                    (_, false) => "Answer:".into(),
                    // As WinoGrande: the context differs, not the continuation.
                    (3, _) => format!("{SHARED}{question}{idx}"),
                    _ => format!("{SHARED}{question}"),
                };
                let (doc, label) = (doc as u64, (doc % 2) as u64);
                lines.push(request(doc + offset, idx as u64, label, &context, choice));
            }
        }
    }
    lines
}

#[test]
fn scores_are_those_of_one_forward_pass_for_each_candidate() {
    let mut b = Bench::new();
    let lines = lines();
    for (stepping, bound) in [(Stepping::OneByOne, 1e-4), (Stepping::Batched, 0.02)] {
        let (rows, records) = b.kept(&lines, stepping);
        assert_eq!(records.len(), 2 * CHOICES.len() * 3);
        for record in &records {
            let doc = record["doc_id"].as_u64().unwrap();
            let of_doc: Vec<&Value> = lines.iter().filter(|l| l["doc_id"] == doc).collect();
            for (line, got) in of_doc.iter().zip(log_ps(record)) {
                let text = |field: &str| line["request"][field].as_str().unwrap();
                // Blanks at the end of the context belong to the continuation.
                let context = text("context").trim_end();
                let blanks = &text("context")[context.len()..];
                let continuation = format!("{blanks}{}", text("continuation"));
                let plan = record["plan"].as_u64().unwrap() as usize;
                let want = b.naive(plan, context, &continuation);
                assert!(
                    (got - want).abs() < bound * (1.0 + want.abs()),
                    "{record} {stepping:?}: {want}"
                );
            }
        }
        check_rows(&rows, &records);
        assert_eq!((rows[0].realised, rows[0].agreement), (0.0, 1.0));
        assert!((rows[1].realised - 0.5).abs() < 0.02, "{rows:#?}");
        assert!((rows[2].realised - 0.7).abs() < 0.02, "{rows:#?}");
    }
}

/// The accuracies, once more from the records.
fn check_rows(rows: &[ChoiceRow], records: &[Value]) {
    for (plan, row) in rows.iter().enumerate() {
        let find = |doc: usize| {
            let mut all = records.iter();
            all.find(|r| r["doc_id"] == doc && r["plan"] == plan)
                .unwrap()
        };
        let mut right = [0.0; 4];
        for (doc, (_, choices)) in CHOICES.iter().enumerate() {
            let (scores, alone) = (log_ps(find(doc)), log_ps(find(doc + 1_000_000)));
            let candidates = &find(doc)["candidates"];
            let by: [&dyn Fn(usize) -> f64; 4] = [
                &|i| scores[i],
                &|i| scores[i] / candidates[i]["tokens"].as_f64().unwrap(),
                &|i| scores[i] / choices[i].chars().count() as f64,
                &|i| scores[i] - alone[i],
            ];
            for (right, by) in right.iter_mut().zip(by) {
                let order = |a: &usize, b: &usize| by(*a).total_cmp(&by(*b));
                let best = (0..choices.len()).max_by(order).unwrap();
                *right += f64::from(u8::from(best == doc % 2));
            }
        }
        let n = CHOICES.len() as f64;
        let got = [
            row.raw,
            row.per_token,
            row.per_char,
            row.unconditional.unwrap(),
        ];
        for (got, right) in got.iter().zip(right) {
            let p = right / n;
            assert_eq!(got.mean, p);
            assert!((got.stderr - (p * (1.0 - p) / (n - 1.0)).sqrt()).abs() < 1e-12);
        }
        assert_eq!(row.documents, CHOICES.len());
    }
}

#[test]
fn shared_prompts_change_nothing() {
    let mut b = Bench::new();
    let lines = lines();
    let together = b.kept(&lines, Stepping::Batched).1;
    for doc in 0..CHOICES.len() as u64 {
        let alone: Vec<Value> = lines
            .iter()
            .filter(|l| l["doc_id"].as_u64().unwrap() % 1_000_000 == doc)
            .cloned()
            .collect();
        let (_, records) = b.kept(&alone, Stepping::Batched);
        assert_eq!(records.len(), 6);
        for record in records {
            assert!(together.contains(&record), "{record}");
        }
    }
}

#[test]
fn a_run_that_was_killed_goes_on_where_it_was() {
    let mut b = Bench::new();
    let task = ChoiceTask::open(&b.file("task", &lines())).unwrap();
    let options = |results: &Path, limit| ChoiceOptions {
        limit,
        results: Some(results.to_owned()),
        ..ChoiceOptions::default()
    };
    let (whole, cut) = (b.path("whole"), b.path("cut"));
    let rows = b.choice(&task, &options(&whole, None));
    let bytes = fs::read(&whole).unwrap();
    let ends: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i] == b'\n').collect();
    // Within the first line, behind it, and at the end, in the middle and at the beginning of others.
    for end in [
        5,
        ends[0] + 1,
        ends[4] + 1,
        ends[4] + 30,
        ends[7],
        bytes.len(),
    ] {
        fs::write(&cut, &bytes[..end]).unwrap();
        assert_eq!(b.choice(&task, &options(&cut, None)), rows, "cut at {end}");
        assert_eq!(fs::read(&cut).unwrap(), bytes, "cut at {end}");
    }
    // Fewer documents first, more of them later.
    fs::remove_file(&cut).unwrap();
    assert_eq!(b.choice(&task, &options(&cut, Some(2)))[0].documents, 2);
    assert_eq!(records(&cut).len(), 12);
    assert_eq!(b.choice(&task, &options(&cut, None)), rows);
    assert_eq!(records(&cut).len(), 24);
}

#[test]
fn results_of_another_run_are_refused_and_left_alone() {
    let mut b = Bench::new();
    let all = lines();
    let task = ChoiceTask::open(&b.file("task", &all)).unwrap();
    let results = b.path("results");
    let options = |stepping| ChoiceOptions {
        stepping,
        results: Some(results.clone()),
        ..ChoiceOptions::default()
    };
    b.choice(&task, &options(Stepping::Batched));
    let before = fs::read(&results).unwrap();
    let (s, t, plans) = (&mut b.session, &b.tokenizer, b.plans.clone());
    let mut refused = |task: &ChoiceTask, plans: &[Arc<SparsityPlan>], stepping, naming: &str| {
        let error = choice(s, t, task, plans, &options(stepping), |_, _| ()).unwrap_err();
        assert!(error.to_string().contains(naming), "{error}");
        assert_eq!(fs::read(&results).unwrap(), before);
    };
    refused(
        &task,
        &plans,
        Stepping::OneByOne,
        "stepping is batched there",
    );
    refused(
        &task,
        &plans[..1],
        Stepping::Batched,
        "plans is 2 there and 1 now",
    );
    let swapped = [plans[1].clone(), plans[0].clone()];
    refused(
        &task,
        &swapped,
        Stepping::Batched,
        "plan_1 is m-countdown 0.5",
    );
    let mut other = all.clone();
    other[0]["request"]["continuation"] = "else".into();
    let text: String = other.iter().map(|l| format!("{l}\n")).collect();
    fs::write(b.folder.path().join("other"), text).unwrap();
    let other = ChoiceTask::open(&b.folder.path().join("other")).unwrap();
    refused(&other, &plans, Stepping::Batched, "task_hash is");

    fs::write(&results, "something dear").unwrap();
    let opened = choice(s, t, &task, &plans, &options(Stepping::Batched), |_, _| ());
    assert!(
        opened
            .unwrap_err()
            .to_string()
            .contains("is no file of results")
    );
    assert_eq!(fs::read(&results).unwrap(), b"something dear");
}

#[test]
fn plain_questions_are_asked_as_rendered_ones() {
    let mut b = Bench::new();
    let rendered: Vec<Value> = ["a duck", "an owl"]
        .iter()
        .enumerate()
        .map(|(i, c)| request(0, i as u64, 1, "Question: Who?\nAnswer:", &format!(" {c}")))
        .collect();
    let (_, want) = b.kept(&rendered, Stepping::Batched);
    let choices = json!(["a duck", "an owl"]);
    for answer in [json!(1), json!("B"), json!("an owl")] {
        for text in [
            json!({"question": "Who?", "choices": choices, "answer": answer}),
            json!({"context": "Question: Who?\nAnswer:", "choices": choices, "answer": answer}),
        ] {
            let (rows, got) = b.kept(&[text], Stepping::Batched);
            assert_eq!(got, want);
            assert!(rows[0].unconditional.is_none());
        }
    }
}

#[test]
fn what_does_not_fit_loses_tokens_from_the_left() {
    let mut b = Bench::new();
    let long = SHARED.repeat(6);
    let (first, second) = ("be very happy", "be");
    let task = [
        request(0, 0, 0, &long, first),
        request(0, 1, 0, &long, second),
    ];
    let (_, records) = b.kept(&task, Stepping::OneByOne);
    let long = long.trim_end();
    for (got, text) in log_ps(&records[0]).into_iter().zip([first, second]) {
        let text = format!(" {text}");
        let context = &long[long.len() + text.len() - 1 - CONTEXT..];
        let want = b.naive(0, context, &text);
        assert!(
            (got - want).abs() < 1e-4 * (1.0 + want.abs()),
            "{got} {want}"
        );
    }
    let huge = [
        request(0, 0, 0, "a", &long[..201]),
        request(0, 1, 0, "a", "b"),
    ];
    let task = ChoiceTask::open(&b.file("huge", &huge)).unwrap();
    let (s, t) = (&mut b.session, &b.tokenizer);
    let error = choice(s, t, &task, &[], &ChoiceOptions::default(), |_, _| ()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("line 1: document 0: a candidate of 201 tokens"),
        "{error}"
    );
}

#[test]
fn answers_are_extracted_compared_and_kept() {
    let mut b = Bench::new();
    // Greedy, the model goes on with "she had\nsomething to her the s".
    let prompt = "It is a truth universally acknowledged, that ";
    let line = |answer: &str, pattern: &str| json!({"prompt": prompt, "answer": answer, "pattern": pattern, "max_tokens": 20});
    let lines = [
        line("something", r"had\s+(\w+)"),
        line("nothing", r"had\s+(\w+)"),
        json!({"prompt": prompt, "answer": "something", "pattern": r"(\w+)", "max_tokens": 40, "stop": [" to"]}),
        json!({"prompt": prompt, "answer": 7, "max_tokens": 5}),
        json!({
            "request_type": "generate_until", "doc_id": 9, "label": "18",
            "request": {"context": prompt, "stop_sequences": ["had"], "generation_kwargs": {"max_gen_toks": 30}},
        }),
    ];
    let task = GenerationTask::open(&b.file("task", &lines)).unwrap();
    assert_eq!(task.documents(), 5);
    let (s, t) = (&mut b.session, &b.tokenizer);
    let results = b.folder.path().join("results");
    let options = GenerationOptions {
        limit: None,
        results: Some(results.clone()),
    };
    let rows = generation(s, t, &task, &b.plans, &options, |_, _| ()).unwrap();
    assert_eq!(rows[0].exact_match.mean, 2.0 / 5.0);
    assert_eq!((rows[0].realised, rows[0].documents), (0.0, 5));
    assert!((rows[1].realised - 0.5).abs() < 0.02, "{rows:#?}");
    let kept = records(&results);
    let dense: Vec<&Value> = kept.iter().filter(|r| r["plan"] == 0).collect();
    assert_eq!(dense[0]["answer"], "something");
    assert_eq!(dense[2]["text"], "she had\nsomething");
    assert_eq!(
        (&dense[3]["answer"], &dense[3]["tokens"]),
        (&Value::Null, &json!(5))
    );
    assert_eq!(
        (&dense[4]["text"], &dense[4]["right"]),
        (&json!("she "), &json!(false))
    );
    let tokens: u64 = dense.iter().map(|r| r["tokens"].as_u64().unwrap()).sum();
    assert_eq!(rows[0].mean_tokens, tokens as f64 / 5.0);

    let bytes = fs::read(&results).unwrap();
    fs::write(&results, &bytes[..bytes.len() * 2 / 3]).unwrap();
    let again = generation(s, t, &task, &b.plans, &options, |_, _| ()).unwrap();
    assert_eq!(again, rows);
    assert_eq!(fs::read(&results).unwrap(), bytes);

    // A prompt makes room for its answer; without room there is an error.
    let long = json!({"prompt": SHARED.repeat(9), "answer": 1, "max_tokens": 20});
    let none = json!({"prompt": "x", "answer": 1, "max_tokens": CONTEXT});
    let options = GenerationOptions::default();
    fs::write(b.folder.path().join("long"), long.to_string()).unwrap();
    let task = GenerationTask::open(&b.folder.path().join("long")).unwrap();
    generation(s, t, &task, &[], &options, |_, _| ()).unwrap();
    fs::write(b.folder.path().join("none"), none.to_string()).unwrap();
    let task = GenerationTask::open(&b.folder.path().join("none")).unwrap();
    let error = generation(s, t, &task, &[], &options, |_, _| ()).unwrap_err();
    assert!(
        error.to_string().contains("no room for a prompt"),
        "{error}"
    );
}

#[test]
fn the_first_token_of_an_answer_is_predicted_under_the_plan() {
    let mut b = Bench::new();
    // From a prompt of one token on.
    let prompts: Vec<&str> = (1..40).map(|n| &SHARED[..n]).collect();
    let line = |prompt: &&str| json!({"prompt": prompt, "answer": "x", "max_tokens": 1});
    let lines: Vec<Value> = prompts.iter().map(line).collect();
    let task = GenerationTask::open(&b.file("task", &lines)).unwrap();
    let results = b.path("results");
    let options = GenerationOptions {
        limit: None,
        results: Some(results.clone()),
    };
    let (s, t) = (&mut b.session, &b.tokenizer);
    let rows = generation(s, t, &task, &b.plans, &options, |_, _| ()).unwrap();
    assert!((rows[2].realised - 0.7).abs() < 0.02, "{rows:#?}");

    let answers = |plan: usize| -> Vec<String> {
        let kept = records(&results).into_iter().filter(|r| r["plan"] == plan);
        kept.map(|r| r["text"].as_str().unwrap().into()).collect()
    };
    for plan in 0..=b.plans.len() {
        let expected: Vec<String> = prompts.iter().map(|p| b.most_likely(plan, p)).collect();
        assert_eq!(answers(plan), expected, "plan {plan}");
    }
    assert_ne!(answers(1), answers(0), "the plan changes nothing");
}
