//! Flows that connection tracking remembers.
//!
//! Translation is decided on a flow's first packet and then remembered. A UDP sender that never changes its port (a
//! syslog client, say) is one endless flow: when a host port gets its pod or changes it, such a flow would go on to
//! where it went before, for ever. So it is made to be forgotten.

use super::nft::Connection;
use crate::sys::netlink::{self, Writer};

const DELETE: u16 = (1 << 8) | 2;
const IPV4: u8 = 2;
/// `nfgenmsg` version 1: the deletion is limited to the header's family.
const LIMITED_TO_FAMILY: u8 = 1;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_DESTINATION_PORT: u16 = 3;
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
/// Compare the original direction's protocol and destination port, and nothing else.
const BY_PROTOCOL_AND_PORT: u32 = 1 << 3 | 1 << 5;

/// Forgets the IPv4 flows that were sent to `port` in the first place, whatever they were translated to.
///
/// # Errors
///
/// `EOPNOTSUPP` on kernels before 6.8, which cannot select what to forget; others as the kernel says.
pub fn forget(connection: &mut Connection, protocol: u8, port: u16) -> Result<(), netlink::Error> {
    let mut writer = Writer::default();
    writer.message(DELETE, 0, |w| {
        w.raw(&[IPV4, LIMITED_TO_FAMILY, 0, 0]);
        w.nested(TUPLE_ORIGINAL, |w| {
            w.nested(TUPLE_PROTOCOL, |w| {
                w.attribute(PROTOCOL_NUMBER, &[protocol]);
                w.attribute(PROTOCOL_DESTINATION_PORT, &port.to_be_bytes());
            });
        });
        w.nested(FILTER, |w| w.attribute(FILTER_ORIGINAL, &BY_PROTOCOL_AND_PORT.to_ne_bytes()));
    });
    let last = writer.acknowledge().unwrap_or_default();
    connection.transact(writer.bytes(), last, |_| format!("forgetting flows to port {port}"))
}
