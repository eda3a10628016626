//! What targets make of octets before they use them.

/// Numbers that look random, the same ones for the same seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// From octets.
    pub(crate) fn of(octets: &[u8]) -> Self {
        Self::new(octets.iter().fold(0, |seed, octet| seed << 8 | u64::from(*octet)))
    }

    /// Any number (splitmix64).
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.any() % end as u64) as usize
    }
}

/// The first `n` octets, zeros if there are fewer, and the rest.
pub(crate) fn front<const N: usize>(data: &[u8]) -> ([u8; N], &[u8]) {
    let (head, rest) = data.split_at(data.len().min(N));
    let mut front = [0; N];
    front[..head.len()].copy_from_slice(head);
    (front, rest)
}

/// The same octets in pieces, cut at random: some of one octet, none empty.
pub(crate) fn pieces<'a>(mut data: &'a [u8], random: &mut Random) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    while !data.is_empty() {
        let most = [1, 2, 7, 64, 1024][random.below(5)];
        let (piece, rest) = data.split_at((1 + random.below(most)).min(data.len()));
        pieces.push(piece);
        data = rest;
    }
    pieces
}

/// No CR and no LF but in pairs.
pub(crate) fn is_strict(octets: &[u8]) -> bool {
    let mut before = 0;
    for octet in octets {
        if (*octet == b'\n') != (before == b'\r') {
            return false;
        }
        before = *octet;
    }
    before != b'\r'
}
