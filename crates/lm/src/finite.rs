//! Are all numbers of a mapped tensor finite? One pass over its bytes, at the speed of memory: nothing is copied or converted.

use std::num::NonZero;
use std::thread;

use tch::Kind;

/// Bytes that one thread looks through before it says what it found.
const PIECE: usize = 1 << 20;

/// The index of the first number that is infinite or no number.
pub(crate) fn first_that_is_not(bytes: &[u8], kind: Kind) -> Option<usize> {
    let size = kind.elt_size_in_bytes();
    let pieces: Vec<&[u8]> = bytes.chunks(PIECE).collect();
    let most = thread::available_parallelism().map_or(1, NonZero::get).min(8);
    let threads = most.min(pieces.len() / 4).max(1);
    let share = pieces.len().div_ceil(threads).max(1);
    let first = |pieces: &[&[u8]]| pieces.iter().position(|piece| any(piece, kind));
    let found = if threads == 1 {
        first(&pieces)
    } else {
        thread::scope(|scope| {
            let parts: Vec<_> = pieces.chunks(share).map(|part| scope.spawn(move || first(part))).collect();
            let found: Vec<_> = parts.into_iter().map(|part| part.join().expect("no panic in a comparison")).collect();
            found.iter().enumerate().find_map(|(n, piece)| piece.map(|piece| n * share + piece))
        })
    }?;
    let within = pieces[found].chunks_exact(size).position(|number| any(number, kind)).expect("one is in this piece");
    Some(found * PIECE / size + within)
}

/// Has every number's exponent a bit that is off? If not, one of them is infinite or no number.
fn any(bytes: &[u8], kind: Kind) -> bool {
    match kind {
        Kind::Half => any_16(bytes, 0x7c00),
        Kind::BFloat16 => any_16(bytes, 0x7f80),
        Kind::Float => bytes
            .chunks_exact(4)
            .fold(false, |any, b| any | (u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & 0x7f80_0000 == 0x7f80_0000)),
        Kind::Double => {
            bytes.chunks_exact(8).any(|b| !f64::from_le_bytes(b.try_into().expect("eight bytes")).is_finite())
        }
        other => unreachable!("{other:?} is not a type of weights"),
    }
}

fn any_16(bytes: &[u8], exponent: u16) -> bool {
    bytes.chunks_exact(2).fold(false, |any, b| any | (u16::from_le_bytes([b[0], b[1]]) & exponent == exponent))
}

/// A number that is not finite, as it is called: nothing else is asked for.
pub(crate) fn spelled(bytes: &[u8], kind: Kind, index: usize) -> &'static str {
    let size = kind.elt_size_in_bytes();
    let number = &bytes[index * size..][..size]; // little-endian
    let top = |mantissa: u8| (number[size - 2] & mantissa, number[size - 1]);
    let low = number[..size - 2].iter().any(|byte| *byte != 0);
    // The bits of the mantissa that lie in the byte of the exponent's end; in float16 they lie in the top byte.
    let (mantissa, sign) = match kind {
        Kind::Half => (number[0] != 0 || number[1] & 0x03 != 0, number[1]),
        Kind::Double => (low || top(0x0f).0 != 0, number[7]),
        _ => (low || top(0x7f).0 != 0, number[size - 1]),
    };
    match (mantissa, sign & 0x80) {
        (true, _) => "NaN",
        (false, 0) => "infinity",
        (false, _) => "-infinity",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_that_is_not_finite_is_found_in_every_type() {
        let of = |numbers: &[u16]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
        for (kind, infinite, nan, largest) in
            [(Kind::Half, 0x7c00, 0xfe01, 0x7bff), (Kind::BFloat16, 0x7f80, 0xff81, 0x7f7f)]
        {
            assert_eq!(first_that_is_not(&of(&[0, largest, 0x8000]), kind), None);
            let bytes = of(&[1, nan, infinite]);
            assert_eq!(first_that_is_not(&bytes, kind), Some(1));
            assert_eq!((spelled(&bytes, kind, 1), spelled(&bytes, kind, 2)), ("NaN", "infinity"));
        }
        let bytes: Vec<u8> = [1.0f32, f32::MAX, f32::NEG_INFINITY].iter().flat_map(|n| n.to_le_bytes()).collect();
        assert_eq!(first_that_is_not(&bytes, Kind::Float), Some(2));
        assert_eq!(spelled(&bytes, Kind::Float, 2), "-infinity");
        let bytes: Vec<u8> = [f64::MIN, f64::NAN].iter().flat_map(|n| n.to_le_bytes()).collect();
        assert_eq!((first_that_is_not(&bytes, Kind::Double), spelled(&bytes, Kind::Double, 1)), (Some(1), "NaN"));
        assert_eq!(first_that_is_not(&[], Kind::Float), None);
    }

    #[test]
    fn it_is_found_wherever_it_lies_in_a_tensor_of_many_pieces() {
        let numbers = 5 * PIECE + 3;
        for at in [0, PIECE / 2, 3 * PIECE + 1, numbers - 1] {
            let mut bytes = vec![0u8; numbers * 2];
            bytes[2 * at + 1] = 0x7c;
            assert_eq!(first_that_is_not(&bytes, Kind::Half), Some(at));
        }
    }
}
