//! Octets as scripts write them.

/// A script's text as octets: `\r \n \t \0 \s \\ \xHH` are octets, `{name}` is a variable, `{text*N}` is that
/// text so many times. What is none of these stands for itself.
pub fn expand(text: &str, variable: &dyn Fn(&str) -> Option<Vec<u8>>) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(['\\', '{']) {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at..];
        let used =
            if rest.starts_with('\\') { escape(rest, &mut out) } else { brace(rest, variable, &mut out) };
        if used == 0 {
            out.push(rest.as_bytes()[0]);
        }
        rest = &rest[used.max(1)..];
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

/// Octets for people, cut to a length that one can read.
pub fn show(octets: &[u8]) -> String {
    const MOST: usize = 160;
    let shown: String =
        octets.iter().take(MOST).flat_map(|octet| octet.escape_ascii()).map(char::from).collect();
    let shown = shown.replace("\\'", "'").replace("\\\"", "\"");
    match octets.len() {
        ..=MOST => shown,
        all => format!("{shown}… ({all} octets)"),
    }
}

/// RFC 4648 §4.
pub fn base64(octets: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in octets.chunks(3) {
        let bits =
            three.iter().fold(0u32, |bits, octet| bits << 8 | u32::from(*octet)) << (8 * (3 - three.len()));
        for n in 0..4 {
            let index = (bits >> (18 - 6 * n)) & 63;
            out.push(if n <= three.len() { char::from(ALPHABET[index as usize]) } else { '=' });
        }
    }
    out
}

fn escape(rest: &str, out: &mut Vec<u8>) -> usize {
    let octet = match rest.as_bytes().get(1) {
        Some(b'r') => b'\r',
        Some(b'n') => b'\n',
        Some(b't') => b'\t',
        Some(b's') => b' ',
        Some(b'0') => 0,
        Some(b'\\') => b'\\',
        Some(b'x') => {
            let Some(octet) = rest.get(2..4).and_then(|hex| u8::from_str_radix(hex, 16).ok()) else {
                return 0;
            };
            out.push(octet);
            return 4;
        }
        _ => return 0,
    };
    out.push(octet);
    2
}

fn brace(rest: &str, variable: &dyn Fn(&str) -> Option<Vec<u8>>, out: &mut Vec<u8>) -> usize {
    let Some(end) = rest.find('}') else { return 0 };
    let name = &rest[1..end];
    if let Some(value) = variable(name) {
        out.extend_from_slice(&value);
    } else if let Some((text, times)) = name.rsplit_once('*')
        && let Ok(times) = times.parse()
    {
        out.extend_from_slice(&expand(text, variable).repeat(times));
    } else {
        return 0;
    }
    end + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(text: &str) -> Vec<u8> {
        expand(text, &|name| (name == "a").then(|| b"A".to_vec()))
    }

    #[test]
    fn texts() {
        assert_eq!(plain("x{a}\\r\\n\\0\\xff\\s\\\\{b}{xy*3}{"), b"xA\r\n\0\xff \\{b}xyxyxy{");
        assert_eq!(plain("\\q\\"), b"\\q\\");
        assert_eq!(show(b"a\r\n\"b\xff"), "a\\r\\n\"b\\xff");
        assert_eq!(base64(b"\0user\0pass"), "AHVzZXIAcGFzcw==");
        assert_eq!(base64(b"abcab"), "YWJjYWI=");
    }

    proptest! {
        #[test]
        fn never_panics(text in "[a{}*3\\\\xrn\u{e9}]{0,20}") {
            let _ = plain(&text);
        }
    }
}
