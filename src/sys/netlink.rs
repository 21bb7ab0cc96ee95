//! A small synchronous netlink socket: one request at a time, every answer accounted for.
//!
//! Typed `rtnetlink` requests come from `netlink-packet-route`; answers are handed back raw and read with
//! [`attributes`]. That is on purpose: a caller looks at three or four attributes of a link, and a newer kernel's
//! attribute that a typed parser trips over must not cost a pod its network.
//!
//! A socket belongs to the network namespace of the thread that opened it, for good: one opened inside a pod's
//! namespace can be carried out and used from anywhere.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NLMSG_NOOP, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

/// Length of `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// The kernel caps a dump datagram at 32 KiB; twice that leaves no way to truncate one.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// The kernel answers from within `sendto`: anything that takes this long is a lost answer, not a slow one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a dump that raced with a change is asked for again.
const DUMP_RETRIES: u32 = 16;
/// `NLMSGERR_ATTR_MSG`: the kernel's own words about what it refused.
const EXT_ACK_MESSAGE: u16 = 1;

const NLA_TYPE_MASK: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 0x8000;

/// What went wrong, and with which request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket itself failed: opening, sending, receiving, or no answer in time.
    #[error("{asked}: netlink socket")]
    Socket {
        asked: String,
        #[source]
        source: io::Error,
    },
    /// The kernel answered with an error; `detail` holds its extended acknowledgement, if it gave one.
    #[error("{asked}{}", detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Refused {
        asked: String,
        detail: Option<String>,
        #[source]
        source: io::Error,
    },
    /// An answer that is not well-formed netlink, or not the answer to what was asked.
    #[error("{asked}: malformed netlink answer: {reason}")]
    Malformed { asked: String, reason: &'static str },
}

impl Error {
    /// The kernel's errno, when it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Refused { source, .. } => source.raw_os_error(),
            Error::Socket { source, .. } => source.raw_os_error(),
            Error::Malformed { .. } => None,
        }
    }

    /// Whether what was asked about does not exist (any more).
    pub fn is_absent(&self) -> bool {
        matches!(self, Error::Refused { .. }) && matches!(self.errno(), Some(libc::ENODEV | libc::ENOENT | libc::ESRCH))
    }

    /// Whether what was to be created is there already.
    pub fn is_present(&self) -> bool {
        matches!(self, Error::Refused { .. }) && self.errno() == Some(libc::EEXIST)
    }
}

/// The netlink families this node speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes.
    Route,
    /// nf_tables and connection tracking.
    Netfilter,
}

/// One message of an answer, without its netlink header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `nlmsg_type`.
    pub kind: u16,
    /// What follows the header: the family's fixed part, then attributes.
    pub body: Vec<u8>,
}

/// A netlink socket connected to the kernel.
pub struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open(protocol: Protocol) -> Result<Socket, Error> {
        let number = match protocol {
            Protocol::Route => NETLINK_ROUTE,
            Protocol::Netfilter => NETLINK_NETFILTER,
        };
        let failed = |source| Error::Socket { asked: format!("opening a {protocol:?} socket"), source };
        let inner = netlink_sys::Socket::new(number).map_err(failed)?;
        inner.connect(&netlink_sys::SocketAddr::new(0, 0)).map_err(failed)?;
        // Kernels before 4.12 lack extended acknowledgements: errors are then only an errno.
        let _ = inner.set_ext_ack(true);
        let _ = inner.set_cap_ack(true);
        rustix::net::sockopt::set_socket_timeout(&inner, rustix::net::sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))
            .map_err(|e| failed(e.into()))?;
        Ok(Socket { inner, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// Sends a request that changes something and waits for its acknowledgement. `flags` are added to
    /// `NLM_F_REQUEST | NLM_F_ACK`; `asked` names the request in errors.
    pub fn execute(&mut self, request: RouteNetlinkMessage, flags: u16, asked: &str) -> Result<(), Error> {
        self.request(request, flags | NLM_F_ACK, asked).map(drop)
    }

    /// Asks for one object. Absence is an error of the kernel's choosing: see [`Error::is_absent`].
    pub fn get(&mut self, request: RouteNetlinkMessage, asked: &str) -> Result<Message, Error> {
        let answer = self.request(request, NLM_F_ACK, asked)?;
        answer.into_iter().next().ok_or_else(|| malformed(asked, "no object before the acknowledgement"))
    }

    /// Asks for all objects of a kind. A dump that raced with a change (`NLM_F_DUMP_INTR`) is asked for again.
    pub fn dump(&mut self, request: &RouteNetlinkMessage, asked: &str) -> Result<Vec<Message>, Error> {
        for _ in 0..DUMP_RETRIES {
            let sequence = self.send_one(request, NLM_F_DUMP, asked)?;
            if let Some(messages) = self.collect(sequence, asked)? {
                return Ok(messages);
            }
        }
        Err(Error::Socket { asked: asked.to_owned(), source: io::Error::from_raw_os_error(libc::EINTR) })
    }

    /// Sends an nfnetlink batch in one datagram and waits for the verdict on all of it.
    ///
    /// `batch` holds whole messages with their headers, numbered from 0 upwards; the message numbered `last` is to be
    /// acknowledged. The first refusal is returned; `asked` names what a message was about (the kernel blames the
    /// batch's first message for what concerns the batch as a whole). Nothing of a refused batch has taken effect.
    ///
    /// The socket comes back only from a success: further answers to a refused batch would be mistaken for answers to
    /// a later one. Keep it: closing one makes the kernel wait for its clean-up of earlier transactions, some 10 ms.
    pub fn transact(mut self, batch: &[u8], last: u32, asked: impl Fn(u32) -> String) -> Result<Socket, Error> {
        // A batch must be one datagram; as root the limit on its size can be lifted, else the kernel says EMSGSIZE.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&self.inner, batch.len() * 2 + (64 << 10));
        self.inner.send(batch, 0).map_err(|source| Error::Socket { asked: asked(last), source })?;
        loop {
            self.receive(&asked(last))?;
            for message in Frames(&self.buffer) {
                let frame = message.map_err(|reason| malformed(&asked(last), reason))?;
                if frame.kind != NLMSG_ERROR {
                    continue;
                }
                refusal(&frame, &asked(frame.sequence))?;
                if frame.sequence == last {
                    return Ok(self);
                }
            }
        }
    }

    fn request(&mut self, request: RouteNetlinkMessage, flags: u16, asked: &str) -> Result<Vec<Message>, Error> {
        let sequence = self.send_one(&request, flags, asked)?;
        // Only a dump can be interrupted.
        Ok(self.collect(sequence, asked)?.unwrap_or_default())
    }

    fn send_one(&mut self, request: &RouteNetlinkMessage, flags: u16, asked: &str) -> Result<u32, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER + request.buffer_len();
        let mut bytes = vec![0; length];
        write_header(&mut bytes, length, request.message_type(), NLM_F_REQUEST | flags, self.sequence);
        request.serialize(&mut bytes[HEADER..]);
        self.inner.send(&bytes, 0).map_err(|source| Error::Socket { asked: asked.to_owned(), source })?;
        Ok(self.sequence)
    }

    /// Gathers the objects of an answer up to its acknowledgement or end; `None` if it was an interrupted dump.
    fn collect(&mut self, sequence: u32, asked: &str) -> Result<Option<Vec<Message>>, Error> {
        let mut messages = Vec::new();
        let mut interrupted = false;
        loop {
            self.receive(asked)?;
            for frame in Frames(&self.buffer) {
                let frame = frame.map_err(|reason| malformed(asked, reason))?;
                // The rest of an answer that an earlier error cut short.
                if frame.sequence != sequence {
                    continue;
                }
                interrupted |= frame.flags & NLM_F_DUMP_INTR != 0;
                match frame.kind {
                    NLMSG_NOOP => {}
                    NLMSG_ERROR | NLMSG_DONE => {
                        refusal(&frame, asked)?;
                        return Ok((!interrupted).then_some(messages));
                    }
                    kind => messages.push(Message { kind, body: frame.body.to_vec() }),
                }
            }
        }
    }

    fn receive(&mut self, asked: &str) -> Result<(), Error> {
        loop {
            self.buffer.clear();
            return match self.inner.recv(&mut self.buffer, libc::MSG_TRUNC) {
                Ok(length) if length > self.buffer.len() => Err(malformed(asked, "longer than the receive buffer")),
                Ok(_) => Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => Err(Error::Socket { asked: asked.to_owned(), source }),
            };
        }
    }
}

fn malformed(asked: &str, reason: &'static str) -> Error {
    Error::Malformed { asked: asked.to_owned(), reason }
}

/// Reads the verdict of an `NLMSG_ERROR` or `NLMSG_DONE` frame: 0 is an acknowledgement.
fn refusal(frame: &Frame<'_>, asked: &str) -> Result<(), Error> {
    let Some(code) = frame.body.get(..4) else {
        // An empty NLMSG_DONE is what some families end a dump with.
        return match frame.kind {
            NLMSG_DONE => Ok(()),
            _ => Err(malformed(asked, "error message without a code")),
        };
    };
    let code = i32::from_ne_bytes([code[0], code[1], code[2], code[3]]);
    if code >= 0 {
        return Ok(());
    }
    // After the code of NLMSG_ERROR: the header of the request, the request itself unless capped, then attributes.
    let detail = (frame.flags & NLM_F_ACK_TLVS != 0).then(|| {
        let start = match frame.kind {
            NLMSG_DONE => 4,
            _ if frame.flags & NLM_F_CAPPED != 0 => 4 + HEADER,
            _ => {
                let length = frame.body.get(4..8).map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
                4 + align(length as usize)
            }
        };
        attributes(frame.body.get(start..).unwrap_or_default())
            .find(|(kind, _)| *kind == EXT_ACK_MESSAGE)
            .map(|(_, text)| string(text).to_owned())
    });
    Err(Error::Refused {
        asked: asked.to_owned(),
        detail: detail.flatten(),
        source: io::Error::from_raw_os_error(code.saturating_neg()),
    })
}

struct Frame<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The messages of one datagram.
struct Frames<'a>(&'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.0);
        let Some((header, _)) = bytes.split_at_checked(HEADER) else {
            return Some(Err("cut short in a header"));
        };
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(body) = bytes.get(HEADER..length) else {
            return Some(Err("message length outside of its datagram"));
        };
        self.0 = bytes.get(align(length)..).unwrap_or_default();
        Some(Ok(Frame {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]) & !NLM_F_MULTIPART,
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            body,
        }))
    }
}

const fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn write_header(bytes: &mut [u8], length: usize, kind: u16, flags: u16, sequence: u32) {
    bytes[0..4].copy_from_slice(&(length as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
}

/// Walks attributes (type without its flag bits, payload); stops at the first malformed one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A NUL-terminated name out of an attribute; empty if it is not UTF-8.
pub fn string(value: &[u8]) -> &str {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).unwrap_or_default()
}

/// A native-endian 32-bit attribute.
pub fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// Writes netlink messages and attributes into one growing buffer.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Writer {
    bytes: Vec<u8>,
    messages: u32,
    /// Where the last message starts.
    last: usize,
}

impl Writer {
    /// Appends a message with the next number; `body` writes its fixed part and attributes. Returns its number.
    pub fn message(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Writer)) -> u32 {
        let start = self.bytes.len();
        self.bytes.resize(start + HEADER, 0);
        body(self);
        let length = self.bytes.len() - start;
        let sequence = self.messages;
        write_header(&mut self.bytes[start..], length, kind, NLM_F_REQUEST | flags, sequence);
        self.messages += 1;
        self.last = start;
        sequence
    }

    /// Asks for an acknowledgement of the last message; returns its number, `None` if there is no message.
    pub fn acknowledge(&mut self) -> Option<u32> {
        let flags = self.bytes.get_mut(self.last + 6..self.last + 8)?;
        let asked = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
        flags.copy_from_slice(&asked.to_ne_bytes());
        self.messages.checked_sub(1)
    }

    /// Appends bytes as they are, padded to four.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    /// Appends an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        // nla_len covers its own header, not the padding.
        self.bytes.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value);
    }

    /// Appends a name with its terminating NUL.
    pub fn name(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
    }

    /// Appends a big-endian 32-bit attribute, as netfilter wants its numbers.
    pub fn number_be(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// Appends an attribute made of attributes.
    pub fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Writer)) {
        let start = self.bytes.len();
        self.bytes.resize(start + 4, 0);
        body(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
    }

    /// The datagram.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn written_messages_read_back() {
        let mut writer = Writer::default();
        assert_eq!(writer.acknowledge(), None);
        writer.message(7, 0, |w| {
            w.raw(&[1, 2, 3, 4]);
            w.name(1, "lo");
            w.nested(2, |w| w.number_be(3, 5));
        });
        assert_eq!(writer.acknowledge(), Some(0));
        writer.message(8, 0, |_| {});
        let frames: Vec<_> = Frames(writer.bytes()).collect::<Result<_, _>>().unwrap();
        assert_eq!(
            frames.iter().map(|f| (f.kind, f.flags, f.sequence)).collect::<Vec<_>>(),
            [(7, NLM_F_REQUEST | NLM_F_ACK, 0), (8, NLM_F_REQUEST, 1)]
        );
        let found: Vec<_> = attributes(&frames[0].body[4..]).collect();
        assert_eq!(found[0], (1, &b"lo\0"[..]));
        assert_eq!(string(found[0].1), "lo");
        assert_eq!(attributes(found[1].1).collect::<Vec<_>>(), [(3, &[0, 0, 0, 5][..])]);
    }

    #[test]
    fn a_refusal_carries_errno_and_the_kernels_words() {
        let mut body = (-libc::EEXIST).to_ne_bytes().to_vec();
        body.extend([0; HEADER]);
        let mut words = Writer::default();
        words.name(EXT_ACK_MESSAGE, "already there");
        body.extend_from_slice(words.bytes());
        let frame = Frame { kind: NLMSG_ERROR, flags: NLM_F_CAPPED | NLM_F_ACK_TLVS, sequence: 1, body: &body };
        let error = refusal(&frame, "creating link x").unwrap_err();
        assert!(error.is_present());
        assert_eq!(error.to_string(), "creating link x (already there)");
    }

    proptest! {
        #[test]
        fn any_datagram_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256), kind in 0u16..4) {
            for frame in Frames(&bytes).flatten() {
                let _ = refusal(&Frame { kind, ..frame }, "x");
                attributes(frame.body).for_each(drop);
            }
        }
    }
}
