#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]
use sd_runtime::engine::*;
fn main() {
    let e = Engine::start(&EngineOptions::default()).unwrap();
    let c = Cancel::new();
    let mut n = e
        .load(std::path::Path::new("/tmp/x"), "unet", None, &[], &c)
        .unwrap();
    let x = ndarray::ArrayD::from_shape_fn(vec![1, 5, 64], |i| (i[1] * 64 + i[2]) as f32 / 100.0);
    let y = n.run(&[("x", Input::F32(x.view()))], &["y"], &c).unwrap();
    println!("{:?}", &y[0].as_slice().unwrap()[..8]);
}
