//! The two halves of a stream.

use super::connection::{Entry, Error, Handle, Order, Out};
use super::frame::Reason;
use crate::stream::PIECE;
use hyper::body::Bytes;
use std::sync::Arc;
use std::task::Poll;

/// What the peer sends on a stream. Dropping it throws away what still comes.
#[derive(Debug)]
pub struct Reader {
    id: u32,
    handle: Handle,
}

impl Reader {
    pub(super) fn new(id: u32, handle: Handle) -> Reader {
        hold(id, &handle);
        Reader { id, handle }
    }

    /// The next bytes, at most [`PIECE`]; `None`: the peer has sent all it had. Cancelling loses nothing.
    ///
    /// # Errors
    /// [`Error`] when there will be no more though the peer did not say so.
    pub async fn read(&mut self) -> Result<Option<Bytes>, Error> {
        let shared = &self.handle.shared;
        std::future::poll_fn(|context| {
            let mut state = shared.lock();
            let (gone, state) = (state.gone, &mut *state);
            let Some(entry) = state.streams.get_mut(&self.id) else { return Poll::Ready(Err(Error::Lost)) };
            if let Some(piece) = entry.inbox.take() {
                entry.taken += 1;
                state.buffered -= piece.len();
                shared.room.notify_one();
                return Poll::Ready(Ok(Some(Bytes::from(piece))));
            }
            match entry.ended {
                _ if entry.received_all => Poll::Ready(Ok(None)),
                Some(error) => Poll::Ready(Err(error)),
                None if gone => Poll::Ready(Err(Error::Lost)),
                None => {
                    entry.reader = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.handle.shared.lock();
        let state = &mut *state;
        if let Some(entry) = state.streams.get_mut(&self.id) {
            entry.unread = true;
            entry.reader = None;
            while let Some(piece) = entry.inbox.take() {
                state.buffered -= piece.len();
            }
        }
        state.release(self.id);
        self.handle.shared.room.notify_one();
    }
}

/// What is sent on a stream. Dropping it without [`Writer::finish`] resets the stream.
#[derive(Debug)]
pub struct Writer {
    id: u32,
    handle: Handle,
}

impl Writer {
    pub(super) fn new(id: u32, handle: Handle) -> Writer {
        hold(id, &handle);
        Writer { id, handle }
    }

    /// Its stream's number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Sends bytes; waits while others are ahead. Cancelling loses what is not in the queue yet: a piece of at most
    /// [`PIECE`] is sent whole or not at all.
    ///
    /// # Errors
    /// [`Error`] when the peer does not take them any more.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), Error> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            self.put(Out::Data { id: self.id, bytes: piece, fin: false }).await?;
        }
        Ok(())
    }

    /// Says that this was all. More than once is once.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub async fn finish(&mut self) -> Result<(), Error> {
        if self.handle.shared.lock().streams.get(&self.id).is_some_and(|entry| entry.sent_all) {
            return Ok(());
        }
        self.put(Out::Data { id: self.id, bytes: Bytes::new(), fin: true }).await?;
        let mut state = self.handle.shared.lock();
        if let Some(entry) = state.streams.get_mut(&self.id) {
            entry.sent_all = true;
        }
        Ok(())
    }

    /// Resets the stream, after what was written to it before.
    pub async fn reset(self) {
        // Without a connection there is nothing to reset.
        let _ = self.handle.out.send(Out::Reset { id: self.id }).await;
        let mut state = self.handle.shared.lock();
        state.end(self.id, Error::Canceled);
    }

    /// Waits until the stream is of no more use: the peer has reset it, or is gone, or it was reset here. Only the one
    /// who asked last is told.
    pub fn closed(&self) -> impl Future<Output = Error> + Send + use<> {
        let (id, shared) = (self.id, Arc::clone(&self.handle.shared));
        std::future::poll_fn(move |context| {
            let mut state = shared.lock();
            let gone = state.gone;
            match state.streams.get_mut(&id) {
                Some(Entry { ended: Some(error), .. }) => Poll::Ready(*error),
                Some(entry) if !gone => {
                    entry.writer = Some(context.waker().clone());
                    Poll::Pending
                }
                _ => Poll::Ready(Error::Lost),
            }
        })
    }

    async fn put(&self, out: Out) -> Result<(), Error> {
        let permit = self.handle.out.reserve().await.map_err(|_| Error::Lost)?;
        match self.handle.shared.lock().streams.get(&self.id) {
            Some(Entry { ended: Some(error), .. }) => Err(*error),
            // After its end, or one-way: nothing may follow.
            Some(Entry { sent_all: true, .. }) => Err(Error::Canceled),
            Some(_) => {
                permit.send(out);
                Ok(())
            }
            None => Err(Error::Lost),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut state = self.handle.shared.lock();
        let mut reset = false;
        if let Some(entry) = state.streams.get_mut(&self.id) {
            entry.writer = None;
            reset = !entry.sent_all && entry.ended.is_none();
        }
        if reset {
            state.end(self.id, Error::Canceled);
            state.orders.push_back(Order::Reset(self.id, Reason::Cancel));
        }
        state.release(self.id);
        drop(state);
        self.handle.shared.work.notify_one();
        self.handle.shared.room.notify_one();
    }
}

fn hold(id: u32, handle: &Handle) {
    if let Some(entry) = handle.shared.lock().streams.get_mut(&id) {
        entry.held += 1;
    }
}
