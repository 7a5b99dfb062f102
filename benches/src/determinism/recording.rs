//! The inside of a picture's making as a file, so that another process or machine can be compared with it.
//!
//! It is a safetensors file. Its metadata holds `Version`, as every dump of these programs does, and `determinism`, which is
//! [`About`] in JSON. All numbers that were computed are there, so a recording speaks for itself: who compares needs neither the
//! machine nor the model.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use ndarray::{Array, Array2, Array3, Array4, ArrayView, Dimension};
use safetensors::tensor::{Dtype, SafeTensors, View};
use sd_runtime::denoise::{Latents, Level};
use serde::{Deserialize, Serialize};

use super::identity::Identity;
use super::way::Way;

/// Version of the layout: changes when a tensor or name goes or means something else.
pub(crate) const LAYOUT: u32 = 1;

/// Where the metadata has [`About`].
const KEY: &str = "determinism";

/// What a recording is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct About {
    /// [`LAYOUT`]
    pub(crate) layout: u32,
    /// Version of these programs.
    pub(crate) version: String,
    /// The request, with nothing left open that a way does not choose.
    pub(crate) request: serde_json::Map<String, serde_json::Value>,
    pub(crate) model: Identity,
    pub(crate) way: Way,
    pub(crate) machine: Machine,
    /// Dialect of the UNet's graph: `portable` or `native`.
    pub(crate) graph: String,
    /// What its products were computed in: `f32`, `bf16`, `i16` or `i8`.
    pub(crate) compute: String,
    /// What the UNet's weights are stored in; nothing is known of folders of other programs.
    pub(crate) storage: Vec<String>,
    /// Shape of the latents.
    pub(crate) latent_shape: [usize; 4],
    /// Width and height of the picture in pixels.
    pub(crate) size: [usize; 2],
    /// Calls of the denoiser.
    pub(crate) calls: usize,
    /// Steps of the solver.
    pub(crate) steps: usize,
    /// Prompts that the UNet was told, the negative one last.
    pub(crate) prompts: usize,
    /// Whether it also holds what was made of a reference.
    pub(crate) follows: bool,
}

/// Where a recording was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Name of the processor.
    pub(crate) processor: String,
    /// Instruction level of native graphs.
    pub(crate) instructions: String,
    /// Threads.
    pub(crate) threads: usize,
    /// What ONNX Runtime says of its build.
    pub(crate) onnxruntime: String,
    /// System and architecture.
    pub(crate) system: String,
}

/// What a UNet is told of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Told {
    /// [1, tokens, width]
    pub(crate) context: Array3<f32>,
    /// [1, width], of families that have one.
    pub(crate) pooled: Option<Array2<f32>>,
}

/// Everything that was computed for a picture.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recording {
    pub(crate) about: About,
    /// The first noise, [1, C, h, w].
    pub(crate) noise: Latents,
    /// Prompts, the negative one last.
    pub(crate) told: Vec<Told>,
    /// Noise levels of the calls.
    pub(crate) levels: Vec<Level>,
    /// What each call was given, [calls, C, h, w].
    pub(crate) x: Array4<f32>,
    /// What each call estimated, [calls, C, h, w].
    pub(crate) denoised: Array4<f32>,
    /// The state after each step, [steps, C, h, w].
    pub(crate) states: Array4<f32>,
    /// The clean latents, [1, C, h, w].
    pub(crate) clean: Latents,
    /// The UNet's outputs for what call [`Recording::probe`] was given, [prompts, C, h, w].
    pub(crate) unet: Array4<f32>,
    /// What the decoder made, [3, height, width]; colours are -1 to 1.
    pub(crate) decoded: Array3<f32>,
    /// The picture, [height, width, 3].
    pub(crate) picture: Array3<u8>,
    /// The same way on what a reference recorded.
    pub(crate) followed: Option<Followed>,
}

/// What a way made of a reference's recorded numbers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Followed {
    /// The UNet's outputs for the reference's probe, told what the reference was told, [prompts, C, h, w].
    pub(crate) unet: Array4<f32>,
    /// Open loop: estimates for the states that the reference's calls were given, told the same, [calls of the reference, C, h, w].
    pub(crate) denoised: Array4<f32>,
    /// Closed loop: states after steps that began with the reference's noise and were told the same, [steps, C, h, w].
    pub(crate) states: Array4<f32>,
    /// The decoder alone: what it made of the reference's clean latents, [3, height, width].
    pub(crate) decoded: Array3<f32>,
    /// UNet and decoder: the picture of the closed loop, [3, height, width].
    pub(crate) decoded_closed: Array3<f32>,
    /// Text encoder, UNet and decoder: the picture of the reference's noise, [3, height, width].
    pub(crate) decoded_told: Array3<f32>,
}

impl Recording {
    /// The call whose input the UNet is tried with alone: one in the middle, where pictures get their content.
    pub(crate) fn probe(&self) -> usize {
        self.levels.len() / 2
    }

    /// One call's input, [1, C, h, w].
    pub(crate) fn input(&self, call: usize) -> Latents {
        one(&self.x, call)
    }

    /// The file's bytes.
    pub(crate) fn to_bytes(&self) -> anyhow::Result<Vec<u8>> {
        let mut tensors = Vec::new();
        let mut add = |name: &str, tensor: Stored| tensors.push((name.to_owned(), tensor));
        add("noise", Stored::f32(&self.noise.view()));
        for (i, told) in self.told.iter().enumerate() {
            add(&format!("context.{i}"), Stored::f32(&told.context.view()));
            if let Some(pooled) = &told.pooled {
                add(&format!("pooled.{i}"), Stored::f32(&pooled.view()));
            }
        }
        let levels = self.levels.iter().flat_map(|level| [level.sigma, level.t]);
        add(
            "levels",
            Stored {
                dtype: Dtype::F64,
                shape: vec![self.levels.len(), 2],
                bytes: levels.flat_map(f64::to_le_bytes).collect(),
            },
        );
        add("x", Stored::f32(&self.x.view()));
        add("denoised", Stored::f32(&self.denoised.view()));
        add("states", Stored::f32(&self.states.view()));
        add("clean", Stored::f32(&self.clean.view()));
        add("unet", Stored::f32(&self.unet.view()));
        add("decoded", Stored::f32(&self.decoded.view()));
        add(
            "picture",
            Stored {
                dtype: Dtype::U8,
                shape: self.picture.shape().to_vec(),
                bytes: self.picture.iter().copied().collect(),
            },
        );
        if let Some(followed) = &self.followed {
            add("followed.unet", Stored::f32(&followed.unet.view()));
            add("followed.denoised", Stored::f32(&followed.denoised.view()));
            add("followed.states", Stored::f32(&followed.states.view()));
            for (name, decoded) in [
                ("followed.decoded", &followed.decoded),
                ("followed.decoded_closed", &followed.decoded_closed),
                ("followed.decoded_told", &followed.decoded_told),
            ] {
                add(name, Stored::f32(&decoded.view()));
            }
        }
        let version = format!("sdrt-{}", self.about.version);
        let metadata = HashMap::from([
            ("Version".to_owned(), version),
            (KEY.to_owned(), serde_json::to_string(&self.about)?),
        ]);
        Ok(safetensors::serialize(tensors, Some(metadata))?)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It is no recording, of another layout, or not all there.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::from_bytes(&bytes).with_context(|| path.display().to_string())
    }

    fn from_bytes(bytes: &[u8]) -> anyhow::Result<Self> {
        let about = about(bytes)?;
        let file = SafeTensors::deserialize(bytes)
            .map_err(|e| anyhow!("the recording is damaged or incomplete: {e}"))?;
        let [_, channels, height, width] = about.latent_shape;
        let latents = |count: usize| [count, channels, height, width];
        let pixels = [3, about.size[1], about.size[0]];
        let tensors = Tensors(file);
        let told = |i: usize| {
            let (context, pooled) = (format!("context.{i}"), format!("pooled.{i}"));
            Ok(Told {
                context: tensors.any::<ndarray::Ix3>(&context, "[1, tokens, width]")?,
                pooled: match tensors.0.tensor(&pooled) {
                    Ok(_) => Some(tensors.any::<ndarray::Ix2>(&pooled, "[1, width]")?),
                    Err(_) => None,
                },
            })
        };
        let levels = tensors.numbers("levels", Dtype::F64, &[about.calls, 2])?;
        let levels = levels.as_chunks::<16>().0.iter().map(|pair| {
            let [sigma, t] = [0, 8].map(|at| {
                let bytes = pair[at..at + 8].try_into().expect("8 of 16 bytes");
                f64::from_le_bytes(bytes)
            });
            Level { sigma, t }
        });
        let picture = [about.size[1], about.size[0], 3];
        let bytes = tensors.numbers("picture", Dtype::U8, &picture)?;
        let followed = || -> anyhow::Result<Followed> {
            // How many calls the reference took is the reference's business.
            let denoised = tensors.any("followed.denoised", "[calls, C, h, w]")?;
            let states = tensors.any("followed.states", "[steps, C, h, w]")?;
            for (name, found) in [("denoised", &denoised), ("states", &states)] {
                let found: &Array4<f32> = found;
                let expected = latents(found.dim().0);
                let shape = found.shape();
                ensure!(
                    shape == expected,
                    "`followed.{name}` has shape {shape:?}; expected {expected:?}"
                );
            }
            Ok(Followed {
                unet: tensors.f32("followed.unet", latents(about.prompts))?,
                denoised,
                states,
                decoded: tensors.f32("followed.decoded", pixels)?,
                decoded_closed: tensors.f32("followed.decoded_closed", pixels)?,
                decoded_told: tensors.f32("followed.decoded_told", pixels)?,
            })
        };
        Ok(Self {
            noise: tensors.f32("noise", latents(1))?,
            told: (0..about.prompts)
                .map(told)
                .collect::<anyhow::Result<_>>()?,
            levels: levels.collect(),
            x: tensors.f32("x", latents(about.calls))?,
            denoised: tensors.f32("denoised", latents(about.calls))?,
            states: tensors.f32("states", latents(about.steps))?,
            clean: tensors.f32("clean", latents(1))?,
            unet: tensors.f32("unet", latents(about.prompts))?,
            decoded: tensors.f32("decoded", pixels)?,
            picture: Array::from_shape_vec(picture, bytes.into_owned())?,
            followed: about.follows.then(followed).transpose()?,
            about,
        })
    }
}

/// One latent of several, [1, C, h, w].
pub(crate) fn one(several: &Array4<f32>, i: usize) -> Latents {
    let one = several.index_axis(ndarray::Axis(0), i);
    one.insert_axis(ndarray::Axis(0)).to_owned()
}

/// What a file is of. The layout is looked at before anything else, since another one may have anything.
fn about(bytes: &[u8]) -> anyhow::Result<About> {
    #[derive(Deserialize)]
    struct Layout {
        layout: u32,
    }
    let (_, header) = SafeTensors::read_metadata(bytes)
        .map_err(|e| anyhow!("it is no recording, or damaged or incomplete: {e}"))?;
    let json = header.metadata().as_ref().and_then(|all| all.get(KEY));
    let json = json.context("it is no recording of `sdbench determinism`")?;
    let damaged = "what it says of itself is damaged";
    let Layout { layout } = serde_json::from_str(json).context(damaged)?;
    ensure!(
        layout == LAYOUT,
        "the recording has layout {layout}; this program reads {LAYOUT}: record it again with this version"
    );
    let about: About = serde_json::from_str(json).context(damaged)?;
    let counts = [about.calls, about.prompts, about.latent_shape[0]];
    ensure!(
        !counts.contains(&0),
        "{damaged}: it has no calls, prompts or latents"
    );
    Ok(about)
}

/// The tensors of a file, whose places and sizes agree with each other.
struct Tensors<'a>(SafeTensors<'a>);

impl<'a> Tensors<'a> {
    /// A tensor's bytes.
    fn numbers(&self, name: &str, dtype: Dtype, shape: &[usize]) -> anyhow::Result<Cow<'a, [u8]>> {
        let tensor = self.0.tensor(name);
        let tensor = tensor.map_err(|_| anyhow!("it has no tensor `{name}`"))?;
        let (type_, found) = (tensor.dtype(), tensor.shape());
        ensure!(
            found == shape && type_ == dtype,
            "`{name}` is {type_:?} of shape {found:?}; expected {dtype:?} of {shape:?}"
        );
        Ok(Cow::Borrowed(tensor.data()))
    }

    /// A tensor of this shape.
    fn f32<const N: usize, D: Dimension>(
        &self,
        name: &str,
        shape: [usize; N],
    ) -> anyhow::Result<Array<f32, D>>
    where
        [usize; N]: ndarray::IntoDimension<Dim = D>,
    {
        let bytes = self.numbers(name, Dtype::F32, &shape)?;
        let numbers = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        let numbers: Vec<f32> = numbers.collect();
        if let Some(wrong) = numbers.iter().find(|x| !x.is_finite()) {
            bail!("`{name}` holds {wrong}, which no run leaves behind");
        }
        Ok(Array::from_shape_vec(shape, numbers)?)
    }

    /// A tensor of so many dimensions.
    fn any<D: Dimension>(&self, name: &str, expected: &str) -> anyhow::Result<Array<f32, D>> {
        let tensor = self.0.tensor(name);
        let tensor = tensor.map_err(|_| anyhow!("it has no tensor `{name}`"))?;
        let shape = tensor.shape();
        let array: Array<f32, ndarray::IxDyn> = match *shape {
            [a, b] => self.f32(name, [a, b])?.into_dyn(),
            [a, b, c] => self.f32(name, [a, b, c])?.into_dyn(),
            [a, b, c, d] => self.f32(name, [a, b, c, d])?.into_dyn(),
            _ => bail!("`{name}` has shape {shape:?}; expected {expected}"),
        };
        let array = array.into_dimensionality();
        array.map_err(|_| anyhow!("`{name}` has shape {shape:?}; expected {expected}"))
    }
}

/// A tensor as it is written.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    fn f32<D: Dimension>(tensor: &ArrayView<'_, f32, D>) -> Self {
        Self {
            dtype: Dtype::F32,
            shape: tensor.shape().to_vec(),
            bytes: tensor.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
