//! What a hob tells others to dial.

use std::io;
use std::net::SocketAddr;

use tokio::net::lookup_host;

use crate::protocol::host_and_port;

/// Addresses that nobody has (RFC 5737, RFC 3849): the way to them is the way to anybody.
const OUTSIDE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// Returns what others are told to dial: as declared, else where we listen, else the address
/// from which the boss is reached, or everybody else where the boss is to call.
pub(crate) async fn advertised(
    bound: SocketAddr,
    declared: &[String],
    boss: &[(String, u16)],
) -> Vec<(String, u16)> {
    if !declared.is_empty() {
        return declared
            .iter()
            .map(|text| host_and_port(text, bound.port()))
            .collect();
    }
    if !bound.ip().is_unspecified() {
        return vec![(bound.ip().to_string(), bound.port())];
    }
    let outside: Vec<_> = OUTSIDE.map(|host| (host.to_owned(), 9)).into();
    let toward = if boss.is_empty() { &outside } else { boss };
    for (host, port) in toward {
        // Connecting a datagram socket sends nothing; the kernel picks the source address.
        let toward = async {
            let to = lookup_host((host.as_str(), *port)).await?.next();
            let to = to.ok_or(io::ErrorKind::NotFound)?;
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = tokio::net::UdpSocket::bind(any).await?;
            socket.connect(to).await?;
            socket.local_addr()
        };
        match toward.await {
            Ok(address) => return vec![(address.ip().to_string(), bound.port())],
            Err(error) => tracing::warn!(host, %error, "there is no way to it"),
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_are_advertised_as_declared() {
        let bound: SocketAddr = "127.0.0.1:77".parse().unwrap();
        let any: SocketAddr = "[::]:77".parse().unwrap();
        let declared = ["h", "h:1", "::1", "[::1]:2", "10.0.0.1", "[fe80::1]"].map(str::to_owned);
        let found = advertised(any, &declared, &[]).await;
        let expected = [
            ("h", 77),
            ("h", 1),
            ("::1", 77),
            ("::1", 2),
            ("10.0.0.1", 77),
            ("fe80::1", 77),
        ];
        assert_eq!(found, expected.map(|(host, port)| (host.to_owned(), port)));
        assert_eq!(
            advertised(bound, &[], &[]).await,
            [("127.0.0.1".to_owned(), 77)]
        );
        let boss = [("127.0.0.1".to_owned(), 9)];
        assert_eq!(
            advertised(any, &[], &boss).await,
            [("127.0.0.1".to_owned(), 77)]
        );
        // A host without any way out has no address to tell of.
        let found = advertised(any, &[], &[]).await;
        assert!(
            found
                .iter()
                .all(|(host, port)| *port == 77 && host != "127.0.0.1")
        );
    }
}
