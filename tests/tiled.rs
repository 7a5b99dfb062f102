//! Pictures that are decoded and encoded in bands of rows, against those that are as a whole.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::num::NonZero;
use std::path::Path;
use std::thread;

use ndarray::{Array4, ArrayD, s};
use sd_converter::build::Precision;
use sd_kernels::Isa;
use sd_runtime::Remedy;
use sd_runtime::engine::{Cancel, Compute, Dialect, Engine, EngineError, Ep, Input, memory};
use sd_runtime::pipeline::infotext::within_reach;
use sd_runtime::pipeline::{ModelDir, Models, PipelineError, Plans, Request};
use sdrt_tests::{circle, demo_model, engine, make, synthetic, synthetic_as};

/// Whether native graphs, which can work in bands, are run on this machine.
fn runs_native_graphs() -> bool {
    Isa::detect() >= Isa::Avx2
}

/// Numbers of mean 0 and deviation 1, as latents have them (Marsaglia 2003, xorshift).
fn latents(height: usize, width: usize) -> Array4<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let mut normal = || (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
    Array4::from_shape_fn((1, 4, height, width), |_| normal())
}

/// What a network makes of its one input.
fn made(
    engine: &Engine,
    model: &Path,
    (component, input, output): (&str, &str, &str),
    x: &Array4<f32>,
    in_bands: bool,
) -> ArrayD<f32> {
    let model = ModelDir::open(model).unwrap();
    let &[_, _, height, width] = x.shape() else {
        unreachable!("pictures and latents have four dimensions")
    };
    let dims = [("batch", 1), ("height", height), ("width", width)];
    let wish = (Dialect::Native, Compute::F32);
    let (key, _) = model.key(component, &dims, Ep::Cpu, wish).unwrap();
    let (key, cancel) = (key.in_bands(in_bands), Cancel::new());
    let mut network = engine
        .lease(&key, model.manifest.as_ref(), &cancel)
        .unwrap();
    let x = [(input, Input::F32(x.view().into_dyn()))];
    network.run(&x, &[output], &cancel).unwrap().remove(0)
}

/// What a decoder makes.
fn decoded(engine: &Engine, model: &Path, latents: &Array4<f32>, in_bands: bool) -> ArrayD<f32> {
    let decoder = ("vae_decoder", "latent_sample", "sample");
    made(engine, model, decoder, latents, in_bands)
}

/// The share of colours that differ by more than one of 255 levels, and the largest distance, where colours are 2 wide.
fn distance(a: &ArrayD<f32>, b: &ArrayD<f32>) -> (f64, f32) {
    assert_eq!(a.shape(), b.shape());
    let level = |x: f32| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round();
    let pairs = || a.iter().zip(b);
    let off = pairs().filter(|&(&a, &b)| (level(a) - level(b)).abs() > 1.0);
    let largest = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    (off.count() as f64 / a.len() as f64, largest)
}

/// Sizes whose finest activations take several bands, which do not divide them.
#[test]
fn bands_make_the_picture_that_the_whole_makes() {
    if !runs_native_graphs() {
        return;
    }
    let (_guard, synthetic) = synthetic("sd15");
    let (_other, whole_numbers) = synthetic_as("sd15", Precision::Int8);
    for (model, height, width) in [
        (demo_model(), 8, 8),
        (demo_model(), 65, 49),
        (&*synthetic, 37, 81),
        (&*whole_numbers, 9, 13),
    ] {
        let latents = latents(height, width);
        let whole = decoded(engine(), model, &latents, false);
        let bands = decoded(engine(), model, &latents, true);
        let (off, largest) = distance(&whole, &bands);
        // What is rounded to 17 bits twelve times.
        assert!(
            off == 0.0 && largest < 2e-3,
            "{height}x{width}: {largest:e}"
        );
    }
}

/// Sizes that are odd after one halving or more, as pictures are whose sides are no multiples of 64.
#[test]
fn bands_make_the_latents_that_the_whole_makes() {
    if !runs_native_graphs() {
        return;
    }
    let (_guard, synthetic) = synthetic("sd15");
    let (_other, whole_numbers) = synthetic_as("sd15", Precision::Int8);
    for (model, height, width) in [
        (demo_model(), 64, 64),
        (demo_model(), 520, 392),
        (&*synthetic, 296, 648),
        (&*whole_numbers, 72, 104),
    ] {
        let picture = latents(height, width);
        let picture = picture.slice(s![.., ..3, .., ..]).mapv(|x| x / 3.0);
        let encoder = ("vae_encoder", "sample", "latent_parameters");
        let [whole, bands] =
            [false, true].map(|in_bands| made(engine(), model, encoder, &picture, in_bands));
        assert_eq!(bands.shape(), [1, 8, height / 8, width / 8]);
        let most = whole.iter().fold(0f32, |most, x| most.max(x.abs()));
        let distances = whole.iter().zip(&bands).map(|(a, b)| (a - b).abs());
        let largest = distances.fold(0.0, f32::max);
        // What is rounded to 17 bits some ten times.
        assert!(
            largest < 1e-3 * most,
            "{height}x{width}: {largest:e} of {most}"
        );
    }
}

#[test]
fn threads_do_not_change_what_bands_make() {
    if !runs_native_graphs() {
        return;
    }
    let latents = latents(40, 41);
    let all = decoded(engine(), demo_model(), &latents, true);
    for part in engine().split(NonZero::new(2).unwrap()) {
        assert_eq!(decoded(&part, demo_model(), &latents, true), all);
    }
}

#[test]
fn a_picture_in_bands_is_the_whole_one_and_says_how_it_was_made() {
    if !runs_native_graphs() {
        return;
    }
    let whole = Request {
        steps: Some(2),
        ..circle()
    };
    let bands = Request {
        tile: true,
        ..whole.clone()
    };
    let [whole, bands] = [whole, bands].map(|request| make(demo_model(), &request, None).unwrap());
    let (a, b) = (&whole.pictures[0].rgb, &bands.pictures[0].rgb);
    assert!(a.iter().zip(b).all(|(&a, &b)| a.abs_diff(b) <= 1));
    let models = Models::one(ModelDir::open(demo_model()).unwrap());
    let request = Request {
        tile: true,
        ..circle()
    };
    let plans = Plans::resolve(&request, &models, memory::limit()).unwrap();
    assert_eq!(plans.plans[0].infotext.get("VAE tiling"), Some("True"));
}

#[test]
fn portable_graphs_do_not_work_in_bands() {
    let request = Request {
        tile: true,
        graph: Dialect::Portable,
        ..circle()
    };
    let error = make(demo_model(), &request, None).unwrap_err();
    assert_eq!(error.hint(), Some(Remedy::TileNatively));
    let text = error.to_string();
    assert!(
        text.contains("vae_decoder") && text.contains("bands"),
        "{text}"
    );
}

#[test]
fn bands_of_a_picture_are_left_out_where_nobody_has_them() {
    let models = Models::one(ModelDir::open(demo_model()).unwrap());
    let reach = |is_given| {
        let mut request = Request {
            tile: true,
            graph: Dialect::Native,
            ..circle()
        };
        let left_out = within_reach(
            &mut request,
            &models,
            Ep::OpenVino,
            [false, false, is_given],
        );
        let told = left_out.iter().any(|it| it.field == "VAE tiling");
        (request.tile, told)
    };
    assert_eq!([false, true].map(reach), [(false, true), (true, false)]);
}

#[test]
fn what_has_no_convolutions_is_refused() {
    if !runs_native_graphs() {
        return;
    }
    let model = ModelDir::open(demo_model()).unwrap();
    let wish = (Dialect::Native, Compute::F32);
    let (key, _) = model.key("text_encoder", &[], Ep::Cpu, wish).unwrap();
    let leased = engine().lease(&key.in_bands(true), model.manifest.as_ref(), &Cancel::new());
    assert!(matches!(leased, Err(EngineError::NotInBands { .. })));
}

#[test]
fn a_picture_that_fits_in_bands_only_is_told_so() {
    if !runs_native_graphs() {
        return;
    }
    let models = Models::one(ModelDir::open(demo_model()).unwrap());
    let request = |tile| Request {
        width: Some(2048),
        height: Some(2048),
        tile,
        ..circle()
    };
    let resolve = |tile, limit| Plans::resolve(&request(tile), &models, limit);
    let [whole, bands] = [false, true].map(|tile| resolve(tile, u64::MAX).unwrap().memory.total);
    assert!(bands < whole / 3 + 1, "{bands} of {whole}");
    let error = resolve(false, bands).unwrap_err();
    assert!(matches!(error, PipelineError::Memory { .. }));
    assert_eq!(error.hint(), Some(Remedy::Tile));
    resolve(true, bands).unwrap();
    assert_ne!(
        resolve(true, bands / 2).unwrap_err().hint(),
        Some(Remedy::Tile)
    );
}

/// Whoever ended a picture does not end the next one.
#[test]
fn a_wish_to_stop_ends_one_run_only() {
    if !runs_native_graphs() {
        return;
    }
    let latents = latents(40, 40);
    let model = ModelDir::open(demo_model()).unwrap();
    let dims = [("batch", 1), ("height", 40), ("width", 40)];
    let wish = (Dialect::Native, Compute::F32);
    let (key, _) = model.key("vae_decoder", &dims, Ep::Cpu, wish).unwrap();
    let key = key.in_bands(true);
    let manifest = model.manifest.as_ref();
    let mut network = engine().lease(&key, manifest, &Cancel::new()).unwrap();
    let input = [("latent_sample", Input::F32(latents.view().into_dyn()))];
    let cancel = Cancel::new();
    thread::scope(|scope| {
        let other = cancel.clone();
        scope.spawn(move || other.cancel());
        let ended = network.run(&input, &["sample"], &cancel);
        assert!(matches!(ended, Ok(_) | Err(EngineError::Interrupted)));
    });
    network.run(&input, &["sample"], &Cancel::new()).unwrap();
}
