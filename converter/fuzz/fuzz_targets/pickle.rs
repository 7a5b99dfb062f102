//! PyTorch's files of before 1.6: pickles, then storages.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_converter::checkpoint::from_bytes;

fuzz_target!(|pickle: &[u8]| {
    // Behind what every such file begins with: the magic number, the version and the byte order.
    let mut file = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    file.extend_from_slice(b"\x80\x02}X\r\x00\x00\x00little_endian\x88s.");
    file.extend_from_slice(pickle);
    if let Ok(source) = from_bytes("a.ckpt".as_ref(), file) {
        for (name, info) in source.tensors() {
            assert_eq!(source.bytes(name).unwrap().len(), info.byte_len());
        }
    }
});
