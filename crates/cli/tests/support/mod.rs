//! A folder for one test, with a plan cache of its own, and the command run in it.

#![allow(dead_code)] // each test file uses its part

use assert_cmd::Command;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// What a run of the command gave.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Standard output, of a run that must have gone well.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:#?}");
        self.stdout
    }

    /// Standard output as JSON lines, of a run that must have gone well.
    #[track_caller]
    pub(crate) fn json(self) -> Vec<serde_json::Value> {
        let parse = |line: &str| serde_json::from_str(line).unwrap();
        self.ok().lines().map(parse).collect()
    }
}

pub(crate) struct Sandbox {
    folder: TempDir,
}

impl Sandbox {
    pub(crate) fn new() -> Sandbox {
        Sandbox {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// A path in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file in the folder.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// The command with arguments separated by blanks; `@name` is a path in the folder, `MODEL` the trained model of bytes.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = assert_cmd::cargo::cargo_bin_cmd!("countdown");
        command
            .current_dir(self.folder.path())
            .env("COUNTDOWN_CACHE", self.path("cache"))
            .env_remove("COUNTDOWN_ISA");
        command.args(self.arguments(line));
        command
    }

    fn arguments(&self, line: &str) -> Vec<PathBuf> {
        let argument = |word: &str| match word.strip_prefix('@') {
            Some(name) => self.path(name),
            None if word == "MODEL" => byte_llama(),
            None => word.into(),
        };
        line.split_whitespace().map(argument).collect()
    }

    /// Runs a command whose files may grow to so many blocks of 512 bytes: what a full disk does, without one.
    #[cfg(unix)]
    pub(crate) fn run_on_a_full_disk(&self, blocks: u64, line: &str) -> Run {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command
            .current_dir(self.folder.path())
            .env("COUNTDOWN_CACHE", self.path("cache"))
            .env_remove("COUNTDOWN_ISA")
            .args(["-c", &script])
            .arg(assert_cmd::cargo::cargo_bin!("countdown"))
            .args(self.arguments(line));
        run(&mut command)
    }

    pub(crate) fn run(&self, line: &str) -> Run {
        run(&mut self.command(line))
    }

    /// The same with something on standard input.
    pub(crate) fn feed(&self, line: &str, stdin: &str) -> Run {
        run(self.command(line).write_stdin(stdin))
    }

    /// The names of the files in the folder, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }

    /// Copies the trained model into the folder, for changes.
    pub(crate) fn copy_model(&self, name: &str) -> PathBuf {
        let to = self.path(name);
        fs::create_dir(&to).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(byte_llama().join(file), to.join(file)).unwrap();
        }
        to
    }

    /// Some text to calibrate on, short enough for a test.
    pub(crate) fn text(&self) -> PathBuf {
        self.file("text", &countdown::CALIBRATION_TEXT[..6000])
    }
}

pub(crate) fn run(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A tiny trained model: token = byte.
pub(crate) fn byte_llama() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/fixtures/byte-llama")
}
