//! Layers as nodes: what a network is made of before it is decided which operators compute it.

use super::{Conv, DType, Dim, GraphBuilder, Op, Result, Value};

/// A layer. Pictures are [N, C, h, w], tokens [N, s, C]; parameters are operands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layer {
    /// Convolution of pictures; `weight` [O, C, k, k], maybe `bias` `[O]`.
    Conv2d(Conv),
    /// `x W^T + b` over the last dimension; `weight` [out, in], read as [in, out], maybe `bias` `[out]`.
    Linear,
    /// GroupNorm (Wu and He 2018) of pictures; `weight` and `bias` `[C]`.
    GroupNorm {
        /// Groups of channels.
        groups: usize,
        /// Added to the variance.
        epsilon: f32,
    },
    /// LayerNorm (Ba et al. 2016) over the last dimension; `weight` and `bias` `[C]`.
    LayerNorm {
        /// Added to the variance.
        epsilon: f32,
    },
    /// `x * sigmoid(x)` (Elfwing et al. 2017), also called swish.
    Silu,
    /// `x * Phi(x)`, exact (Hendrycks and Gimpel 2016).
    Gelu,
    /// `x * sigmoid(1.702 x)`, the approximation CLIP was trained with.
    QuickGelu,
    /// The first half of the last dimension, times the GELU of the second (Shazeer 2020).
    Geglu,
    /// `softmax(q k^T / sqrt(d) + mask) v` (Vaswani et al. 2017) of `q` [N, s, heads * d], `k` and `v` [N, t, heads * d],
    /// maybe with a mask that broadcasts to [N, heads, s, t].
    Attention {
        /// Heads, side by side in the last dimension.
        heads: usize,
        /// How ONNX operators do it; the result is the same.
        scores: Scores,
    },
    /// Pictures to tokens [N, h * w, C].
    ToTokens,
    /// Tokens to pictures of the shape of the second operand.
    ToPixels,
    /// Nearest-neighbour enlargement of pictures: to the height and width of the second operand, or to twice the size.
    Upsample,
    /// Pictures plus a vector of their channels [1 or N, C].
    AddVector,
}

/// What portable attention holds in memory at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// The scores of all heads.
    Together,
    /// The scores of one head: between the pixels of a picture, those of all heads would be the largest tensor of the
    /// network, 0.5 GB at 64x64.
    ByHead,
}

impl Layer {
    /// Name in nodes' names and dumps.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Conv2d(_) => "Conv2d",
            Self::Linear => "Linear",
            Self::GroupNorm { .. } => "GroupNorm",
            Self::LayerNorm { .. } => "LayerNorm",
            Self::Silu => "Silu",
            Self::Gelu => "Gelu",
            Self::QuickGelu => "QuickGelu",
            Self::Geglu => "Geglu",
            Self::Attention { .. } => "Attention",
            Self::ToTokens => "ToTokens",
            Self::ToPixels => "ToPixels",
            Self::Upsample => "Upsample",
            Self::AddVector => "AddVector",
        }
    }
}

impl GraphBuilder {
    /// Adds a layer; optional operands that are absent are left out at the end.
    ///
    /// # Errors
    /// Operands whose shapes do not fit the layer.
    pub fn layer(&mut self, layer: Layer, operands: &[Value]) -> Result<Value> {
        let shape = self.layer_shape(layer, operands)?;
        let inputs = operands.iter().copied().map(Some).collect();
        let outputs = vec![(DType::F32, shape)];
        Ok(self.any_node(Op::Layer(layer), inputs, outputs, vec![])[0])
    }

    fn layer_shape(&self, layer: Layer, operands: &[Value]) -> Result<Vec<Dim>> {
        let x = operands[0];
        let shape = self.shape(x).to_vec();
        let impossible = |reason: &str| Err(self.impossible(layer.name(), operands, reason));
        match layer {
            Layer::Conv2d(conv) => self.conv_shape(x, operands[1], conv),
            Layer::Linear => self.matmul_shape(x, operands[1]),
            Layer::GroupNorm { groups, .. } => {
                if self.fixed_dim(x, 1)? % groups == 0 {
                    Ok(shape)
                } else {
                    impossible(&format!("the channels must be a multiple of {groups}"))
                }
            }
            Layer::LayerNorm { .. } => {
                self.same_width(x, operands[1])?;
                Ok(shape)
            }
            Layer::Silu | Layer::Gelu | Layer::QuickGelu => Ok(shape),
            Layer::Geglu => {
                let width = self.fixed_dim(x, shape.len() - 1)?;
                Ok(with_last(shape, width / 2))
            }
            Layer::Attention { heads, .. } => {
                if self.fixed_dim(x, 2)? % heads == 0 {
                    Ok(shape)
                } else {
                    impossible(&format!("the width must be a multiple of {heads} heads"))
                }
            }
            Layer::ToTokens => {
                let channels = self.fixed_dim(x, 1)?;
                Ok(vec![shape[0].clone(), Dim::Unknown, channels.into()])
            }
            Layer::ToPixels => {
                let like = self.shape(operands[1]);
                match like.len() == 4 && like[1].agrees(&shape[2]) {
                    true => Ok(like.to_vec()),
                    false => impossible("the picture must have the tokens' channels"),
                }
            }
            Layer::Upsample => {
                self.fixed_dim(x, 1)?;
                let like = operands.get(1).map(|&like| self.shape(like));
                Ok(upsampled(&shape, like))
            }
            Layer::AddVector => match self.shape(operands[1]) {
                [_, channels] if channels.agrees(&shape[1]) => Ok(shape),
                _ => impossible("the vector must have the picture's channels"),
            },
        }
    }
}

fn with_last(mut shape: Vec<Dim>, size: usize) -> Vec<Dim> {
    let last = shape.len() - 1;
    shape[last] = Dim::Fixed(size);
    shape
}

/// Shape of a picture [N, C, h, w] after enlargement to the size of `like`, or to twice its size.
pub(super) fn upsampled(shape: &[Dim], like: Option<&[Dim]>) -> Vec<Dim> {
    let twice = |d: &Dim| d.fixed().map_or(Dim::Unknown, |n| Dim::Fixed(2 * n));
    let side = |axis: usize| like.map_or_else(|| twice(&shape[axis]), |like| like[axis].clone());
    vec![shape[0].clone(), shape[1].clone(), side(2), side(3)]
}
