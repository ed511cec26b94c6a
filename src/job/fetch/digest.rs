//! A checksum that is computed beside the writing, by a thread of its own: the slower of the two takes the time, not both.

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::{Builder, JoinHandle};

use crate::source::Hasher;

/// How many pieces may wait to be hashed.
const WAITING: usize = 4;

/// A checksum in the making. Its thread does not outlive it.
pub struct Digest {
    /// None: there is nothing more to come.
    full: Option<SyncSender<(Vec<u8>, usize)>>,
    empty: Receiver<Vec<u8>>,
    /// None: it has ended.
    thread: Option<JoinHandle<Hasher>>,
}

impl Digest {
    /// One that goes on from here.
    pub fn begin(mut hasher: Hasher) -> std::io::Result<Digest> {
        let (full, to_hash) = sync_channel::<(Vec<u8>, usize)>(WAITING);
        let (back, empty) = channel();
        let thread = Builder::new().name("hash".to_owned()).spawn(move || {
            for (buffer, length) in to_hash {
                hasher.update(buffer.get(..length).unwrap_or_default());
                let _ = back.send(buffer);
            }
            hasher
        })?;
        Ok(Digest { full: Some(full), empty, thread: Some(thread) })
    }

    /// Takes in so many bytes of a buffer, and gives back one of the same size that was hashed before, or a new one.
    pub fn update(&self, buffer: Vec<u8>, length: usize) -> Vec<u8> {
        let size = buffer.len();
        if let Some(full) = &self.full {
            // It ends only after us.
            let _ = full.send((buffer, length));
        }
        match self.empty.try_recv() {
            Ok(buffer) => buffer,
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => vec![0; size],
        }
    }

    /// What all that was taken in makes; none when the thread did not live to tell it.
    pub fn end(mut self) -> Option<Hasher> {
        self.join()
    }

    fn join(&mut self) -> Option<Hasher> {
        self.full = None;
        self.thread.take()?.join().ok()
    }
}

impl Drop for Digest {
    fn drop(&mut self) {
        self.join();
    }
}
