//! A connection: what its two halves and the users of its streams share.

use super::driver;
use super::frame::{self, Reason};
use super::headers::Headers;
use super::stream::{Reader, Writer};
use crate::stream::{PIECE, QUEUE};
use hyper::body::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// Which side of the connection this is: streams of a client have odd numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It asked for the upgrade.
    Client,
    /// It granted it.
    Server,
}

/// What a peer may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes that may wait for their readers, of all streams together. Up to a read's worth more may come.
    pub buffer: usize,
    /// How long a stream that nobody reads may keep others from being read, once the buffer is full; it is reset then.
    /// `None`: as long as it likes.
    pub stall: Option<Duration>,
    /// Most streams at once; one more is refused.
    pub streams: usize,
    /// How long there may be no frame in either direction; the connection ends then. Zero: for ever.
    pub idle: Duration,
}

/// Why a stream or the connection is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The peer has reset the stream.
    #[error("the peer has reset the stream")]
    Reset,
    /// It was reset here: it held others up, or its other half was dropped.
    #[error("the stream was reset")]
    Canceled,
    /// The peer takes no more streams.
    #[error("the peer takes no more streams")]
    GoneAway,
    /// The connection is gone.
    #[error("the connection is gone")]
    Lost,
}

/// Begins a connection over what an upgrade left; its work is done in a task of its own. It ends when the peer does, or
/// with [`Connection::close`], or when all handles are dropped: the last says good-bye, too.
pub fn start(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    role: Role,
    limits: Limits,
) -> (Connection, Incoming) {
    let (out, queue) = mpsc::channel(QUEUE);
    let (offers, incoming) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared {
        state: Mutex::new(State::new(role)),
        work: Notify::new(),
        room: Notify::new(),
        gone: Notify::new(),
        limits,
        role,
    });
    let handle = Handle { shared: Arc::clone(&shared), out };
    // Weak: an offer holds a handle, but the queue of offers must not keep the connection alive by itself.
    let weak = handle.out.downgrade();
    tokio::spawn(driver::drive(Box::new(io), Arc::clone(&shared), weak, queue, offers));
    (Connection { handle: handle.clone() }, Incoming { offers: incoming, _handle: handle })
}

/// Opens streams, and ends the connection. Clones are the same connection.
#[derive(Debug, Clone)]
pub struct Connection {
    pub(super) handle: Handle,
}

impl Connection {
    /// Opens a stream and waits until the peer has accepted it; that can take for ever.
    ///
    /// # Errors
    /// [`Error::Reset`] when the peer refuses it, [`Error::GoneAway`] and [`Error::Lost`] when there can be none.
    pub async fn open(&self, headers: Headers) -> Result<(Reader, Writer), Error> {
        let shared = &self.handle.shared;
        let id = {
            let mut state = shared.lock();
            if state.gone {
                return Err(Error::Lost);
            }
            let id = state.next;
            if state.going || id > frame::MAX_ID {
                return Err(Error::GoneAway);
            }
            state.next += 2;
            state.streams.insert(id, Entry::new(false, false));
            state.orders.push_back(Order::Open(id, headers));
            id
        };
        shared.work.notify_one();
        let halves = self.handle.halves(id);
        std::future::poll_fn(|context| {
            let mut state = shared.lock();
            let gone = state.gone;
            match state.streams.get_mut(&id) {
                Some(Entry { ended: Some(error), .. }) => Poll::Ready(Err(*error)),
                Some(entry) if entry.accepted => Poll::Ready(Ok(())),
                Some(entry) if !gone => {
                    entry.writer = Some(context.waker().clone());
                    Poll::Pending
                }
                _ => Poll::Ready(Err(Error::Lost)),
            }
        })
        .await?;
        Ok(halves)
    }

    /// Waits until the connection is gone, for whatever reason.
    pub async fn closed(&self) {
        self.handle.shared.closed().await;
    }

    /// Says good-bye after all that was written before, and waits until the peer has gone, too, or some seconds have
    /// passed: what it has not read yet must not be lost by closing over it.
    pub async fn close(self) {
        if self.handle.out.send(Out::Close).await.is_ok() {
            self.closed().await;
        }
    }
}

/// The streams that the peer opens.
#[derive(Debug)]
pub struct Incoming {
    offers: mpsc::UnboundedReceiver<Offer>,
    _handle: Handle,
}

impl Incoming {
    /// The next stream that the peer opens; `None`: there will be no more. Cancelling loses nothing. There are never more
    /// waiting than [`Limits::streams`].
    pub async fn next(&mut self) -> Option<Offer> {
        self.offers.recv().await
    }
}

/// A stream that the peer wants to open. Dropping it refuses it.
#[derive(Debug)]
pub struct Offer {
    id: u32,
    headers: Headers,
    handle: Option<Handle>,
}

impl Offer {
    pub(super) fn new(id: u32, headers: Headers, handle: Handle) -> Offer {
        Offer { id, headers, handle: Some(handle) }
    }

    /// Its number: increasing, odd from clients.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Its headers.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Accepts it: tells the peer before anything is written to it.
    #[must_use]
    pub fn accept(mut self) -> (Reader, Writer) {
        // Taken here only: whoever drops an offer still has it.
        let handle = self.handle.take().unwrap_or_else(|| unreachable!("an offer is accepted once"));
        handle.shared.order(Order::Reply(self.id));
        let halves = handle.halves(self.id);
        handle.shared.lock().release(self.id);
        halves
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if let Some(handle) = &self.handle {
            let mut state = handle.shared.lock();
            state.end(self.id, Error::Canceled);
            state.release(self.id);
            state.orders.push_back(Order::Reset(self.id, Reason::Refused));
            drop(state);
            handle.shared.work.notify_one();
        }
    }
}

/// What every user of a connection holds. When the last is dropped, the connection ends.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    pub(super) shared: Arc<Shared>,
    pub(super) out: mpsc::Sender<Out>,
}

impl Handle {
    fn halves(&self, id: u32) -> (Reader, Writer) {
        (Reader::new(id, self.clone()), Writer::new(id, self.clone()))
    }
}

/// What goes out in its turn.
#[derive(Debug)]
pub(super) enum Out {
    /// Bytes of a stream, at most [`PIECE`]; `fin`: its last.
    Data { id: u32, bytes: Bytes, fin: bool },
    /// The stream is cancelled after what was written to it.
    Reset { id: u32 },
    /// The end of everything.
    Close,
}

/// What goes out before any data.
#[derive(Debug)]
pub(super) enum Order {
    Open(u32, Headers),
    Reply(u32),
    Reset(u32, Reason),
    Ping(u32),
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// There are orders.
    pub(super) work: Notify,
    /// Orders or buffered bytes have become fewer.
    pub(super) room: Notify,
    /// The connection is gone.
    pub(super) gone: Notify,
    pub(super) limits: Limits,
    pub(super) role: Role,
}

impl Shared {
    /// A poisoned lock is as good as any: no change spans a panic.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn order(&self, order: Order) {
        self.lock().orders.push_back(order);
        self.work.notify_one();
    }

    pub(super) async fn closed(&self) {
        loop {
            let gone = self.gone.notified();
            if self.lock().gone {
                return;
            }
            gone.await;
        }
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) streams: HashMap<u32, Entry>,
    /// Number of the next stream opened here.
    pub(super) next: u32,
    /// Lowest number that the next stream opened by the peer may have.
    pub(super) peers_next: u32,
    /// Bytes that wait for their readers.
    pub(super) buffered: usize,
    pub(super) orders: VecDeque<Order>,
    /// A good-bye was said: no new streams.
    pub(super) going: bool,
    /// Ours was the last word: what comes is thrown away.
    pub(super) left: bool,
    /// When a frame came or went last.
    pub(super) active: Instant,
    /// The connection is gone.
    pub(super) gone: bool,
}

impl State {
    fn new(role: Role) -> State {
        let (next, peers_next) = match role {
            Role::Client => (1, 2),
            Role::Server => (2, 1),
        };
        State {
            streams: HashMap::new(),
            next,
            peers_next,
            buffered: 0,
            orders: VecDeque::new(),
            going: false,
            left: false,
            active: Instant::now(),
            gone: false,
        }
    }

    /// Nothing that still comes is of use to anybody.
    pub(super) fn leave(&mut self) {
        self.left = true;
        for entry in self.streams.values_mut() {
            self.buffered -= entry.inbox.clear();
            entry.wake();
        }
    }

    /// The connection is gone: so are its streams, once what has come is read.
    pub(super) fn lose(&mut self) {
        self.gone = true;
        for entry in self.streams.values_mut() {
            entry.ended.get_or_insert(Error::Lost);
            entry.wake();
        }
    }

    /// Ends both directions of a stream; what is buffered is thrown away.
    pub(super) fn end(&mut self, id: u32, error: Error) {
        if let Some(entry) = self.streams.get_mut(&id) {
            entry.ended.get_or_insert(error);
            self.buffered -= entry.inbox.clear();
            entry.wake();
        }
    }

    /// One who knew it does not any more.
    pub(super) fn release(&mut self, id: u32) {
        if let Some(entry) = self.streams.get_mut(&id) {
            entry.held = entry.held.saturating_sub(1);
        }
        self.forget(id);
    }

    /// Forgets a stream that neither the peer nor anybody here knows any more.
    pub(super) fn forget(&mut self, id: u32) {
        if self.streams.get(&id).is_some_and(|entry| entry.held == 0 && entry.is_over()) {
            self.streams.remove(&id);
        }
    }
}

/// A stream.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) inbox: Inbox,
    /// The peer has accepted it, or it is the peer's.
    pub(super) accepted: bool,
    /// The peer sends no more.
    pub(super) received_all: bool,
    /// Nobody here wants to read any more.
    pub(super) unread: bool,
    /// Nothing more is sent.
    pub(super) sent_all: bool,
    /// Reset, or lost with the connection.
    pub(super) ended: Option<Error>,
    /// How many halves, or an offer, still know it.
    pub(super) held: u8,
    /// Pieces taken by its reader, ever.
    pub(super) taken: u64,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

impl Entry {
    /// `one_way`: the peer wants nothing on it.
    pub(super) fn new(accepted: bool, one_way: bool) -> Entry {
        Entry {
            inbox: Inbox::default(),
            accepted,
            received_all: false,
            unread: false,
            sent_all: one_way,
            ended: None,
            held: 0,
            taken: 0,
            reader: None,
            writer: None,
        }
    }

    fn is_over(&self) -> bool {
        self.ended.is_some() || (self.received_all && self.sent_all)
    }

    /// Whether somebody waits for bytes of it.
    pub(super) fn is_waited_for(&self) -> bool {
        self.reader.is_some() && !self.received_all && self.ended.is_none()
    }

    pub(super) fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// Bytes that wait for their reader, in pieces of at most [`PIECE`]; small ones are put together.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pieces: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Inbox {
    pub(super) fn put(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len();
        while !bytes.is_empty() {
            let room = self.pieces.back().map_or(0, |last| PIECE.saturating_sub(last.len()));
            let (now, rest) = bytes.split_at(bytes.len().min(if room == 0 { PIECE } else { room }));
            match self.pieces.back_mut() {
                Some(last) if room > 0 => last.extend_from_slice(now),
                _ => self.pieces.push_back(now.to_vec()),
            }
            bytes = rest;
        }
    }

    pub(super) fn take(&mut self) -> Option<Vec<u8>> {
        let piece = self.pieces.pop_front()?;
        self.bytes -= piece.len();
        Some(piece)
    }

    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// Throws all away; returns how much it was.
    fn clear(&mut self) -> usize {
        self.pieces.clear();
        std::mem::take(&mut self.bytes)
    }
}
