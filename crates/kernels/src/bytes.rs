//! Shared, immutable bytes: a mapped file or owned memory, cheap to clone and to cut.

use std::{fs::File, io, ops::Range, path::Path, sync::Arc};

#[derive(Clone)]
enum Owner {
    File(Arc<memmap2::Mmap>),
    HugePages(Arc<memmap2::MmapMut>),
    Vec(Arc<Vec<u8>>),
}

/// A reference-counted range of immutable bytes. Cloning and slicing copy no data.
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    range: Range<usize>,
}

impl Bytes {
    /// Maps a whole file for reading.
    ///
    /// The file must not be truncated while it is mapped: reading past its new end kills the process,
    /// as with every program that maps its models.
    ///
    /// # Errors
    /// Whatever opening or mapping the file gives.
    pub fn map(path: &Path) -> io::Result<Bytes> {
        let file = File::open(path)?;
        // SAFETY: the mapping is private and read-only, and never handed out mutably. That no one
        // truncates or rewrites the file meanwhile is the documented condition of this function.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        let range = 0..map.len();
        Ok(Bytes {
            owner: Owner::File(Arc::new(map)),
            range,
        })
    }

    /// Says that these bytes are not needed soon. What is mapped from a file leaves the memory of this process, and is read from
    /// the file again where it is needed after all; nothing happens to other bytes.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Owner::File(map) = &self.owner {
            let (advice, range) = (memmap2::UncheckedAdvice::DontNeed, &self.range);
            // SAFETY: the pages are those of a file mapped for reading, so what is dropped is what will be read again. That
            // it may not have worked is no matter.
            let _ = unsafe { map.unchecked_advise_range(advice, range.start, range.len()) };
        }
    }

    /// The bytes `range` of these bytes, sharing their memory.
    ///
    /// # Panics
    /// If the range reaches beyond the end.
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        assert!(range.start <= range.end && range.end <= self.len());
        Bytes {
            owner: self.owner.clone(),
            range: self.range.start + range.start..self.range.start + range.end,
        }
    }
}

/// By content.
impl PartialEq for Bytes {
    fn eq(&self, other: &Bytes) -> bool {
        self[..] == other[..]
    }
}

/// Large bytes move to huge pages, where the system has them.
impl From<Vec<u8>> for Bytes {
    fn from(v: Vec<u8>) -> Bytes {
        match Buffer::in_huge_pages(v.len()) {
            Some(mut buffer) => {
                buffer.copy_from_slice(&v);
                buffer.into()
            }
            None => Buffer::Vec(v).into(),
        }
    }
}

impl From<Buffer> for Bytes {
    fn from(buffer: Buffer) -> Bytes {
        match buffer {
            Buffer::HugePages(map, range) => Bytes {
                owner: Owner::HugePages(Arc::new(map)),
                range,
            },
            Buffer::Vec(v) => Bytes {
                range: 0..v.len(),
                owner: Owner::Vec(Arc::new(v)),
            },
        }
    }
}

/// What a huge page holds.
const HUGE: usize = 2 << 20;

/// Zeros, to be written over and then shared as [`Bytes`]. Large ones lie in huge pages where the system has them: rows taken here and
/// there from a matrix otherwise need a page of 4 KiB each to be looked up. Whoever writes to a page first pays for it, so several
/// threads had better do so.
pub(crate) enum Buffer {
    /// And where it lies there.
    HugePages(memmap2::MmapMut, Range<usize>),
    Vec(Vec<u8>),
}

impl Buffer {
    pub(crate) fn zeroed(len: usize) -> Buffer {
        Buffer::in_huge_pages(len).unwrap_or_else(|| Buffer::Vec(vec![0; len]))
    }

    /// `None` for what would not fill half a huge page, and where the system has none.
    fn in_huge_pages(len: usize) -> Option<Buffer> {
        // The last one, too, if more than half of it is filled.
        let pages = (len + HUGE / 2) / HUGE;
        if pages == 0 || !cfg!(target_os = "linux") {
            return None;
        }
        // The system maps at pages of 4 KiB, and what lies before the first multiple of a huge page gets none. Memory is taken only where it is written.
        let map = memmap2::MmapMut::map_anon(len + 2 * HUGE).ok()?;
        let start = map.as_ptr().align_offset(HUGE);
        #[cfg(target_os = "linux")]
        map.advise_range(memmap2::Advice::HugePage, start, pages * HUGE)
            .ok()?;
        Some(Buffer::HugePages(map, start..start + len))
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Buffer::HugePages(map, range) => &map[range.clone()],
            Buffer::Vec(v) => v,
        }
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Buffer::HugePages(map, range) => &mut map[range.clone()],
            Buffer::Vec(v) => v,
        }
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.owner {
            Owner::File(m) => m,
            Owner::HugePages(m) => m,
            Owner::Vec(v) => v,
        };
        &all[self.range.clone()]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn mapped_and_owned_bytes_slice_alike() {
        let mut f = tempfile::NamedTempFile::new().unwrap();
        f.write_all(b"0123456789").unwrap();
        let mut long = b"0123456789".to_vec();
        long.resize(HUGE + 5, 7);
        for b in [
            Bytes::map(f.path()).unwrap(),
            Bytes::from(b"0123456789".to_vec()),
            Bytes::from(long.clone()),
        ] {
            b.slice(1..9).release();
            assert_eq!(&b.slice(2..8).slice(1..3)[..], b"34");
        }
        let b = Bytes::from(long.clone());
        b.release();
        assert_eq!(b[..], long);
        // Where there are huge pages, the first one is filled from its beginning.
        if let Owner::HugePages(_) = b.owner {
            assert_eq!(b.as_ptr().align_offset(HUGE), 0);
        }
        std::fs::write(f.path(), &long).unwrap();
        let b = Bytes::map(f.path()).unwrap();
        b.release();
        assert_eq!(b[..], long);
    }
}
