//! Keys and shapes of LoRA files, against the tiny synthetic model.
//!
//! The bytes are read as a list of keys with small shapes; the values are zeros.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use sd_converter::checkpoint::from_bytes;
use sd_converter::lora::{Adapter, LoraSpec};
use sd_converter::progress::Unwatched;
use sd_converter::synth::{Kind, Synth};
use sd_converter::weights::Weights;

fn base() -> &'static Weights {
    static BASE: OnceLock<Weights> = OnceLock::new();
    BASE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("fuzz-{}.safetensors", std::process::id()));
        let kind = Kind::named("sd15").expect("a known family");
        let synth = Synth { kind, tiny: true, seed: 0 };
        synth.write(&path, true, &Unwatched).expect("the folder can be written");
        Weights::open(&path, None).expect("it was just written")
    })
}

fuzz_target!(|input: &[u8]| {
    let mut header = String::from("{");
    let mut length = 0usize;
    for line in input.split(|&b| b == b'\n') {
        let (shape, key) = line.split_at(line.len().min(4));
        let Ok(key) = std::str::from_utf8(key) else {
            continue;
        };
        let key: String = key.chars().filter(|c| !c.is_control() && !"\"\\".contains(*c)).collect();
        let dims: Vec<usize> = shape.iter().map(|b| usize::from(b % 97)).collect();
        let size = 4 * dims.iter().product::<usize>();
        if size > 1 << 20 {
            continue;
        }
        let comma = if length + header.len() > 1 { "," } else { "" };
        header += &format!(
            "{comma}\"{key}\":{{\"dtype\":\"F32\",\"shape\":{dims:?},\"data_offsets\":[{length},{}]}}",
            length + size
        );
        length += size;
    }
    header.push('}');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + length, 0);
    if let Ok(source) = from_bytes("lora.safetensors".as_ref(), file) {
        let spec = LoraSpec::new("lora.safetensors", 1.0);
        let _ = Adapter::fit(source, &spec, base(), true);
    }
});
