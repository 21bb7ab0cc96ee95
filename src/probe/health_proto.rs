//! The two messages of `grpc.health.v1.Health/Check`, by hand. Pure.
//!
//! ```text
//! message HealthCheckRequest  { string service = 1; }
//! message HealthCheckResponse { enum ServingStatus status = 1; }
//! ```

/// Why bytes are no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// They end in the middle.
    #[error("the message is cut off")]
    Short,
    /// gRPC's frame says so, and nobody asked for it.
    #[error("the message is compressed")]
    Compressed,
    /// A number of more than 64 bits, a field without a number or of no known type.
    #[error("the message is malformed")]
    Malformed,
}

/// `HealthCheckResponse.status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status(pub(super) i32);

impl Status {
    pub(super) const SERVING: Status = Status(1);
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => f.write_str("UNKNOWN"),
            1 => f.write_str("SERVING"),
            2 => f.write_str("NOT_SERVING"),
            3 => f.write_str("SERVICE_UNKNOWN"),
            other => write!(f, "{other}"),
        }
    }
}

/// The request in gRPC's frame: a byte of flags, four of length, the message. `None` when the name is longer than a
/// frame can say.
pub(super) fn request(service: &str) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(service.len() + 8);
    if !service.is_empty() {
        message.push(1 << 3 | LENGTH_DELIMITED);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).ok()?;
    let mut frame = Vec::with_capacity(message.len() + 5);
    frame.push(0);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend(message);
    Some(frame)
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH_DELIMITED: u8 = 2;
const FIXED32: u8 = 5;

/// The status in a framed response; fields that are not known are passed over, and of equal ones the last counts.
pub(super) fn response(frame: &[u8]) -> Result<Status, Error> {
    let (&flags, rest) = frame.split_first().ok_or(Error::Short)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(Error::Short)?;
    if flags & 1 != 0 {
        return Err(Error::Compressed);
    }
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| Error::Malformed)?;
    let mut rest = rest.get(..length).ok_or(Error::Short)?;
    let mut status = Status(0);
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        if tag >> 3 == 0 {
            return Err(Error::Malformed);
        }
        match (tag & 7) as u8 {
            VARINT => {
                let value = varint(&mut rest)?;
                if tag >> 3 == 1 {
                    // An enum is an int32: the low half, as every decoder does.
                    status = Status(value as i32);
                }
            }
            FIXED64 => rest = rest.get(8..).ok_or(Error::Short)?,
            FIXED32 => rest = rest.get(4..).ok_or(Error::Short)?,
            LENGTH_DELIMITED => {
                let length = usize::try_from(varint(&mut rest)?).map_err(|_| Error::Short)?;
                rest = rest.get(length..).ok_or(Error::Short)?;
            }
            _ => return Err(Error::Malformed),
        }
    }
    Ok(status)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Error> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(Error::Short)?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return Err(Error::Malformed);
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Error::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_those_of_protoc() {
        assert_eq!(request("").unwrap(), [0, 0, 0, 0, 0]);
        assert_eq!(request("ab").unwrap(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(request(&"x".repeat(300)).unwrap()[5..8], [0x0a, 0xac, 2]);
        for (frame, want) in [
            (&[0, 0, 0, 0, 0][..], Ok(Status(0))),
            (&[0, 0, 0, 0, 2, 8, 1], Ok(Status::SERVING)),
            (&[0, 0, 0, 0, 4, 8, 1, 8, 2], Ok(Status(2))),
            (&[0, 0, 0, 0, 6, 0x12, 2, 9, 9, 8, 3], Ok(Status(3))),
            (&[0, 0, 0, 0, 7, 0x1d, 1, 2, 3, 4, 8, 1], Ok(Status::SERVING)),
            (&[1, 0, 0, 0, 2, 8, 1], Err(Error::Compressed)),
            (&[0, 0, 0, 0, 3, 8, 1], Err(Error::Short)),
            (&[0, 0, 0, 0, 1, 8], Err(Error::Short)),
            (&[0, 0, 0, 0, 2, 0, 1], Err(Error::Malformed)),
            (&[0, 0, 0, 0, 1, 0x0b], Err(Error::Malformed)),
            (&[0, 0, 0], Err(Error::Short)),
            (&[], Err(Error::Short)),
        ] {
            assert_eq!(response(frame), want, "{frame:?}");
        }
    }

    fn encode(fields: &[(u32, Vec<u8>)], status: i32) -> Vec<u8> {
        let mut message = Vec::new();
        for (number, bytes) in fields {
            message.push((number << 3) as u8 | LENGTH_DELIMITED);
            message.push(bytes.len() as u8);
            message.extend(bytes);
        }
        message.push(8);
        // As protoc: a negative enum has ten bytes.
        let mut rest = i64::from(status) as u64;
        while rest >= 0x80 {
            message.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        message.push(rest as u8);
        let mut frame = vec![0];
        frame.extend((message.len() as u32).to_be_bytes());
        frame.extend(message);
        frame
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_or_a_status_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = response(&bytes);
            let mut framed = vec![0, 0, 0, 0, bytes.len() as u8];
            framed.extend(&bytes);
            let _ = response(&framed);
        }

        #[test]
        fn a_status_is_found_among_unknown_fields(
            status in any::<i32>(),
            fields in prop::collection::vec((2..16_u32, prop::collection::vec(any::<u8>(), 0..100)), 0..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let frame = encode(&fields, status);
            prop_assert_eq!(response(&frame), Ok(Status(status)));
            prop_assert_eq!(response(&frame[..cut.index(frame.len())]), Err(Error::Short));
        }
    }
}
