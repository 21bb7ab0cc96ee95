//! Address ranges in CIDR notation.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A network: an address without host bits, and the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is not a [`Cidr`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    #[error("{0:?} is not of the form ADDRESS/PREFIX, as in 10.88.0.0/24")]
    Form(String),
    #[error("{address} cannot have a prefix of {prefix} bits, at most {most}")]
    Prefix { address: IpAddr, prefix: u32, most: u8 },
    #[error("{given} has host bits set: the network is {network}")]
    HostBits { given: String, network: Cidr },
}

impl Cidr {
    /// The network that holds `address`, `prefix` bits long.
    pub fn containing(address: IpAddr, prefix: u8) -> Result<Cidr, CidrError> {
        let most = if address.is_ipv4() { 32 } else { 128 };
        if prefix > most {
            return Err(CidrError::Prefix { address, prefix: prefix.into(), most });
        }
        let address = match address {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(
                v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0),
            )),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(
                v6.to_bits() & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0),
            )),
        };
        Ok(Cidr { address, prefix })
    }

    /// The network address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The length of the prefix in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `address` lies in the network; never for the other family.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && Cidr::containing(address, self.prefix).is_ok_and(|network| network == *self)
    }

    /// Whether the two networks share an address.
    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Cidr, CidrError> {
        let form = || CidrError::Form(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        let given: IpAddr = address.parse().map_err(|_| form())?;
        if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(form());
        }
        let bits: u32 = prefix.parse().map_err(|_| form())?;
        let network = Cidr::containing(given, u8::try_from(bits).unwrap_or(u8::MAX)).map_err(|e| match e {
            CidrError::Prefix { address, most, .. } => CidrError::Prefix { address, prefix: bits, most },
            e => e,
        })?;
        if network.address != given {
            return Err(CidrError::HostBits { given: text.to_owned(), network });
        }
        Ok(network)
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Cidr, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn contains_and_overlaps() {
        let network = cidr("10.88.0.0/24");
        assert!(network.contains("10.88.0.255".parse().unwrap()));
        assert!(!network.contains("10.88.1.0".parse().unwrap()));
        assert!(!network.contains("::ffff:10.88.0.1".parse().unwrap()));
        assert!(network.overlaps(&cidr("10.0.0.0/8")) && cidr("10.0.0.0/8").overlaps(&network));
        assert!(!network.overlaps(&cidr("10.89.0.0/16")));
        assert!(cidr("0.0.0.0/0").contains("255.255.255.255".parse().unwrap()));
        assert!(cidr("fd00::/64").contains("fd00::1".parse().unwrap()));
    }

    #[test]
    fn errors_say_what_to_write() {
        let error = |text: &str| text.parse::<Cidr>().unwrap_err().to_string();
        assert_eq!(error("10.88.0.1/24"), "10.88.0.1/24 has host bits set: the network is 10.88.0.0/24");
        assert_eq!(error("10.88.0.0/33"), "10.88.0.0 cannot have a prefix of 33 bits, at most 32");
        assert_eq!(error("10.88.0.0"), "\"10.88.0.0\" is not of the form ADDRESS/PREFIX, as in 10.88.0.0/24");
        assert!(error("10.88.0.0/+8").contains("form"));
    }

    proptest! {
        #[test]
        fn display_parses_back(bits in any::<u128>(), v4 in any::<bool>(), prefix in 0u8..=128) {
            let address = if v4 { IpAddr::V4(Ipv4Addr::from_bits(bits as u32)) } else { IpAddr::V6(Ipv6Addr::from_bits(bits)) };
            let prefix = if v4 { prefix % 33 } else { prefix };
            let network = Cidr::containing(address, prefix).unwrap();
            prop_assert!(network.contains(address));
            prop_assert_eq!(network.to_string().parse::<Cidr>().unwrap(), network);
        }

        #[test]
        fn any_text_is_parsed_without_panic(text in "\\PC*") {
            let _ = text.parse::<Cidr>();
        }
    }
}
