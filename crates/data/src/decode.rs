//! Text files as UTF-8: a byte order mark is left out, and UTF-16 that begins with one is turned into UTF-8.

use std::io::{BufRead, Error, ErrorKind, Read, Result};

/// What helps with a file in another encoding.
pub(crate) const REENCODE: &str = "re-encode the file as UTF-8, for example from Windows' code page: `iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW` (Excel: save as `CSV UTF-8`)";

/// What helps where text cannot be read.
pub(crate) fn hint(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::InvalidData if error.to_string().contains("UTF-16") => {
            "re-encode the file as UTF-8: `iconv -f UTF-16 -t UTF-8 FILE > NEW`"
        }
        _ => "the packed file is damaged or cut: fetch or write it again",
    }
}

/// `reader` as UTF-8, whatever Unicode encoding its byte order mark names; without one it is left as it is.
pub(crate) fn decoded(mut reader: Box<dyn BufRead + Send>) -> Result<Box<dyn BufRead + Send>> {
    let head = reader.fill_buf()?;
    if head.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
        return Ok(reader);
    }
    let big = head.starts_with(b"\xfe\xff");
    if !big && !head.starts_with(b"\xff\xfe") {
        return Ok(reader);
    }
    reader.consume(2);
    Ok(Box::new(std::io::BufReader::with_capacity(1 << 16, Utf16 { reader, big, waiting: Vec::new() })))
}

/// UTF-16 as UTF-8.
struct Utf16 {
    reader: Box<dyn BufRead + Send>,
    big: bool,
    /// Bytes that did not fit into the caller's buffer.
    waiting: Vec<u8>,
}

impl Utf16 {
    /// The next unit; none at the end.
    fn unit(&mut self) -> Result<Option<u16>> {
        let mut pair = [0; 2];
        for (i, byte) in pair.iter_mut().enumerate() {
            match self.reader.fill_buf()?.first() {
                Some(first) => *byte = *first,
                None if i == 0 => return Ok(None),
                None => return Err(Error::new(ErrorKind::InvalidData, "UTF-16 with half a unit at its end")),
            }
            self.reader.consume(1);
        }
        Ok(Some(if self.big { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) }))
    }

    fn character(&mut self) -> Result<Option<char>> {
        let lone = || Error::new(ErrorKind::InvalidData, "UTF-16 with half a character");
        let Some(unit) = self.unit()? else { return Ok(None) };
        let low = if (0xd800..0xdc00).contains(&unit) { Some(self.unit()?.ok_or_else(lone)?) } else { None };
        char::decode_utf16(std::iter::once(unit).chain(low))
            .next()
            .and_then(std::result::Result::ok)
            .map(Some)
            .ok_or_else(lone)
    }
}

impl Read for Utf16 {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let mut bytes = [0; 4];
        while self.waiting.len() < out.len() {
            let Some(character) = self.character()? else { break };
            self.waiting.extend_from_slice(character.encode_utf8(&mut bytes).as_bytes());
        }
        let n = self.waiting.len().min(out.len());
        out[..n].copy_from_slice(&self.waiting[..n]);
        self.waiting.drain(..n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<String> {
        let mut text = String::new();
        decoded(Box::new(std::io::Cursor::new(bytes.to_vec())))?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn byte_order_marks_name_the_encoding() {
        let text = "a,é,🙂\n".repeat(30_000);
        assert_eq!(read(text.as_bytes()).unwrap(), text);
        assert_eq!(read(&[b"\xef\xbb\xbf", text.as_bytes()].concat()).unwrap(), text);
        for big in [false, true] {
            let units = std::iter::once(0xfeff).chain(text.encode_utf16());
            let bytes: Vec<u8> = units.flat_map(|u: u16| if big { u.to_be_bytes() } else { u.to_le_bytes() }).collect();
            assert_eq!(read(&bytes).unwrap(), text);
        }
        assert!(read(b"\xff\xfea\0b").unwrap_err().to_string().contains("half a unit"));
        assert!(read(b"\xff\xfe\x3d\xd8a\0").unwrap_err().to_string().contains("half a character"));
    }
}
