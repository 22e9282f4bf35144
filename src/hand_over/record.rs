// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A text and a message in a memfd, each whole or absent at every moment, whenever the process that
//! writes them is killed.
//!
//! The text is written beside the one before it, and counts from the moment on at which the word at
//! the start of the file names it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};

use super::error::HandOverError;

/// Where the word is that says which copy counts, and how long it is: the copy in the lowest bit,
/// the bytes above it; 0 for none.
const WORD: u64 = 0;
/// Where the message's length is; 0 for none.
const MESSAGE_LEN: u64 = 8;
const MESSAGE: u64 = 4096;
const COPIES: [u64; 2] = [64 << 10, 1 << 20];
/// Less than there is between the copies.
const MOST_TEXT: usize = 768 << 10;
const MOST_MESSAGE: usize = 16 << 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Record {
    file: File,
}

impl From<File> for Record {
    fn from(file: File) -> Self {
        Self { file }
    }
}

impl AsFd for Record {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn io(error: io::Error) -> HandOverError {
    HandOverError::Io("read", error)
}

impl Record {
    /// An empty one.
    pub(super) fn new() -> io::Result<Self> {
        let file = File::from(memfd_create("hand-over", MemfdFlags::CLOEXEC)?);
        file.set_len(COPIES[1] + (1 << 20))?;
        Ok(Self { file })
    }

    /// Replaces the text.
    pub(super) fn write(&self, text: &[u8]) -> io::Result<()> {
        let fits = |len: usize| len > 0 && len <= MOST_TEXT;
        let len = u64::try_from(text.len()).ok().filter(|_| fits(text.len()));
        let len = len.ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let next = 1 - (self.word(WORD)? & 1);
        self.file.write_all_at(text, COPIES[usize::from(next == 1)])?;
        self.file.write_all_at(&(len << 1 | next).to_ne_bytes(), WORD)
    }

    /// The text, if there is one.
    pub(super) fn read(&self) -> Result<Option<Vec<u8>>, HandOverError> {
        let word = self.word(WORD).map_err(io)?;
        self.part(COPIES[usize::from(word & 1 == 1)], word >> 1, MOST_TEXT)
    }

    /// What a process leaves that is killed before its text counts.
    #[cfg(fuzzing)]
    pub(super) fn write_in_part(&self, text: &[u8]) {
        let next = 1 - (self.word(WORD).unwrap_or(0) & 1);
        let text = &text[..text.len().min(MOST_TEXT)];
        // As far as it came.
        let _ = self.file.write_all_at(text, COPIES[usize::from(next == 1)]);
    }

    /// Replaces the message.
    pub(super) fn set_message(&self, message: &[u8]) -> io::Result<()> {
        self.clear_message()?;
        self.file.write_all_at(message, MESSAGE)?;
        self.file.write_all_at(&(message.len() as u64).to_ne_bytes(), MESSAGE_LEN)
    }

    /// Forgets the message.
    pub(super) fn clear_message(&self) -> io::Result<()> {
        self.file.write_all_at(&[0; 8], MESSAGE_LEN)
    }

    /// The message, if there is one.
    pub(super) fn message(&self) -> Result<Option<Vec<u8>>, HandOverError> {
        let len = self.word(MESSAGE_LEN).map_err(io)?;
        self.part(MESSAGE, len, MOST_MESSAGE)
    }

    fn part(&self, at: u64, len: u64, most: usize) -> Result<Option<Vec<u8>>, HandOverError> {
        let damaged = || io(io::ErrorKind::InvalidData.into());
        let len = usize::try_from(len).ok().filter(|len| *len <= most).ok_or_else(damaged)?;
        if len == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, at).map_err(io)?;
        Ok(Some(bytes))
    }

    fn word(&self, at: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_half_written_leaves_the_one_before() {
        let record = Record::new().unwrap();
        assert_eq!(record.read().unwrap(), None);
        for text in [&b"first"[..], b"second, longer", b"3"] {
            record.write(text).unwrap();
            assert_eq!(record.read().unwrap().as_deref(), Some(text));
            // As far as a process came that was killed.
            let next = 1 - (record.word(WORD).unwrap() & 1);
            record.file.write_all_at(b"garbage", COPIES[usize::from(next == 1)]).unwrap();
            assert_eq!(record.read().unwrap().as_deref(), Some(text));
        }
        record.write(&vec![0; MOST_TEXT + 1]).unwrap_err();
        assert_eq!(record.read().unwrap().as_deref(), Some(&b"3"[..]));
    }

    #[test]
    fn message_is_there_until_it_is_answered() {
        let record = Record::new().unwrap();
        assert_eq!(record.message().unwrap(), None);
        record.set_message(b"question").unwrap();
        assert_eq!(record.message().unwrap().as_deref(), Some(&b"question"[..]));
        record.clear_message().unwrap();
        assert_eq!(record.message().unwrap(), None);
    }

    #[test]
    fn length_that_cannot_be_is_an_error() {
        let record = Record::new().unwrap();
        for at in [WORD, MESSAGE_LEN] {
            record.file.write_all_at(&u64::MAX.to_ne_bytes(), at).unwrap();
        }
        record.read().unwrap_err();
        record.message().unwrap_err();
    }
}
