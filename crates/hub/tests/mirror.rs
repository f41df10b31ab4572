//! Fetching from a mirror on loopback: redirects, ranges, ETags, cut connections, wrong hashes, refusals.

mod support;

use countdown_hub::{Error, Settings, Spec, fetch};
use std::{fs, path::PathBuf};
use support::{COMMIT, File, Mirror, hash};
use tempfile::TempDir;

struct Client {
    folder: TempDir,
    settings: Settings,
    /// Files whose progress was told.
    told: Vec<String>,
}

impl Client {
    fn of(mirror: &Mirror) -> Client {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings {
            endpoint: mirror.endpoint(),
            cache: folder.path().join("hub"),
            token: None,
            offline: false,
        };
        Client {
            folder,
            settings,
            told: Vec::new(),
        }
    }

    fn fetch(&mut self, spec: &str) -> Result<PathBuf, Error> {
        let spec: Spec = spec.parse().unwrap();
        let told = &mut self.told;
        fetch(&spec, &self.settings, &mut |file, done, all| {
            assert!(done <= all, "{file}: {done} of {all}");
            told.push(file.into());
        })
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("hub/models--org--name")
    }
}

/// Bytes that compress badly and repeat nowhere.
fn noise(len: usize) -> Vec<u8> {
    let mut x = 1u32;
    let next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn sharded() -> Mirror {
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    Mirror::start(vec![
        File::small("config.json", b"{}"),
        File::small("tokenizer.json", b"{\"t\": 1}"),
        File::small("model.safetensors.index.json", index.as_bytes()),
        File::large("model-00001-of-00002.safetensors", noise(700_000)),
        File::large("model-00002-of-00002.safetensors", noise(300_001)),
        File::small("README.md", b"not wanted"),
    ])
}

#[test]
fn a_folder_comes_whole_and_is_then_used_without_asking() {
    let mirror = sharded();
    let mut client = Client::of(&mirror);
    let folder = client.fetch("hf:org/name").unwrap();
    assert_eq!(folder, client.model().join("snapshots").join(COMMIT));
    let mut names: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json"
        ]
    );
    assert_eq!(
        fs::read(folder.join("model-00001-of-00002.safetensors")).unwrap(),
        noise(700_000)
    );
    assert!(
        client
            .told
            .iter()
            .any(|f| f == "model-00002-of-00002.safetensors")
    );

    // As Python's library lays it out.
    assert_eq!(
        fs::read_to_string(client.model().join("refs/main")).unwrap(),
        COMMIT
    );
    assert!(
        client
            .model()
            .join("blobs")
            .join(hash(&noise(300_001)))
            .is_file()
    );
    assert!(
        client
            .model()
            .join(".no_exist")
            .join(COMMIT)
            .join("chat_template.jinja")
            .exists()
    );
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(folder.join("config.json"))
            .unwrap()
            .to_str()
            .unwrap(),
        format!("../../blobs/{}", File::small("", b"{}").etag)
    );

    let before = mirror.requests().len();
    assert_eq!(client.fetch("hf:org/name").unwrap(), folder);
    assert_eq!(
        client.fetch(&format!("hf:org/name@{COMMIT}")).unwrap(),
        folder
    );
    assert_eq!(mirror.requests().len(), before, "{:?}", mirror.requests());

    // A file that went missing is fetched again, alone.
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    client.told.clear();
    client.fetch("hf:org/name").unwrap();
    assert!(folder.join("tokenizer.json").exists());
    let large: Vec<String> = mirror.requests()[before..]
        .iter()
        .filter(|r| r.starts_with("GET /cdn"))
        .cloned()
        .collect();
    assert!(large.is_empty(), "{large:?}");
}

#[test]
fn offline_there_is_the_cache_and_nothing_else() {
    let mirror = sharded();
    let mut client = Client::of(&mirror);
    client.settings.offline = true;
    let error = client.fetch("hf:org/name").unwrap_err();
    assert!(
        matches!(error, Error::NotCached(_)) && error.remedy().contains("HF_HUB_OFFLINE"),
        "{error}"
    );
    assert!(mirror.requests().is_empty());
    client.settings.offline = false;
    client.fetch("hf:org/name").unwrap();
    let before = mirror.requests().len();
    client.settings.offline = true;
    client.fetch("hf:org/name").unwrap();
    assert_eq!(mirror.requests().len(), before);
}

#[test]
fn cut_connections_are_taken_up_where_they_broke() {
    let content = noise(1_000_000);
    let mirror = Mirror::start(vec![File {
        cuts: vec![200_000, 0, 450_000],
        ..File::large("m.Q8_0.gguf", content.clone())
    }]);
    let mut client = Client::of(&mirror);
    let path = client.fetch("hf:org/name:Q8_0").unwrap();
    assert_eq!(fs::read(path).unwrap(), content);
    let ranges = mirror.ranges();
    assert_eq!(ranges[0], 0);
    assert!(
        ranges.windows(2).all(|w| w[0] <= w[1]) && *ranges.last().unwrap() >= 450_000,
        "{ranges:?}"
    );
}

#[test]
fn what_a_killed_process_left_is_not_fetched_again() {
    let content = noise(500_000);
    let mirror = Mirror::start(vec![File::large("m.gguf", content.clone())]);
    let mut client = Client::of(&mirror);
    let blobs = client.model().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let left = blobs.join(format!("{}.incomplete", hash(&content)));
    fs::write(&left, &content[..123_456]).unwrap();
    let path = client.fetch("hf:org/name:m.gguf").unwrap();
    assert_eq!(fs::read(path).unwrap(), content);
    assert_eq!(mirror.ranges(), [123_456]);
    assert!(!left.exists());
}

#[test]
fn a_server_without_ranges_starts_over() {
    let content = noise(400_000);
    let mirror = Mirror::start(vec![File {
        ranges: false,
        cuts: vec![100_000],
        ..File::large("m.gguf", content.clone())
    }]);
    let mut client = Client::of(&mirror);
    let path = client.fetch("hf:org/name:m.gguf").unwrap();
    assert_eq!(fs::read(path).unwrap(), content);
}

#[test]
fn a_connection_that_keeps_breaking_is_an_error_and_keeps_what_came() {
    let mirror = Mirror::start(vec![File {
        cuts: vec![100_000; 20],
        ..File::large("m.gguf", noise(400_000))
    }]);
    let mut client = Client::of(&mirror);
    let error = client.fetch("hf:org/name").unwrap_err();
    assert!(
        matches!(error, Error::Network { .. }) && error.remedy().contains("kept"),
        "{error}"
    );
    let blobs: Vec<PathBuf> = fs::read_dir(client.model().join("blobs"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(blobs.len(), 1);
    assert_eq!(fs::metadata(&blobs[0]).unwrap().len(), 100_000);
}

#[test]
fn a_wrong_hash_or_size_is_an_error_and_the_file_is_gone() {
    let wrong_hash = File {
        etag: hash(b"something else"),
        ..File::large("m.gguf", noise(100_000))
    };
    let wrong_size = File {
        claimed: Some(99_999),
        ..File::large("m.gguf", noise(100_000))
    };
    for (file, expected) in [(wrong_hash, "SHA-256"), (wrong_size, "99999 are expected")] {
        let mirror = Mirror::start(vec![file]);
        let mut client = Client::of(&mirror);
        let error = client.fetch("hf:org/name").unwrap_err();
        assert!(
            matches!(error, Error::Corrupt { .. }) && error.to_string().contains(expected),
            "{error}"
        );
        assert_eq!(
            fs::read_dir(client.model().join("blobs")).unwrap().count(),
            0
        );
        assert!(!client.model().join("snapshots").exists());
    }
}

#[test]
fn tokens_go_to_the_server_and_nowhere_else() {
    let mut files = vec![File::large("m.gguf", noise(1000))];
    files[0].gated = true;
    let mirror = Mirror::start(files);
    let mut client = Client::of(&mirror);
    let error = client.fetch("hf:org/name").unwrap_err();
    assert!(
        matches!(error, Error::Denied { status: 401, .. }) && error.remedy().contains("HF_TOKEN"),
        "{error}"
    );
    client.settings.token = Some("wrong".into());
    let error = client.fetch("hf:org/name").unwrap_err();
    assert!(
        matches!(error, Error::Denied { status: 403, .. }) && error.remedy().contains("terms"),
        "{error}"
    );
    client.settings.token = Some("secret".into());
    client.fetch("hf:org/name").unwrap();
    let elsewhere: Vec<String> = mirror
        .requests()
        .into_iter()
        .filter(|r| r.contains("/cdn/") && r.contains("Bearer"))
        .collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}

#[test]
fn what_is_not_there_is_named() {
    let mirror = sharded();
    let mut client = Client::of(&mirror);
    for missing in ["hf:org/other", "hf:org/name@v9"] {
        let error = client.fetch(missing).unwrap_err();
        assert!(matches!(error, Error::NotFound(_)), "{error}");
    }
    let error = client.fetch("hf:org/name:Q4_K_M").unwrap_err();
    assert!(error.to_string().contains("no file Q4_K_M"), "{error}");
    // A port that nobody listens at.
    client.settings.endpoint = "http://127.0.0.1:1".into();
    let error = client.fetch("hf:org/name").unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
    assert!(
        error.remedy().contains("HF_ENDPOINT") && error.remedy().contains("path"),
        "{error}"
    );
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let mirror = sharded();
    let mut client = Client::of(&mirror);
    fs::write(client.folder.path().join("hub"), "a file in the way").unwrap();
    let error = client.fetch("hf:org/name").unwrap_err();
    assert!(
        matches!(error, Error::Disk { .. }) && error.remedy().contains("HF_HUB_CACHE"),
        "{error}"
    );
    client.settings.cache = client.folder.path().join("elsewhere");
    client.fetch("hf:org/name").unwrap();
}

#[test]
fn two_at_once_fetch_a_file_once() {
    let mirror = sharded();
    let client = Client::of(&mirror);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                fetch(
                    &"hf:org/name".parse().unwrap(),
                    &client.settings,
                    &mut |_, _, _| (),
                )
                .unwrap()
            });
        }
    });
    let fetched = mirror
        .requests()
        .iter()
        .filter(|r| r.starts_with("GET /cdn/model-00001"))
        .count();
    assert_eq!(fetched, 1);
}
