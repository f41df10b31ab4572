//! Writing files so that a reader sees either the old content or the whole new one.

use crate::error::{Error, Result};
use std::{
    fs::{self, File},
    io::{self, BufWriter},
    path::{Path, PathBuf},
};

/// Replaces the file `path` by what `write` writes.
///
/// The bytes go to a temporary file in the same folder, reach the disk, and are then renamed over
/// `path`. If anything fails before that, the temporary file is removed and what stood at `path` is
/// untouched. A process that is killed outright may leave a file `.countdown-*.tmp` behind, but
/// never half a file at `path`. The new file gets the permissions that any new file gets (the umask
/// decides); a symbolic link is followed.
///
/// # Errors
/// [`Error::Write`] if the folder cannot be written, the disk is full, `write` fails, or `path` is
/// something else than a file, such as a folder or a device.
pub fn atomic_write<T>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>,
) -> Result<T> {
    replace(path, write).map_err(|source| Error::Write {
        path: path.to_path_buf(),
        source,
    })
}

fn replace<T>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>,
) -> io::Result<T> {
    let target = target(path)?;
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut temporary = tempfile::Builder::new();
    temporary.prefix(".countdown-").suffix(".tmp");
    // A temporary file is private (0600) unless told otherwise; the finished file is an ordinary one.
    #[cfg(unix)]
    temporary.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));

    let (file, temporary) = temporary.tempfile_in(folder)?.into_parts();
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let value = write(&mut out)?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    drop(file);
    temporary.persist(&target).map_err(|e| e.error)?;
    // The rename itself reaches the disk with the folder; a file system that cannot is no failure.
    #[cfg(unix)]
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(value)
}

/// Where to write: `path` itself, or the file that the link `path` leads to. Renaming over a device
/// would replace it, so only files are accepted.
fn target(path: &Path) -> io::Result<PathBuf> {
    if path.file_name().is_none() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path names no file",
        ));
    }
    match fs::metadata(path) {
        Ok(there) if there.is_file() => fs::canonicalize(path),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "there is something at this path that is not a regular file",
        )),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(path.to_path_buf()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan");
        atomic_write(&path, |out| out.write_all(b"old")).unwrap();
        let failed = atomic_write(&path, |out| {
            out.write_all(&[0; 3 << 20])?;
            Err::<(), _>(io::Error::other("disk full"))
        });
        assert!(matches!(failed, Err(Error::Write { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["plan"]);
    }

    #[test]
    fn a_panic_in_the_middle_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan");
        let caught = std::panic::catch_unwind(|| {
            let _ = atomic_write(&path, |_| -> io::Result<()> { panic!("interrupted") });
        });
        assert!(caught.is_err());
        assert!(names(folder.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn the_file_is_as_readable_as_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
        atomic_write(&ours, |out| out.write_all(b"x")).unwrap();
        File::create(&plain).unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_and_folders_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&real, b"old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        atomic_write(&link, |out| out.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());

        for refused in [Path::new("/dev/null"), folder.path(), Path::new("/")] {
            let error = atomic_write(refused, |out| out.write_all(b"x")).unwrap_err();
            assert!(matches!(error, Error::Write { .. }), "{refused:?}");
        }
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nowhere").join("plan");
        let error = atomic_write(&path, |out| out.write_all(b"x")).unwrap_err();
        assert!(error.to_string().contains("nowhere"), "{error}");
    }
}
