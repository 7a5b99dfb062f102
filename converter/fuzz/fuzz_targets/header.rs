//! Headers of safetensors files.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_converter::checkpoint::header::Header;

fuzz_target!(|file: &[u8]| {
    if let Ok(header) = Header::parse(file) {
        for (name, info) in &header.tensors {
            let start = header.offsets[name];
            assert!(file.get(start..start + info.byte_len()).is_some());
        }
    }
});
