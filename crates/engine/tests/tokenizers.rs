//! Token ids against those of the original tokenizers (`tools/tokenizer_cases.py`): of tiny vocabularies always, of real ones
//! where `COUNTDOWN_TOKENIZERS` names the folder that the script wrote.

use std::{
    fs,
    path::{Path, PathBuf},
};

use countdown::{
    Error,
    chat::{Conversation, GenerationPrompt},
    formats::Checkpoint,
    text,
    tokenizer::{Specials, Tokenizer},
};
use serde_json::Value;

fn json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn texts(value: &Value) -> Vec<String> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Ids per text, none where the reference says nothing.
fn ids(value: &Value) -> Vec<Option<Vec<u32>>> {
    match value {
        Value::Null => Vec::new(),
        lists => serde_json::from_value(lists.clone()).unwrap(),
    }
}

/// The tokenizers that lie in a case's folder, but those of kinds that are refused by name.
fn tokenizers(folder: &Path) -> Vec<(PathBuf, Tokenizer)> {
    let mut found = Vec::new();
    let mut take = |path: PathBuf, loaded| match loaded {
        Ok(tokenizer) => found.push((path, tokenizer)),
        Err(e @ Error::Unsupported { .. }) => println!("refused: {e}"),
        Err(e) => panic!("{}: {e}", path.display()),
    };
    let gguf = folder.join("tokenizer.gguf");
    if gguf.exists() {
        let checkpoint = Checkpoint::open(&gguf).unwrap();
        take(gguf, text::tokenizer(&checkpoint));
    }
    let path = folder.join("tokenizer.json");
    if path.exists() {
        let config = folder.join("tokenizer_config.json");
        let config = config.exists().then(|| json(&config));
        let loaded = Tokenizer::from_file(&path, config.as_ref());
        take(path, loaded);
    }
    found
}

/// Compares all cases of a folder; returns how many texts were compared and the differences.
fn compare(root: &Path) -> (usize, Vec<String>) {
    let shared = texts(&json(&root.join("texts.json")));
    let mut folders: Vec<PathBuf> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    let (mut compared, mut differences) = (0, Vec::new());
    for folder in folders {
        let cases = json(&folder.join("cases.json"));
        for (path, tokenizer) in tokenizers(&folder) {
            let mut check = |texts: &[String], expected: &[Option<Vec<u32>>], specials| {
                assert!(expected.is_empty() || texts.len() == expected.len());
                for (text, expected) in texts.iter().zip(expected) {
                    let Some(expected) = expected else { continue };
                    let found = tokenizer.encode(text, specials).unwrap();
                    compared += 1;
                    if found != *expected {
                        let spell = |ids: &[u32]| -> Vec<_> {
                            ids.iter()
                                .map(|&id| tokenizer.token(id).unwrap_or("?").to_owned())
                                .collect()
                        };
                        differences.push(format!(
                            "{}, {specials:?}, {text:?}:\n    {:?} here\n    {:?} by {}",
                            path.display(),
                            spell(&found),
                            spell(expected),
                            cases["reference"],
                        ));
                    }
                }
            };
            check(&shared, &ids(&cases["parsed"]), Specials::Parse);
            check(&shared, &ids(&cases["literal"]), Specials::AsText);
            // A GGUF file's own cases, where it comes with some.
            if let Some(own) = cases.get("texts") {
                check(&texts(own), &ids(&cases["ids"]), Specials::AsText);
            }
            println!("compared: {}", path.display());
        }
    }
    (compared, differences)
}

fn assert_equal(root: &Path, at_least: usize) {
    let (compared, differences) = compare(root);
    println!("{compared} encodings compared in {}", root.display());
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences.join("\n")
    );
    assert!(compared >= at_least, "only {compared} encodings compared");
}

#[test]
fn tiny_vocabularies_give_the_originals_ids() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers");
    // Eight vocabularies, two files, two ways, 112 texts.
    assert_equal(&root, 8 * 2 * 2 * 112);
}

#[test]
fn real_vocabularies_give_the_originals_ids() {
    match std::env::var_os("COUNTDOWN_TOKENIZERS") {
        Some(root) => assert_equal(Path::new(&root), 1),
        None => println!(
            "skipped: COUNTDOWN_TOKENIZERS names no folder (tools/tokenizer_cases.py makes one)"
        ),
    }
}

/// A model's folder with the files of `more` added, and `eos` in its config.json.
fn folder(eos: Value, more: &[(&str, &str)]) -> (tempfile::TempDir, Checkpoint) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let dir = tempfile::tempdir().unwrap();
    let model = fixtures.join("golden/llama");
    fs::copy(
        model.join("model.safetensors"),
        dir.path().join("model.safetensors"),
    )
    .unwrap();
    fs::copy(
        fixtures.join("tokenizers/tiny-llama-bpe/tokenizer.json"),
        dir.path().join("tokenizer.json"),
    )
    .unwrap();
    let mut config = json(&model.join("config.json"));
    config["eos_token_id"] = eos;
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    for (name, text) in more {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

#[test]
fn answers_end_where_the_folder_says() {
    let known = |checkpoint: &Checkpoint| {
        let tokenizer = text::tokenizer(checkpoint).unwrap();
        let named =
            ["<|endoftext|>", "<|im_end|>", "<|eot_id|>"].map(|name| tokenizer.id(name).unwrap());
        let mut ends = tokenizer.end_of_generation().to_vec();
        ends.retain(|id| !named.contains(id));
        assert_eq!(
            ends.len() + named.len(),
            tokenizer.end_of_generation().len()
        );
        ends
    };
    let generation = ("generation_config.json", r#"{"eos_token_id": [7, 9]}"#);
    assert_eq!(
        known(&folder(serde_json::json!(5), &[generation]).1),
        [7, 9]
    );
    // Where there is no such file, config.json counts, as in Hugging Face.
    assert_eq!(known(&folder(serde_json::json!([5, 6]), &[]).1), [5, 6]);
    let nothing: [u32; 0] = [];
    assert_eq!(known(&folder(Value::Null, &[]).1), nothing);
}

#[test]
fn a_conversation_with_tools_takes_the_template_for_them() {
    let rendered = |checkpoint: &Checkpoint, tools: Vec<Value>| {
        let tokenizer = text::tokenizer(checkpoint)?;
        let template = text::chat_template(checkpoint, &tokenizer)?.unwrap();
        let conversation = Conversation {
            tools,
            ..Conversation::default()
        };
        template.render(&conversation, GenerationPrompt::Omit)
    };
    let usual = ("chat_template.jinja", "plain");
    let tools = (
        "additional_chat_templates/tool_use.jinja",
        "{{ tools[0].name }}",
    );
    let tool = || vec![serde_json::json!({"name": "f"})];
    let (_dir, both) = folder(Value::Null, &[usual, tools]);
    assert_eq!(rendered(&both, vec![]).unwrap(), "plain");
    assert_eq!(rendered(&both, tool()).unwrap(), "f");
    let (_dir, one) = folder(Value::Null, &[usual]);
    assert_eq!(rendered(&one, tool()).unwrap(), "plain");
    let (_dir, none) = folder(Value::Null, &[tools]);
    let error = rendered(&none, vec![]).unwrap_err().to_string();
    assert!(
        error.contains("tool_use") && error.contains("`default`"),
        "{error}"
    );
    let broken = ("additional_chat_templates/tool_use.jinja", "a\n{{ 1 +");
    let (_dir, broken) = folder(Value::Null, &[usual, broken]);
    let error = rendered(&broken, vec![]).unwrap_err().to_string();
    assert!(error.contains("`tool_use`:2"), "{error}");
}
