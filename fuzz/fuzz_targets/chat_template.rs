#![no_main]
use countdown::chat::{ChatTemplate, Conversation, GenerationPrompt, Message};

libfuzzer_sys::fuzz_target!(|source: &str| {
    if let Ok(template) = ChatTemplate::new(source, "<s>", "</s>") {
        let turns = vec![Message::new("system", "s"), Message::new("user", "u")];
        let _ = template.render(&Conversation::from(turns), GenerationPrompt::Add);
    }
});
