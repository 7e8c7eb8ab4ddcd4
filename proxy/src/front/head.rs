//! Reads the head of an HTTP/1 request byte by byte, strictly (RFC 9112 sections 2 to 5): what another server on the way
//! could read differently is refused. Pure: no socket, no clock; what the head means is the gate's.

use http::Version;

use super::gate::HeadRefusal;

/// Longest head taken, request line included. OpenAI's SDKs send about 1 KiB; a token may have 8 KiB.
pub(crate) const HEAD_BYTES_MAX: usize = 32 * 1024;

/// Finds the end of a head in a buffer that grows, looking at every byte once.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    checked: usize,
    line_start: usize,
}

impl Scanner {
    /// The length of the head including its empty line, or `None` while it is not complete.
    pub(crate) fn scan(&mut self, buffer: &[u8]) -> Result<Option<usize>, HeadRefusal> {
        while let Some(&byte) = buffer.get(self.checked) {
            match byte {
                b'\r' => match buffer.get(self.checked + 1) {
                    Some(b'\n') if self.line_start == self.checked => {
                        return Ok(Some(self.checked + 2));
                    }
                    Some(b'\n') => {
                        self.checked += 2;
                        self.line_start = self.checked;
                        continue;
                    }
                    Some(_) => {
                        return Err(HeadRefusal::Malformed("a carriage return stands alone"));
                    }
                    None => break,
                },
                b'\n' => {
                    return Err(HeadRefusal::Malformed(
                        "a line ends without carriage return",
                    ));
                }
                0 => return Err(HeadRefusal::Malformed("the head contains a zero byte")),
                _ => {}
            }
            self.checked += 1;
        }
        if buffer.len() > HEAD_BYTES_MAX {
            return Err(HeadRefusal::TooLarge(
                "the request head is larger than 32 KiB",
            ));
        }
        Ok(None)
    }
}

/// A head taken apart, nothing interpreted yet.
#[derive(Debug)]
pub(crate) struct RawHead<'a> {
    pub(crate) method: &'a str,
    pub(crate) target: &'a str,
    pub(crate) version: Version,
    pub(crate) fields: Vec<(&'a str, &'a [u8])>,
}

impl<'a> RawHead<'a> {
    /// Takes apart a head that [`Scanner`] found complete.
    pub(crate) fn parse(head: &'a [u8]) -> Result<Self, HeadRefusal> {
        if head.len() > HEAD_BYTES_MAX {
            return Err(HeadRefusal::TooLarge(
                "the request head is larger than 32 KiB",
            ));
        }
        let mut lines = Lines { rest: head };
        let (method, target, version) = request_line(lines.next().unwrap_or_default())?;
        let mut fields = Vec::with_capacity(16);
        for line in lines {
            if line.is_empty() {
                break;
            }
            fields.push(field(line)?);
        }
        Ok(Self {
            method,
            target,
            version,
            fields,
        })
    }
}

struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = self.rest.windows(2).position(|pair| pair == b"\r\n")?;
        let (line, rest) = self.rest.split_at(end);
        self.rest = rest.get(2..).unwrap_or_default();
        Some(line)
    }
}

fn request_line(line: &[u8]) -> Result<(&str, &str, Version), HeadRefusal> {
    let text = std::str::from_utf8(line)
        .ok()
        .filter(|text| text.bytes().all(|byte| (0x20..0x7f).contains(&byte)))
        .ok_or(HeadRefusal::Malformed(
            "the request line has bytes outside printable ASCII",
        ))?;
    let mut words = text.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(HeadRefusal::Malformed(
            "the request line is not `method target version`",
        ));
    };
    if method.is_empty() || !method.bytes().all(is_token) {
        return Err(HeadRefusal::Malformed("the method is not a token"));
    }
    if target.is_empty() {
        return Err(HeadRefusal::Malformed("the request target is empty"));
    }
    let version = match version {
        "HTTP/1.1" => Version::HTTP_11,
        "HTTP/1.0" => Version::HTTP_10,
        _ => return Err(HeadRefusal::Version),
    };
    Ok((method, target, version))
}

fn field(line: &[u8]) -> Result<(&str, &[u8]), HeadRefusal> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(HeadRefusal::Malformed("a header line is folded"));
    }
    let colon = line
        .iter()
        .position(|&byte| byte == b':')
        .ok_or(HeadRefusal::Malformed("a header line has no colon"))?;
    let (name, value) = line.split_at(colon);
    let name = std::str::from_utf8(name)
        .ok()
        .filter(|name| !name.is_empty() && name.bytes().all(is_token))
        .ok_or(HeadRefusal::Malformed("a header name is not a token"))?;
    let value = value.get(1..).unwrap_or_default();
    let value = trim(value);
    let odd = |&byte: &u8| byte != b'\t' && (byte < 0x20 || byte == 0x7f);
    if value.iter().any(odd) {
        return Err(HeadRefusal::Malformed(
            "a header value has control characters",
        ));
    }
    Ok((name, value))
}

/// Optional whitespace is space and tab only (RFC 9110 section 5.6.3).
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// `tchar` of RFC 9110 section 5.6.2.
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(head: &[u8]) -> Result<Option<usize>, HeadRefusal> {
        Scanner::default().scan(head)
    }

    #[test]
    fn a_plain_head_is_taken_apart() {
        let head = b"POST /v1/x?y=1 HTTP/1.1\r\nHost: a\r\nX-B:  c d \t\r\n\r\nbody";
        assert_eq!(whole(head), Ok(Some(head.len() - 4)));
        let raw = RawHead::parse(&head[..head.len() - 4]).unwrap();
        assert_eq!(
            (raw.method, raw.target, raw.version),
            ("POST", "/v1/x?y=1", Version::HTTP_11)
        );
        assert_eq!(raw.fields, vec![("Host", &b"a"[..]), ("X-B", &b"c d"[..])]);
    }

    #[test]
    fn heads_that_others_could_read_differently_are_refused() {
        let scanned: [&[u8]; 4] = [
            b"GET / HTTP/1.1\nHost: a\n\n",
            b"GET / HTTP/1.1\r\nHost: a\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\0\r\n\r\n",
        ];
        for head in scanned {
            assert!(
                matches!(whole(head), Err(HeadRefusal::Malformed(_))),
                "{}",
                head.escape_ascii()
            );
        }
        let parsed: [&[u8]; 14] = [
            b"GET  / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1 \r\n\r\n",
            b"GET /\r\n\r\n",
            b" GET / HTTP/1.1\r\n\r\n",
            b"GE(T / HTTP/1.1\r\n\r\n",
            b"GET /\xc3\xa4 HTTP/1.1\r\n\r\n",
            b"GET / HTTP/2.0\r\n\r\n",
            b"GET / http/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost\r\n\r\n",
            b"GET / HTTP/1.1\r\n: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\x0bb\r\n\r\n",
        ];
        for head in parsed {
            assert!(RawHead::parse(head).is_err(), "{}", head.escape_ascii());
        }
    }

    #[test]
    fn a_head_is_never_larger_than_its_bound() {
        let mut head = b"GET / HTTP/1.1\r\nX: ".to_vec();
        head.resize(HEAD_BYTES_MAX + 1, b'a');
        assert!(matches!(whole(&head), Err(HeadRefusal::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn any_split_finds_the_same_end(tail in proptest::collection::vec(any::<u8>(), 0..40), cut in 0usize..60) {
            let mut bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
            bytes.extend(tail);
            let cut = cut.min(bytes.len());
            let mut scanner = Scanner::default();
            let first = scanner.scan(&bytes[..cut]);
            let found = match first { Ok(None) => scanner.scan(&bytes), done => done };
            prop_assert_eq!(found, Ok(Some(27)));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Some(end)) = whole(&bytes) {
                let _outcome = RawHead::parse(&bytes[..end]);
            }
        }
    }
}
