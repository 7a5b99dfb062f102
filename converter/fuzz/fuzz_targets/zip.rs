//! PyTorch's zip archives.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_converter::checkpoint::from_bytes;

fuzz_target!(|file: &[u8]| {
    if !file.starts_with(b"PK") {
        return;
    }
    if let Ok(source) = from_bytes("a.ckpt".as_ref(), file.to_vec()) {
        for (name, info) in source.tensors() {
            // Packed entries may be damaged; those that can be read are whole.
            if let Ok(bytes) = source.bytes(name) {
                assert_eq!(bytes.len(), info.byte_len());
            }
        }
    }
});
