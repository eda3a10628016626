//! Who may talk to whom: the one table. Master connects these and nothing else, and a child can neither
//! open a path nor connect, so an edge that is not here does not exist.

use crate::role::Role;

/// The edges, the asking side first.
pub const EDGES: &[(Role, Role)] = &[
    (Role::Smtpd, Role::Lookup), // smtpd_lookup: is it ours, does it exist, may it relay
    (Role::Smtpd, Role::Auth),   // smtpd_auth: is this the password
    (Role::Smtpd, Role::Verify), // smtpd_verify: who is this client
    (Role::Smtpd, Role::Keys),   // smtpd_keys: sign this handshake
    (Role::QueueManager, Role::Lookup), // queue_lookup: where does this recipient's mail go
    (Role::QueueManager, Role::DeliveryRemote), // queue_agent: deliver this
    (Role::QueueManager, Role::DeliveryLocal), // queue_agent
    (Role::QueueManager, Role::Lmtp), // queue_agent
    (Role::DeliveryRemote, Role::Resolver), // resolve: MX, addresses
    (Role::Lmtp, Role::Resolver), // resolve: the address of an LMTP server
    (Role::Verify, Role::Resolver), // resolve: names of clients, lists
];

/// The programs `role` has a link to.
pub fn neighbours(role: Role) -> impl Iterator<Item = Role> {
    EDGES.iter().filter_map(move |&(a, b)| match role {
        _ if role == a => Some(b),
        _ if role == b => Some(a),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_from_the_network_reaches_the_queue() {
        assert!(!neighbours(Role::QueueManager).any(|peer| matches!(peer, Role::Smtpd | Role::Resolver)));
    }

    #[test]
    fn every_child_has_a_neighbour() {
        assert!(Role::CHILDREN.iter().all(|&role| neighbours(role).next().is_some()));
    }
}
