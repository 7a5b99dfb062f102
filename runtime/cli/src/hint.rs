//! What can be done about errors, in the words of this command line.

use std::error::Error;

use sd_converter::Remedy as Conversion;
use sd_runtime::engine::{Ep, setup};
use sd_runtime::{Remedy, WantedLora};

/// What can be done about an error of the libraries, if that is known.
pub(crate) fn hint(error: &(dyn Error + 'static)) -> Option<String> {
    let runtime = Remedy::of(error).map(|remedy| words(&remedy));
    // Only the demo model is converted here, and without options.
    runtime.or_else(|| Some(Conversion::of(error)?.to_string()))
}

/// [`hint`] for who wrote a request in JSON, whose fields are no options of a command line.
pub(crate) fn hint_in_json(error: &(dyn Error + 'static)) -> Option<String> {
    let field = match Remedy::of(error) {
        Some(Remedy::Bake { checkpoint, loras }) => {
            return Some(format!(
                "{} bakes it in; `\"ignore_lora_tags\": true` goes on without it",
                bake(checkpoint.as_deref(), &loras)
            ));
        }
        Some(Remedy::CheckWeights) => {
            "the model's weights may be damaged (`sdconvert build --strict` tells), or too large for other numbers than those of `\"compute\": \"f32\"`"
        }
        Some(Remedy::TileNatively) => {
            "`\"graph\": \"auto\"` takes the native graph; without `\"tile\": true` any graph decodes, with more memory"
        }
        Some(Remedy::TileOnProcessor) => {
            "`--ep cpu` does; without `\"tile\": true` any provider decodes, with more memory"
        }
        Some(Remedy::GivePng) => "`\"noise\": \"image:FILE\"` takes a PNG",
        _ => return hint(error),
    };
    Some(field.to_owned())
}

/// How a remedy is asked for here.
pub(crate) fn words(remedy: &Remedy) -> String {
    let fixed = match remedy {
        Remedy::Setup { ep: Ep::Cpu } => {
            return format!(
                "`sdrun setup` fetches ONNX Runtime {}",
                setup::version(Ep::Cpu)
            );
        }
        Remedy::Setup { ep } => {
            let version = setup::version(*ep);
            return format!(
                "`sdrun setup --ep {ep}` fetches ONNX Runtime {version} with it, beside the one that is there"
            );
        }
        Remedy::SetupByHand { ep } => {
            return format!(
                "on a machine with a connection, `pip download --no-deps {}`; then here `sdrun setup --lib WHEEL`, with `--lib` before each",
                setup::requirements(*ep).join(" ")
            );
        }
        Remedy::AllowFallback => "without `--strict-ep`, the processor computes them",
        Remedy::OwnLibrary => "give a library or a wheel with `sdrun setup --lib FILE`",
        Remedy::LibraryOf { package } => {
            return format!("give the library of Python's {package} with `--lib`");
        }
        Remedy::Plugin => {
            "`--ep-library FILE` loads a provider's plugin for this machine's devices, such as that of Python's `onnxruntime-ep-openvino` for Intel's"
        }
        Remedy::Convert { checkpoint: None } => {
            "`sdconvert build CHECKPOINT -o DIR` makes model directories"
        }
        Remedy::Convert {
            checkpoint: Some(path),
        } => {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            return format!(
                "run `sdconvert build {} -o {name}-onnx`, then give that folder",
                path.display()
            );
        }
        Remedy::ConvertTaesd => {
            "`sdconvert build taesd_decoder.safetensors -o DIR` makes such directories"
        }
        Remedy::Bake { checkpoint, loras } => {
            return format!(
                "{} bakes it in; `--ignore-lora-tags` goes on without it",
                bake(checkpoint.as_deref(), loras)
            );
        }
        Remedy::OtherVae => {
            "the VAE's weights may be damaged; `sdconvert build --vae FILE` takes another one"
        }
        Remedy::CheckWeights => {
            "the model's weights may be damaged (`sdconvert build --strict` tells), or too large for other numbers than those of `--compute f32`"
        }
        Remedy::ComputeExactly => {
            "`--ep cpu --compute f32` holds larger numbers; if that fails, too, the model's weights may be damaged (`sdconvert build --strict` tells)"
        }
        Remedy::Inpaint => {
            "it is made for inpainting: `sdrun inpaint` is the command that will run it; this version does not have it yet"
        }
        Remedy::Edit => {
            "it edits pictures: `sdrun img2img` is the command that will run it; this version does not have it yet"
        }
        Remedy::GivePng => "`--noise image:FILE` takes a PNG",
        Remedy::Tile => {
            "it fits with `--tile` (in a job, `\"tile\": true`), with which the processor decodes it in bands of rows"
        }
        Remedy::DoNotTile => {
            "`sdconvert build` makes directories that have it; without `--tile` any graph decodes, with more memory"
        }
        Remedy::TileNatively => {
            "`--graph auto` takes the native graph; without `--tile` any graph decodes, with more memory"
        }
        Remedy::TileOnProcessor => {
            "`--ep cpu` does; without `--tile` any provider decodes, with more memory"
        }
        other => return other.to_string(),
    };
    fixed.to_owned()
}

/// The command that converts a model with LoRAs.
fn bake(checkpoint: Option<&str>, loras: &[WantedLora]) -> String {
    let checkpoint = checkpoint.unwrap_or("CHECKPOINT");
    let loras: String = loras.iter().map(option).collect();
    format!("`sdconvert build {checkpoint}{loras} -o DIR`")
}

/// A LoRA as `sdconvert build` takes it.
fn option(lora: &WantedLora) -> String {
    let WantedLora {
        file,
        unet,
        text_encoder,
    } = lora;
    match unet == text_encoder {
        true => format!(" --lora {file}:{unet}"),
        false => format!(" --lora {file}:unet={unet},te={text_encoder}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lora_that_is_missing_gives_the_command_that_bakes_it_in() {
        let lora = |file: &str, unet, text_encoder| WantedLora {
            file: file.to_owned(),
            unet,
            text_encoder,
        };
        let bake = |checkpoint: Option<&str>, loras| {
            let checkpoint = checkpoint.map(str::to_owned);
            words(&Remedy::Bake { checkpoint, loras })
        };
        let one = bake(Some("base.ckpt"), vec![lora("foo.safetensors", 0.5, 0.5)]);
        let command = "`sdconvert build base.ckpt --lora foo.safetensors:0.5 -o DIR`";
        assert!(one.starts_with(command), "{one}");
        let loras = vec![
            lora("foo.safetensors", 0.8, 0.8),
            lora("baz.safetensors", 0.5, 1.0),
        ];
        let two = bake(None, loras);
        let command =
            "build CHECKPOINT --lora foo.safetensors:0.8 --lora baz.safetensors:unet=0.5,te=1 -o";
        assert!(two.contains(command), "{two}");
    }
}
