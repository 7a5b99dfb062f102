//! What can be done about errors, in the words of this command line.

use std::error::Error;

use sd_converter::Remedy;

/// What can be done about an error of the library, if that is known.
pub(crate) fn hint(error: &(dyn Error + 'static)) -> Option<String> {
    Remedy::of(error).map(|remedy| words(&remedy))
}

/// How a remedy is asked for here.
pub(crate) fn words(remedy: &Remedy) -> String {
    let fixed = match remedy {
        Remedy::AsLora => "it is added to a model with `sdconvert build MODEL --lora FILE`",
        Remedy::BesideItsModel => {
            "it is a ControlNet: `sdconvert build FILE --base MODEL` converts it"
        }
        Remedy::MergeOrExtract => {
            "it is a whole model; `sdconvert merge` mixes models, `sdconvert extract` makes a LoRA of their difference"
        }
        Remedy::RunIt => {
            "it is converted already: `sdrun txt2img -m FOLDER` makes pictures with the folder of such a model; to convert again, give the checkpoint that it was made from"
        }
        Remedy::GiveVae { why } => return format!("{why}; give one with `--vae FILE`"),
        Remedy::AsVae => {
            "this looks like a VAE; give it with `--vae` beside a checkpoint, or convert it alone with `--only vae`"
        }
        Remedy::TextEncodersOfOther { family, path, vae } => {
            return format!(
                "{family} needs one; `sdconvert merge {} MODEL --alpha 0 --te-from b{} -o whole.safetensors` takes it from a whole model",
                path.display(),
                if *vae { " --vae-from b" } else { "" },
            );
        }
        Remedy::AllowPartial { effect } => return format!("`--allow-partial` {effect}"),
        Remedy::NormalWeights => "leave out `--ema` to use the normal weights",
        Remedy::NoVariant => "it has no variants; leave out `--variant`",
        Remedy::KeepFirst => "`--missing keep-a` keeps the first model's weight",
        Remedy::GiveBase => "give the model with `--base FILE`",
        Remedy::SmallestDifference { largest } => {
            return format!(
                "their text encoders differ by up to {largest:.1e}; `--min-diff 0` takes those"
            );
        }
        Remedy::ChooseRank => "`--rank N` makes the best factors of rank N",
        Remedy::OtherStorage => "`--storage bf16` or `f32` can hold it",
        Remedy::Calibrate => {
            "the same command without `--portable` and `--ranges` makes the model that `sdrun calibrate` takes"
        }
        Remedy::Replace => "`--force` replaces it",
        Remedy::OtherFolder => "choose another folder with `-o`",
        Remedy::MakeRoom => {
            "make room on that disk, or choose another; a conversion takes about as much as the checkpoint is large"
        }
        other => return other.to_string(),
    };
    fixed.to_owned()
}
