//! Chat templates rendered as by the original (`tools/chat_cases.py`): our own always, those of real models where
//! `COUNTDOWN_CHAT_TEMPLATES` names the folder that the script wrote.

use std::{fs, path::Path};

use countdown::chat::{ChatTemplate, Conversation, GenerationPrompt, Message};
use serde_json::Value;

fn json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn conversation(json: &Value) -> Conversation {
    let messages = list(&json["messages"]).into_iter().map(Message::from_json);
    Conversation {
        messages: messages.collect::<Result<_, _>>().unwrap(),
        tools: list(&json["tools"]),
        variables: json["variables"].as_object().cloned().unwrap_or_default(),
    }
}

/// Puts today's date where the script left the directives that make it.
fn dated(text: &str) -> String {
    let today = |directives: &str| {
        let source = format!("{{{{ strftime_now('{directives}') }}}}");
        let template = ChatTemplate::new(&source, "", "").unwrap();
        template
            .render(&Conversation::default(), GenerationPrompt::Omit)
            .unwrap()
    };
    ["%d %b %Y", "%B %d, %Y", "%Y-%m-%d", "%d %B %Y"]
        .iter()
        .fold(text.to_owned(), |text, directives| {
            text.replace(&format!("{{{directives}}}"), &today(directives))
        })
}

/// Where the two part, with what comes before.
fn parting(found: &str, expected: &str) -> String {
    let same = found
        .chars()
        .zip(expected.chars())
        .take_while(|(a, b)| a == b)
        .count();
    let from = same.saturating_sub(30);
    let shown = |text: &str| text.chars().skip(from).take(90).collect::<String>();
    format!("{:?} here\n    {:?} there", shown(found), shown(expected))
}

fn assert_equal(root: &Path, at_least: usize) {
    let conversations = list(&json(&root.join("conversations.json")));
    let (mut compared, mut differences) = (0, Vec::new());
    let mut paths: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.retain(|path| {
        path.file_name()
            .is_some_and(|name| name != "conversations.json")
    });
    paths.sort();
    for path in paths {
        let file = json(&path);
        let template = match ChatTemplate::new(file["source"].as_str().unwrap(), "<s>", "</s>") {
            Ok(template) => template,
            Err(e) => {
                differences.push(format!("{}: {e}", path.display()));
                continue;
            }
        };
        for case in list(&file["cases"]) {
            let index = case["conversation"].as_u64().unwrap() as usize;
            let prompt = match case["prompt"].as_bool() {
                Some(true) => GenerationPrompt::Add,
                _ => GenerationPrompt::Omit,
            };
            let found = template.render(&conversation(&conversations[index]), prompt);
            let difference = match (found, case["text"].as_str().map(dated)) {
                (Ok(found), Some(expected)) if found == expected => None,
                (Ok(found), Some(expected)) => Some(parting(&found, &expected)),
                (Err(e), Some(_)) => Some(e.to_string()),
                // A template that refuses a conversation must do so here; what is no text for Python may be one here.
                (Ok(_), None) => {
                    let error = case["error"].as_str().unwrap();
                    error
                        .starts_with("TemplateError")
                        .then(|| format!("not refused: {error}"))
                }
                (Err(_), None) => None,
            };
            compared += 1;
            differences.extend(difference.map(|d| {
                format!(
                    "{}, conversation {index}, {prompt:?}:\n    {d}",
                    path.display()
                )
            }));
        }
    }
    println!("{compared} renderings compared in {}", root.display());
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences.join("\n")
    );
    assert!(compared >= at_least, "only {compared} renderings compared");
}

#[test]
fn our_templates_render_as_in_the_original() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat");
    // Six templates, twenty conversations, with and without the assistant's turn opened.
    assert_equal(&root, 6 * 20 * 2);
}

#[test]
fn real_templates_render_as_in_the_original() {
    match std::env::var_os("COUNTDOWN_CHAT_TEMPLATES") {
        Some(root) => assert_equal(Path::new(&root), 1),
        None => println!(
            "skipped: COUNTDOWN_CHAT_TEMPLATES names no folder (tools/chat_cases.py makes one)"
        ),
    }
}
