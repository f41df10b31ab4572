use super::*;

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.tensors().map(|t| t.name.as_str()).collect()
}

fn sharded(index: &serde_json::Value) -> tempfile::TempDir {
    folder(&[
        ("config.json", CONFIG),
        (
            "one.safetensors",
            &safetensors_file(&[("a", &[2]), ("b", &[1])]),
        ),
        ("two.safetensors", &safetensors_file(&[("c", &[3])])),
        (safetensors::INDEX, index.to_string().as_bytes()),
    ])
}

#[test]
fn a_folder_opens_by_itself_and_by_its_files() {
    let dir = folder(&[("config.json", CONFIG), ("model.safetensors", &valid())]);
    for path in [
        dir.path().into(),
        dir.path().join("config.json"),
        dir.path().join("model.safetensors"),
    ] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(
            (names(&checkpoint), checkpoint.bytes()),
            (vec!["a", "b", "c"], 16)
        );
        let Metadata::HuggingFace(metadata) = &checkpoint.metadata else {
            panic!()
        };
        assert_eq!(metadata.get_u32("hidden_size").unwrap(), 64);
        assert_eq!(metadata.get_f32("rope_theta").unwrap(), 10000.0);
        assert_eq!(metadata.opt_u32("head_dim").unwrap(), None);
        fails_with(
            metadata.get_u32("head_dim"),
            &["config.json", "`head_dim` is missing (u32 expected)"],
        );
        fails_with(
            metadata.get_u32("model_type"),
            &["`model_type`: u32 expected, found \"llama\""],
        );
        fails_with(metadata.tokenizer_json(), &["no tokenizer.json"]);
    }
}

#[test]
fn several_files_under_an_index() {
    let dir = sharded(
        &json!({"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}),
    );
    for path in [
        dir.path().into(),
        dir.path().join("two.safetensors"),
        dir.path().join(safetensors::INDEX),
    ] {
        assert_eq!(names(&Checkpoint::open(&path).unwrap()), ["a", "b", "c"]);
    }
}

#[test]
fn an_index_naming_a_missing_file() {
    let dir = sharded(&json!({"weight_map": {"a": "three.safetensors"}}));
    fails_with(
        Checkpoint::open(dir.path()),
        &["three.safetensors", "is missing"],
    );
}

#[test]
fn an_index_promising_a_tensor_that_its_file_lacks() {
    for file in ["one.safetensors", "two.safetensors"] {
        let dir = sharded(
            &json!({"weight_map": {"a": "one.safetensors", "c": "two.safetensors", "x": file}}),
        );
        fails_with(Checkpoint::open(dir.path()), &["`x` is not in it", file]);
    }
    let dir = sharded(&json!({"weight_map": {"a": "two.safetensors", "b": "one.safetensors"}}));
    fails_with(
        Checkpoint::open(dir.path()),
        &["`a` is not in it", "two.safetensors"],
    );
}

#[test]
fn a_tensor_in_two_files() {
    let index = json!({"weight_map": {"a": "one.safetensors", "c": "two.safetensors"}});
    let dir = sharded(&index);
    fs::write(
        dir.path().join("two.safetensors"),
        safetensors_file(&[("a", &[2]), ("c", &[3])]),
    )
    .unwrap();
    fails_with(
        Checkpoint::open(dir.path()),
        &["`a` is in two files: one.safetensors and two.safetensors"],
    );
}

#[test]
fn an_index_leading_out_of_its_folder() {
    let outside = folder(&[("secret.safetensors", &valid())]);
    let absolute = outside.path().join("secret.safetensors");
    let absolute = absolute.to_str().unwrap();
    for name in [
        "../secret.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "./one.safetensors",
        "..",
        "",
        absolute,
    ] {
        let dir = sharded(&json!({"weight_map": {"a": name}}));
        fails_with(Checkpoint::open(dir.path()), &["is no plain file name"]);
    }
}

#[test]
fn an_index_that_is_none() {
    for index in [
        json!([]),
        json!({}),
        json!({"weight_map": {}}),
        json!({"weight_map": {"a": 1}}),
    ] {
        fails_with(
            Checkpoint::open(sharded(&index).path()),
            &[safetensors::INDEX],
        );
    }
}

#[test]
fn a_whole_file_goes_before_an_index() {
    let dir = sharded(&json!({"weight_map": {"a": "one.safetensors"}}));
    fs::write(dir.path().join("model.safetensors"), valid()).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().bytes(), 16);
}

#[test]
fn several_files_without_an_index() {
    let dir = folder(&[
        ("config.json", CONFIG),
        ("x.safetensors", &valid()),
        ("y.safetensors", &valid()),
    ]);
    fails_with(
        Checkpoint::open(dir.path()),
        &["several", "x.safetensors", "y.safetensors"],
    );
    assert!(Checkpoint::open(&dir.path().join("y.safetensors")).is_ok());
}

#[test]
fn a_folder_without_weights() {
    fails_with(Checkpoint::open(folder(&[]).path()), &["holds no model"]);
    fails_with(
        Checkpoint::open(folder(&[("config.json", CONFIG)]).path()),
        &["holds no model"],
    );
    let pytorch = folder(&[("config.json", CONFIG), ("pytorch_model.bin", b"PK")]);
    fails_with(
        Checkpoint::open(pytorch.path()),
        &["PyTorch", "pytorch_model.bin"],
    );
}

#[test]
fn a_folder_without_config() {
    let dir = folder(&[("model.safetensors", &valid())]);
    fails_with(Checkpoint::open(dir.path()), &["no config.json"]);
    fails_with(
        Checkpoint::open(&dir.path().join("model.safetensors")),
        &["no config.json"],
    );
}

#[test]
fn a_config_that_is_no_object() {
    for config in ["", "[1, 2]", "{", "nonsense"] {
        let dir = folder(&[
            ("config.json", config.as_bytes()),
            ("model.safetensors", &valid()),
        ]);
        fails_with(Checkpoint::open(dir.path()), &["config.json"]);
    }
    let nested = "[".repeat(1 << 20);
    let dir = folder(&[
        ("config.json", nested.as_bytes()),
        ("model.safetensors", &valid()),
    ]);
    fails_with(Checkpoint::open(dir.path()), &["config.json", "recursion"]);
}

#[test]
fn a_config_too_large_to_be_one() {
    let dir = folder(&[("model.safetensors", &valid())]);
    // A sparse file: it takes no room.
    let config = fs::File::create(dir.path().join("config.json")).unwrap();
    config.set_len(huggingface::MAX_JSON + 1).unwrap();
    fails_with(
        Checkpoint::open(dir.path()),
        &["config.json", "67108865 bytes"],
    );
}

#[test]
fn a_folder_of_one_gguf_file() {
    let dir = folder(&[
        ("m.gguf", &gguf_file("t")),
        ("config.json", CONFIG),
        ("README.md", b""),
    ]);
    assert_eq!(names(&Checkpoint::open(dir.path()).unwrap()), ["t"]);
}

#[test]
fn a_folder_of_several_gguf_files() {
    let dir = folder(&[("m.gguf", &gguf_file("t")), ("n.gguf", &gguf_file("t"))]);
    fails_with(
        Checkpoint::open(dir.path()),
        &["several models: m.gguf, n.gguf"],
    );
}

#[test]
fn safetensors_go_before_gguf() {
    let dir = folder(&[
        ("config.json", CONFIG),
        ("model.safetensors", &valid()),
        ("m.gguf", &gguf_file("t")),
    ]);
    assert_eq!(
        names(&Checkpoint::open(dir.path()).unwrap()),
        ["a", "b", "c"]
    );
    assert_eq!(
        names(&Checkpoint::open(&dir.path().join("m.gguf")).unwrap()),
        ["t"]
    );
}

#[test]
fn an_empty_file() {
    let dir = folder(&[
        ("m.gguf", b""),
        ("model.safetensors", b""),
        ("config.json", CONFIG),
    ]);
    fails_with(
        Checkpoint::open(&dir.path().join("m.gguf")),
        &["m.gguf", "empty"],
    );
    fails_with(
        Checkpoint::open(dir.path()),
        &["model.safetensors", "empty"],
    );
}

#[test]
fn a_path_to_nothing() {
    let error = Checkpoint::open(Path::new("no/such/model.gguf")).unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error:?}");
}

#[cfg(unix)]
#[test]
fn a_device() {
    fails_with(Checkpoint::open(Path::new("/dev/zero")), &["is a device"]);
}

#[test]
fn chat_templates_in_every_place() {
    let templates = |files: &[(&str, &[u8])]| {
        let mut all = vec![("config.json", CONFIG)];
        all.extend(files.iter().filter(|(name, _)| !name.contains('/')));
        let dir = folder(&all);
        for (name, text) in files.iter().filter(|(name, _)| name.contains('/')) {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        fs::write(dir.path().join("model.safetensors"), valid()).unwrap();
        match Checkpoint::open(dir.path()).unwrap().metadata {
            Metadata::HuggingFace(metadata) => metadata
                .chat_templates
                .into_iter()
                .map(|(name, text)| format!("{name}: {text}"))
                .collect::<Vec<_>>(),
            Metadata::Gguf(_) => panic!(),
        }
    };
    let string: &[u8] = br#"{"chat_template": "one"}"#;
    let list: &[u8] = br#"{"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "two"}]}"#;
    let object: &[u8] = br#"{"chat_template": {"rag": "y"}}"#;
    let none: [&str; 0] = [];
    assert_eq!(templates(&[]), none);
    assert_eq!(templates(&[("tokenizer_config.json", b"{}")]), none);
    let config = "tokenizer_config.json";
    assert_eq!(templates(&[(config, string)]), ["default: one"]);
    assert_eq!(
        templates(&[(config, list)]),
        ["default: two", "tool_use: x"]
    );
    assert_eq!(templates(&[(config, object)]), ["rag: y"]);
    assert_eq!(
        templates(&[("chat_template.json", string)]),
        ["default: one"]
    );
    let files: [(&str, &[u8]); 4] = [
        (config, list),
        ("chat_template.jinja", b"file"),
        ("additional_chat_templates/tool_use.jinja", b"tools"),
        ("additional_chat_templates/readme.txt", b"no template"),
    ];
    assert_eq!(templates(&files), ["default: file", "tool_use: tools"]);
}
