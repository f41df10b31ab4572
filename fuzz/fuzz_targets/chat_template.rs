#![no_main]
use countdown::chat::{ChatTemplate, GenerationPrompt, Message};

libfuzzer_sys::fuzz_target!(|source: &str| {
    if let Ok(template) = ChatTemplate::new(source, "<s>", "</s>") {
        let turns = [Message::new("system", "s"), Message::new("user", "u")];
        let _ = template.render(&turns, GenerationPrompt::Add);
    }
});
