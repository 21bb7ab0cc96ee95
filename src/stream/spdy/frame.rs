//! Frames: bytes to events and back. Pure; knows of the connection only its zlib streams.
//!
//! A data frame is handed on in the pieces that arrive, so that one of 16 MiB costs no more than a small one.

use super::headers::{self, Headers, Inflater, Storer};

/// Bytes of a frame's head.
const HEAD: usize = 8;
/// First two bytes of a control frame: the bit that tells one, version 3.
const CONTROL: [u8; 2] = [0x80, 0x03];
/// Most bytes of a control frame that we read; one with headers is the largest.
const MAX_CONTROL: usize = 16 * 1024;
/// Most bytes of data in a frame.
pub(super) const MAX_DATA: usize = (1 << 24) - 1;
/// The highest stream.
pub(super) const MAX_ID: u32 = 0x7fff_ffff;

const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Why a stream is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The peer broke the rules of the protocol.
    Protocol,
    /// A frame for a stream that is none.
    Invalid,
    /// The stream is not wanted.
    Refused,
    /// The stream is not needed any more.
    Cancel,
    /// Any other.
    Other(u32),
}

impl Reason {
    pub(super) fn code(self) -> u32 {
        match self {
            Reason::Protocol => 1,
            Reason::Invalid => 2,
            Reason::Refused => 3,
            Reason::Cancel => 5,
            Reason::Other(code) => code,
        }
    }

    fn of(code: u32) -> Reason {
        match code {
            1 => Reason::Protocol,
            2 => Reason::Invalid,
            3 => Reason::Refused,
            5 => Reason::Cancel,
            other => Reason::Other(other),
        }
    }
}

/// What a peer sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// It opens a stream; `finished`: it sends nothing on it; `one_way`: it expects nothing.
    Open { id: u32, headers: Headers, finished: bool, one_way: bool },
    /// It accepts a stream.
    Reply { id: u32 },
    /// Bytes of a stream.
    Data { id: u32, bytes: &'a [u8] },
    /// It sends no more on a stream.
    Finished { id: u32 },
    /// It resets a stream.
    Reset { id: u32, reason: Reason },
    /// It wants an answer with the same number, or answers.
    Ping { id: u32 },
    /// It opens no more streams and takes none.
    GoAway,
}

/// What makes the connection unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not SPDY/3.
    #[error("a control frame of version {0}, not 3")]
    Version(u16),
    /// A control frame that is larger than any sensible one.
    #[error("a control frame of {0} bytes; the most is {MAX_CONTROL}")]
    TooLarge(usize),
    /// A control frame with fewer or more bytes than its kind has.
    #[error("a control frame of type {kind} with {length} bytes")]
    Length {
        /// Type of the frame.
        kind: u16,
        /// Bytes after the head.
        length: usize,
    },
    /// Stream 0, or reset for no reason.
    #[error("a frame of type {0} with a zero where none may be")]
    Zero(u16),
    /// Its headers cannot be read.
    #[error("bad headers")]
    Headers(#[from] headers::Fault),
}

/// Reads one direction.
pub(super) struct Decoder {
    state: State,
    inflater: Inflater,
    /// A stream whose last frame was read and is yet to be told of.
    finished: Option<u32>,
}

enum State {
    Head { bytes: [u8; HEAD], have: usize },
    Data { id: u32, left: usize, fin: bool },
    Control { kind: u16, flags: u8, length: usize, body: Vec<u8> },
    Skip { left: usize },
}

const FRESH: State = State::Head { bytes: [0; HEAD], have: 0 };

impl Decoder {
    pub(super) fn new() -> Decoder {
        Decoder { state: FRESH, inflater: Inflater::new(), finished: None }
    }

    /// Whether nothing is half read: where a connection may end without a loss.
    pub(super) fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Head { have: 0, .. })
    }

    /// Takes bytes off the input until something has happened; `None`: more input is needed. After a fault there is
    /// nothing more to be had.
    pub(super) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Fault> {
        loop {
            if let Some(id) = self.finished.take() {
                return Ok(Some(Event::Finished { id }));
            }
            match &mut self.state {
                State::Head { bytes, have } => {
                    let taken = take(input, HEAD - *have);
                    bytes[*have..*have + taken.len()].copy_from_slice(taken);
                    *have += taken.len();
                    if *have < HEAD {
                        return Ok(None);
                    }
                    self.state = begin(*bytes)?;
                }
                State::Data { id, left, fin } => {
                    let id = *id;
                    if *left == 0 {
                        self.finished = fin.then_some(id);
                        self.state = FRESH;
                        continue;
                    }
                    let bytes = take(input, *left);
                    *left -= bytes.len();
                    return Ok((!bytes.is_empty()).then_some(Event::Data { id, bytes }));
                }
                State::Control { kind, flags, length, body } => {
                    body.extend_from_slice(take(input, *length - body.len()));
                    if body.len() < *length {
                        return Ok(None);
                    }
                    let (kind, flags, body) = (*kind, *flags, std::mem::take(body));
                    self.state = FRESH;
                    if let Some(event) = self.control(kind, flags, &body)? {
                        return Ok(Some(event));
                    }
                }
                State::Skip { left } => {
                    *left -= take(input, *left).len();
                    if *left > 0 {
                        return Ok(None);
                    }
                    self.state = FRESH;
                }
            }
        }
    }

    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Option<Event<'static>>, Fault> {
        let short = || Fault::Length { kind, length: body.len() };
        let (id, rest) = number(body).ok_or_else(short)?;
        let fin = flags & FIN != 0;
        if id == 0 && kind != GOAWAY {
            return Err(Fault::Zero(kind));
        }
        let exact = |wanted: usize| if body.len() == wanted { Ok(()) } else { Err(short()) };
        Ok(Some(match kind {
            SYN_STREAM => {
                // Associated stream, priority and slot mean nothing here.
                let headers = self.inflater.read(rest.get(6..).ok_or_else(short)?)?;
                Event::Open { id: id & MAX_ID, headers, finished: fin, one_way: flags & UNIDIRECTIONAL != 0 }
            }
            SYN_REPLY => {
                self.inflater.read(rest)?;
                self.finished = fin.then_some(id);
                Event::Reply { id }
            }
            HEADERS => {
                // Of no use to Kubernetes, but they are part of the zlib stream.
                self.inflater.read(rest)?;
                self.finished = fin.then_some(id);
                return Ok(None);
            }
            RST_STREAM => {
                exact(8)?;
                match number(rest) {
                    Some((0, _)) | None => return Err(Fault::Zero(kind)),
                    Some((code, _)) => Event::Reset { id, reason: Reason::of(code) },
                }
            }
            PING => {
                exact(4)?;
                Event::Ping { id }
            }
            _ => {
                exact(8)?;
                Event::GoAway
            }
        }))
    }
}

fn begin(head: [u8; HEAD]) -> Result<State, Fault> {
    let [a, b, c, d, flags, length @ ..] = head;
    let length = usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2]);
    if a & 0x80 == 0 {
        let id = u32::from_be_bytes([a, b, c, d]);
        // Stream 0 is none. Data of unknown streams is ignored by the connection; this could not be meant.
        return if id == 0 { Err(Fault::Zero(0)) } else { Ok(State::Data { id, left: length, fin: flags & FIN != 0 }) };
    }
    if [a, b] != CONTROL {
        return Err(Fault::Version(u16::from_be_bytes([a & 0x7f, b])));
    }
    match u16::from_be_bytes([c, d]) {
        kind @ (SYN_STREAM | SYN_REPLY | RST_STREAM | PING | GOAWAY | HEADERS) => {
            if length > MAX_CONTROL {
                return Err(Fault::TooLarge(length));
            }
            Ok(State::Control { kind, flags, length, body: Vec::with_capacity(length) })
        }
        // SETTINGS, WINDOW_UPDATE, and what there may be yet: nothing to do (as moby/spdystream, which has no flow control).
        _ => Ok(State::Skip { left: length }),
    }
}

/// At most that many bytes off the input.
fn take<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(most.min(input.len()));
    *input = rest;
    taken
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*number), rest))
}

/// Writes one direction.
#[derive(Debug, Default)]
pub(super) struct Encoder(Storer);

impl Encoder {
    /// Opens a stream.
    pub(super) fn open(&mut self, out: &mut Vec<u8>, id: u32, headers: &Headers) {
        let block = self.0.block(headers);
        control(out, SYN_STREAM, 10 + block.len());
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&block);
    }

    /// Accepts a stream.
    pub(super) fn reply(&mut self, out: &mut Vec<u8>, id: u32) {
        let block = self.0.block(&Headers::default());
        control(out, SYN_REPLY, 4 + block.len());
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&block);
    }
}

/// Resets a stream.
pub(super) fn reset(out: &mut Vec<u8>, id: u32, reason: Reason) {
    control(out, RST_STREAM, 8);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&reason.code().to_be_bytes());
}

/// Asks for an answer, or answers.
pub(super) fn ping(out: &mut Vec<u8>, id: u32) {
    control(out, PING, 4);
    out.extend_from_slice(&id.to_be_bytes());
}

/// Says good-bye; `last` is the last stream of the peer that was seen.
pub(super) fn go_away(out: &mut Vec<u8>, last: u32) {
    control(out, GOAWAY, 8);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
}

/// A frame of data; of more than fits, the end is missing (callers split).
pub(super) fn data(out: &mut Vec<u8>, id: u32, bytes: &[u8], fin: bool) {
    let bytes = bytes.get(..MAX_DATA).unwrap_or(bytes);
    out.extend_from_slice(&(id & MAX_ID).to_be_bytes());
    out.push(if fin { FIN } else { 0 });
    length(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn control(out: &mut Vec<u8>, kind: u16, bytes: usize) {
    out.extend_from_slice(&CONTROL);
    out.extend_from_slice(&kind.to_be_bytes());
    out.push(0);
    length(out, bytes);
}

fn length(out: &mut Vec<u8>, length: usize) {
    let [.., a, b, c] = length.to_be_bytes();
    out.extend_from_slice(&[a, b, c]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An event with bytes of its own.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Seen {
        Open(u32, Headers),
        Reply(u32),
        Data(u32, Vec<u8>),
        Finished(u32),
        Reset(u32, Reason),
        Ping(u32),
        GoAway,
    }

    /// All events, however the bytes are cut; data of a stream that follows data of the same is one.
    fn read(bytes: &[u8], cut: usize) -> Result<Vec<Seen>, Fault> {
        let mut decoder = Decoder::new();
        let mut seen = Vec::new();
        for mut input in bytes.chunks(cut) {
            while let Some(event) = decoder.next(&mut input)? {
                match (event, seen.last_mut()) {
                    (Event::Data { id, bytes }, Some(Seen::Data(last, all))) if *last == id => {
                        all.extend_from_slice(bytes)
                    }
                    (Event::Data { id, bytes }, _) => seen.push(Seen::Data(id, bytes.to_vec())),
                    (Event::Open { id, headers, .. }, _) => seen.push(Seen::Open(id, headers)),
                    (Event::Reply { id }, _) => seen.push(Seen::Reply(id)),
                    (Event::Finished { id }, _) => seen.push(Seen::Finished(id)),
                    (Event::Reset { id, reason }, _) => seen.push(Seen::Reset(id, reason)),
                    (Event::Ping { id }, _) => seen.push(Seen::Ping(id)),
                    (Event::GoAway, _) => seen.push(Seen::GoAway),
                }
            }
            assert!(input.is_empty());
        }
        Ok(seen)
    }

    fn write(frames: &[Seen]) -> Vec<u8> {
        let (mut encoder, mut out) = (Encoder::default(), Vec::new());
        for frame in frames {
            match frame {
                Seen::Open(id, headers) => encoder.open(&mut out, *id, headers),
                Seen::Reply(id) => encoder.reply(&mut out, *id),
                Seen::Data(id, bytes) => data(&mut out, *id, bytes, false),
                Seen::Finished(id) => data(&mut out, *id, &[], true),
                Seen::Reset(id, reason) => reset(&mut out, *id, *reason),
                Seen::Ping(id) => ping(&mut out, *id),
                Seen::GoAway => go_away(&mut out, 1),
            }
        }
        out
    }

    #[test]
    fn frames_have_the_bytes_of_the_specification() {
        assert_eq!(write(&[Seen::Ping(2)]), [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 2]);
        assert_eq!(write(&[Seen::Reset(5, Reason::Cancel)]), [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 5]);
        assert_eq!(write(&[Seen::GoAway]), [0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(write(&[Seen::Data(3, b"hi".to_vec())]), [0, 0, 0, 3, 0, 0, 0, 2, b'h', b'i']);
        assert_eq!(write(&[Seen::Finished(3)]), [0, 0, 0, 3, 1, 0, 0, 0]);
        let open = write(&[Seen::Open(1, Headers::default())]);
        assert_eq!(open[..18], [0x80, 3, 0, 1, 0, 0, 0, 30, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn what_is_not_needed_is_passed_over() {
        // SETTINGS with one value, WINDOW_UPDATE, a type that nobody knows, then a ping.
        let mut bytes = vec![0x80, 3, 0, 4, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 9];
        bytes.extend_from_slice(&[0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 1, 0]);
        bytes.extend_from_slice(&[0x80, 3, 0x12, 0x34, 0xff, 0, 0, 1, 7]);
        bytes.extend_from_slice(&write(&[Seen::Ping(1)]));
        for cut in [1, 3, 100] {
            assert_eq!(read(&bytes, cut), Ok(vec![Seen::Ping(1)]));
        }
    }

    #[test]
    fn wrong_frames_are_told_apart() {
        let fault = |bytes: &[u8]| read(bytes, 7).unwrap_err();
        assert_eq!(fault(b"\x80\x02\0\x06\0\0\0\x04\0\0\0\x01"), Fault::Version(2));
        assert_eq!(fault(b"\x80\x03\0\x06\0\0\0\x03\0\0\x01"), Fault::Length { kind: 6, length: 3 });
        assert_eq!(fault(b"\x80\x03\0\x06\0\0\0\x08\0\0\0\x01\0\0\0\0"), Fault::Length { kind: 6, length: 8 });
        assert_eq!(fault(b"\x80\x03\0\x06\0\0\0\x04\0\0\0\0"), Fault::Zero(6));
        assert_eq!(fault(b"\x80\x03\0\x03\0\0\0\x08\0\0\0\x01\0\0\0\0"), Fault::Zero(3));
        assert_eq!(fault(b"\x80\x03\0\x01\0\0\0\x04\0\0\0\x01"), Fault::Length { kind: 1, length: 4 });
        assert_eq!(fault(b"\x80\x03\0\x01\0\x01\0\0"), Fault::TooLarge(1 << 16));
        assert_eq!(fault(b"\0\0\0\0\0\0\0\x01a"), Fault::Zero(0));
        // Text is taken for data of a stream that nobody opened: no fault of framing.
        assert_eq!(read(b"GET / HTTP/1.1", 7), Ok(vec![Seen::Data(0x4745_5420, b"TP/1.1".to_vec())]));
    }

    fn frame() -> impl Strategy<Value = Seen> {
        let id = 1..=MAX_ID;
        let reason = prop_oneof![Just(Reason::Protocol), Just(Reason::Cancel), (20u32..30).prop_map(Reason::Other)];
        prop_oneof![
            (id.clone(), "[a-z]{1,9}", "\\PC{0,40}")
                .prop_map(|(id, name, value)| Seen::Open(id, Headers::new([(name.as_str(), value.as_str())]))),
            id.clone().prop_map(Seen::Reply),
            (id.clone(), proptest::collection::vec(any::<u8>(), 1..300)).prop_map(|(id, bytes)| Seen::Data(id, bytes)),
            id.clone().prop_map(Seen::Finished),
            (id.clone(), reason).prop_map(|(id, reason)| Seen::Reset(id, reason)),
            id.prop_map(Seen::Ping),
            Just(Seen::GoAway),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(mut frames in proptest::collection::vec(frame(), 0..12), cut in 1usize..64) {
            frames.dedup_by(|a, b| matches!((a, b), (Seen::Data(a, _), Seen::Data(b, _)) if a == b));
            prop_assert_eq!(read(&write(&frames), cut), Ok(frames));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 1usize..64) {
            let _ = read(&bytes, cut);
        }

        #[test]
        fn a_damaged_frame_makes_no_panic(
            frames in proptest::collection::vec(frame(), 1..6), at in any::<prop::sample::Index>(), bit in 0u8..8,
        ) {
            let mut bytes = write(&frames);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let _ = read(&bytes, 11);
        }
    }
}
