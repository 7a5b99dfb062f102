//! Protobuf messages, as far as it takes to change an ONNX graph when it is loaded: fields are found, and all that nobody asks for is
//! copied. Field numbers are those of `onnx.proto3`.

/// What is said of bytes that are none.
pub(super) const NO_GRAPH: &str = "it is no ONNX graph";

/// A field of a protobuf message.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    pub(super) number: u64,
    /// All of it.
    pub(super) raw: &'a [u8],
    /// Its content, if it has a length.
    pub(super) bytes: Option<&'a [u8]>,
    /// Its value, if it is a whole number.
    pub(super) number_value: u64,
}

/// The fields of a protobuf message, in order.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = field(self.0);
        self.0 = match &field {
            Ok(field) => &self.0[field.raw.len()..],
            Err(_) => &[],
        };
        Some(field)
    }
}

fn field(message: &[u8]) -> Result<Field<'_>, &'static str> {
    let mut rest = message;
    let tag = varint(&mut rest)?;
    let (mut content, mut value) = (None, 0);
    let length = match tag & 7 {
        0 => {
            value = varint(&mut rest)?;
            0
        }
        1 => 8,
        2 => varint(&mut rest)?,
        5 => 4,
        _ => return Err(NO_GRAPH),
    };
    let length = usize::try_from(length).map_err(|_| NO_GRAPH)?;
    let (inside, rest) = rest.split_at_checked(length).ok_or(NO_GRAPH)?;
    if tag & 7 == 2 {
        content = Some(inside);
    }
    Ok(Field {
        number: tag >> 3,
        raw: &message[..message.len() - rest.len()],
        bytes: content,
        number_value: value,
    })
}

/// Reads a whole number off the front.
pub(super) fn varint(bytes: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(NO_GRAPH)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(NO_GRAPH)
}

fn write_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// Writes a field that is a whole number.
pub(super) fn number(to: &mut Vec<u8>, field: u64, value: u64) {
    write_varint(to, field << 3);
    write_varint(to, value);
}

/// Writes a field that has a length.
pub(super) fn bytes(to: &mut Vec<u8>, field: u64, content: &[u8]) {
    write_varint(to, field << 3 | 2);
    write_varint(to, content.len() as u64);
    to.extend_from_slice(content);
}
