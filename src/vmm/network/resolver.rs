//! Which name servers guests are told to use.

use std::collections::HashSet;
use std::fs;
use std::net::Ipv4Addr;

use nix::ifaddrs::getifaddrs;

use crate::domain::slot::{ACCESS_NETWORK, LINK_LOCAL_NETWORK, LINK_NETWORK};

/// The host's own list; then, for a host whose list only names a resolver of its own, the list of
/// the servers that systemd's resolver asks.
const LISTS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Public servers for a host that names none that a guest could reach.
const PUBLIC: [Ipv4Addr; 2] = [Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)];

/// How many servers resolvers heed (`MAXNS` of the C library).
const LIMIT: usize = 3;

/// The IPv4 name servers that a guest can reach: the host's, without those on the host itself, which
/// guests may not talk to; public ones if none is left. Reads small files.
pub fn resolvers() -> Vec<Ipv4Addr> {
    let own = own_addresses();
    let lists = LISTS.iter().filter_map(|path| fs::read_to_string(path).ok());
    let reachable = lists.map(|list| reachable_servers(&list, &own));
    reachable.into_iter().find(|servers| !servers.is_empty()).unwrap_or_else(|| PUBLIC.to_vec())
}

fn own_addresses() -> HashSet<Ipv4Addr> {
    let Ok(interfaces) = getifaddrs() else { return HashSet::new() };
    let ipv4 = |interface: nix::ifaddrs::InterfaceAddress| {
        interface.address?.as_sockaddr_in().map(|address| address.ip())
    };
    interfaces.filter_map(ipv4).collect()
}

fn reachable_servers(list: &str, own: &HashSet<Ipv4Addr>) -> Vec<Ipv4Addr> {
    let reachable = |server: &Ipv4Addr| {
        let forbidden = [ACCESS_NETWORK, LINK_NETWORK, LINK_LOCAL_NETWORK];
        !server.is_loopback()
            && !server.is_unspecified()
            && !own.contains(server)
            && !forbidden.iter().any(|network| network.contains(*server))
    };
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    };
    list.lines().filter_map(server).filter(reachable).take(LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);

    fn servers(list: &str) -> Vec<String> {
        let servers = reachable_servers(list, &HashSet::from([OWN]));
        servers.iter().map(Ipv4Addr::to_string).collect()
    }

    #[test]
    fn a_hosts_servers_are_taken_in_order_and_at_most_three() {
        let list = "# comment\nsearch lan\nnameserver 10.0.0.53\nnameserver 9.9.9.9 # quad\n\
                    nameserver 192.168.1.1\nnameserver 8.8.4.4\noptions edns0\n";
        assert_eq!(servers(list), ["10.0.0.53", "9.9.9.9", "192.168.1.1"]);
    }

    #[test]
    fn servers_on_the_host_itself_and_forbidden_ones_are_left_out() {
        let list = "nameserver 127.0.0.53\nnameserver 192.168.1.2\nnameserver 0.0.0.0\n\
                    nameserver 169.254.169.254\nnameserver 10.12.0.1\nnameserver 10.11.0.1\n";
        assert!(servers(list).is_empty());
    }

    #[test]
    fn what_is_no_ipv4_server_is_passed_over() {
        assert!(
            servers("nameserver fd00::53\nnameserver\nnameserver x\n;nameserver 1.1.1.1")
                .is_empty()
        );
    }
}
