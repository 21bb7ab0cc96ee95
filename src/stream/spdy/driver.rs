//! The task of a connection: what comes in goes to the streams, what goes out is put in order.

use super::connection::{Entry, Error, Handle, Offer, Order, Out, Role, Shared};
use super::frame::{self, Decoder, Encoder, Event, Reason};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Most bytes read at once.
pub(super) const READ: usize = 64 * 1024;
/// Bytes read at once in the beginning: most connections are quiet.
const READ_FIRST: usize = 4 * 1024;
/// Bytes gathered before they are written.
const GATHER: usize = 64 * 1024;
/// Most orders that may wait: who asks for answers and does not read them is not read either.
pub(super) const MAX_ORDERS: usize = 1024;
/// How long the peer may take to end the connection after our good-bye.
const LINGER: Duration = Duration::from_secs(5);
/// While nothing is read, only a write tells that the peer has gone.
const LOOK: Duration = Duration::from_secs(15);

pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Serves the connection to its end.
pub(super) async fn drive(
    io: Box<dyn Io>,
    shared: Arc<Shared>,
    weak: mpsc::WeakSender<Out>,
    queue: mpsc::Receiver<Out>,
    offers: mpsc::UnboundedSender<Offer>,
) {
    let (reading, writing) = tokio::io::split(io);
    let mut receiver = Receiver { shared: Arc::clone(&shared), weak, offers: Some(offers), pings: 0 };
    {
        let mut receive = std::pin::pin!(receiver.run(reading));
        let sent = tokio::select! {
            result = &mut receive => {
                if let Err(error) = result {
                    tracing::debug!(error = crate::causes::chain(&error), "SPDY: the connection ends");
                }
                false
            }
            result = send(writing, &shared, queue) => result.is_ok(),
            () = idle(&shared) => false,
        };
        if sent {
            shared.lock().leave();
            shared.room.notify_one();
            // The peer's end, or its silence: nothing is left to be said.
            let _ = tokio::time::timeout(LINGER, receive).await;
        }
    }
    shared.lock().lose();
    shared.gone.notify_waiters();
}

/// Returns when there was no frame for too long.
async fn idle(shared: &Shared) {
    if shared.limits.idle.is_zero() {
        return std::future::pending().await;
    }
    loop {
        let active = shared.lock().active;
        // A limit beyond what a clock can tell is none.
        let Some(due) = active.checked_add(shared.limits.idle) else { return std::future::pending().await };
        if due <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(due).await;
    }
}

/// Why nothing more is read.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("cannot read")]
    Read(#[source] io::Error),
    #[error("the peer broke the protocol")]
    Protocol(#[from] frame::Fault),
    #[error("the peer ended in the middle of a frame")]
    Truncated,
}

struct Receiver {
    shared: Arc<Shared>,
    weak: mpsc::WeakSender<Out>,
    /// Until the peer has said good-bye.
    offers: Option<mpsc::UnboundedSender<Offer>>,
    pings: u32,
}

impl Receiver {
    /// Reads until the peer's end.
    async fn run(&mut self, mut io: ReadHalf<Box<dyn Io>>) -> Result<(), Broken> {
        let mut decoder = Decoder::new();
        let mut buffer = vec![0; READ_FIRST];
        loop {
            self.room().await;
            let count = io.read(&mut buffer).await.map_err(Broken::Read)?;
            if count == 0 {
                return if decoder.is_between_frames() { Ok(()) } else { Err(Broken::Truncated) };
            }
            self.shared.lock().active = Instant::now();
            let mut input = &buffer[..count];
            while let Some(event) = decoder.next(&mut input)? {
                self.handle(event);
            }
            if count == buffer.len() && count < READ {
                buffer = vec![0; count * 4];
            }
        }
    }

    /// Waits until there is room for what comes next. A stream that nobody reads and that keeps others from being read is
    /// reset in the end.
    async fn room(&mut self) {
        let mut since: Option<(Instant, Vec<(u32, u64)>)> = None;
        loop {
            {
                let state = self.shared.lock();
                let full = state.buffered >= self.shared.limits.buffer && !state.left;
                if !full && state.orders.len() < MAX_ORDERS {
                    return;
                }
                if since.is_none() {
                    let waiting = state.streams.iter().filter(|(_, entry)| entry.inbox.len() > 0);
                    since = Some((Instant::now(), waiting.map(|(id, entry)| (*id, entry.taken)).collect()));
                }
            }
            let stall = match (&since, self.shared.limits.stall) {
                (Some((start, _)), Some(stall)) => *start + stall,
                _ => Instant::now() + LOOK,
            };
            tokio::select! {
                () = self.shared.room.notified() => {}
                () = tokio::time::sleep_until(stall), if self.shared.limits.stall.is_some() => {
                    self.unstall(since.take().map(|(_, seen)| seen).unwrap_or_default());
                }
                () = tokio::time::sleep(LOOK) => {
                    let own = match self.shared.role { Role::Client => 1, Role::Server => 2 };
                    self.shared.order(Order::Ping(own + 2 * (self.pings % 1024)));
                    self.pings += 1;
                }
            }
        }
    }

    /// Resets the streams that nobody has read from meanwhile, if anybody waits for bytes of others.
    fn unstall(&self, seen: Vec<(u32, u64)>) {
        let mut state = self.shared.lock();
        if !state.streams.values().any(Entry::is_waited_for) {
            return;
        }
        for (id, taken) in seen {
            if state.streams.get(&id).is_some_and(|entry| entry.taken == taken && entry.inbox.len() > 0) {
                tracing::debug!(stream = id, "SPDY: a stream that nobody reads holds up others: reset");
                state.end(id, Error::Canceled);
                state.orders.push_back(Order::Reset(id, Reason::Cancel));
            }
        }
        drop(state);
        self.shared.work.notify_one();
    }

    fn handle(&mut self, event: Event<'_>) {
        let mut state = self.shared.lock();
        match event {
            Event::Open { id, headers, finished, one_way } => {
                let ours = id % 2 == state.next % 2;
                let refused = if ours || id < state.peers_next {
                    Some(Reason::Protocol)
                } else {
                    state.peers_next = id.saturating_add(2);
                    let full = state.going || state.streams.len() >= self.shared.limits.streams;
                    full.then_some(Reason::Refused)
                };
                match (refused, &self.offers, self.weak.upgrade()) {
                    (None, Some(offers), Some(out)) => {
                        let entry = Entry { held: 1, received_all: finished, ..Entry::new(true, one_way) };
                        state.streams.insert(id, entry);
                        drop(state);
                        let handle = Handle { shared: Arc::clone(&self.shared), out };
                        // Nobody takes offers: it comes back and is refused by being dropped.
                        drop(offers.send(Offer::new(id, headers, handle)));
                    }
                    (refused, ..) => {
                        state.orders.push_back(Order::Reset(id, refused.unwrap_or(Reason::Refused)));
                        self.shared.work.notify_one();
                    }
                }
            }
            Event::Reply { id } => {
                if let Some(entry) = state.streams.get_mut(&id) {
                    entry.accepted = true;
                    entry.wake();
                }
            }
            Event::Data { id, bytes } => {
                let state = &mut *state;
                let left = state.left;
                if let Some(entry) = state.streams.get_mut(&id)
                    && !left
                    && !entry.unread
                    && !entry.received_all
                    && entry.ended.is_none()
                {
                    entry.inbox.put(bytes);
                    state.buffered += bytes.len();
                    if let Some(reader) = entry.reader.take() {
                        reader.wake();
                    }
                }
            }
            Event::Finished { id } => {
                if let Some(entry) = state.streams.get_mut(&id) {
                    entry.received_all = true;
                    if let Some(reader) = entry.reader.take() {
                        reader.wake();
                    }
                }
                state.forget(id);
            }
            Event::Reset { id, .. } => {
                // What came before is still to be read.
                if let Some(entry) = state.streams.get_mut(&id) {
                    entry.ended.get_or_insert(Error::Reset);
                    entry.wake();
                }
                state.forget(id);
            }
            // The peer's own are answered; others are answers.
            Event::Ping { id } if id % 2 != state.next % 2 => {
                state.orders.push_back(Order::Ping(id));
                self.shared.work.notify_one();
            }
            Event::Ping { .. } => {}
            Event::GoAway => {
                state.going = true;
                self.offers = None;
            }
        }
    }
}

/// Writes until the end is ordered, or nobody is left who could.
async fn send(mut io: WriteHalf<Box<dyn Io>>, shared: &Shared, mut queue: mpsc::Receiver<Out>) -> io::Result<()> {
    let mut encoder = Encoder::default();
    let mut out = Vec::new();
    loop {
        orders(shared, &mut encoder, &mut out);
        let mut end = false;
        if out.is_empty() {
            tokio::select! {
                biased;
                () = shared.work.notified() => continue,
                item = queue.recv() => end = put(shared, &mut encoder, &mut out, item),
            }
        }
        while !end && out.len() < GATHER {
            match queue.try_recv() {
                Ok(item) => end = put(shared, &mut encoder, &mut out, Some(item)),
                Err(_) => break,
            }
        }
        io.write_all(&out).await?;
        io.flush().await?;
        shared.lock().active = Instant::now();
        if end {
            return io.shutdown().await;
        }
        out.clear();
        if queue.is_empty() {
            // A connection that is silent keeps no buffer.
            out = Vec::new();
        }
    }
}

/// Appends what goes before all data.
fn orders(shared: &Shared, encoder: &mut Encoder, out: &mut Vec<u8>) {
    let mut state = shared.lock();
    while out.len() < GATHER
        && let Some(order) = state.orders.pop_front()
    {
        match order {
            Order::Open(id, headers) => encoder.open(out, id, &headers),
            Order::Reply(id) => encoder.reply(out, id),
            Order::Reset(id, reason) => frame::reset(out, id, reason),
            Order::Ping(id) => frame::ping(out, id),
        }
    }
    drop(state);
    shared.room.notify_one();
}

/// Appends an item of the queue; `None` is the end, as if ordered. Returns whether it was the end.
fn put(shared: &Shared, encoder: &mut Encoder, out: &mut Vec<u8>, item: Option<Out>) -> bool {
    // A stream's acceptance goes before its data, whenever it was ordered.
    orders(shared, encoder, out);
    match item {
        Some(Out::Data { id, bytes, fin }) => {
            let unwanted = shared.lock().streams.get(&id).is_some_and(|entry| entry.ended == Some(Error::Reset));
            if !unwanted {
                frame::data(out, id, &bytes, fin);
            }
            false
        }
        Some(Out::Reset { id }) => {
            frame::reset(out, id, Reason::Cancel);
            false
        }
        Some(Out::Close) | None => {
            let mut state = shared.lock();
            state.going = true;
            let last = state.peers_next.saturating_sub(2);
            drop(state);
            frame::go_away(out, last);
            true
        }
    }
}
