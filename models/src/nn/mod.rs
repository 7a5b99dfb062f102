//! Layers that own parameter names, as diffusers and transformers spell them.

mod attention;
mod linear;
mod norm;
mod resnet;
mod timestep;
mod transformer;

pub use attention::{Qkv, attention, attention_by_head, masked_attention};
pub use linear::{conv2d, conv2d_no_bias, linear, linear_no_bias};
pub use norm::{group_norm, layer_norm, layer_norms};
pub use resnet::{ResNet, resnet};
pub use timestep::{column, sinusoid, time_embedding};
pub use transformer::{Projection, SpatialTransformer, spatial_transformer};

use crate::graph::{GraphBuilder, Layer, Result, Value};

/// `x * sigmoid(x)` (Elfwing et al. 2017), also called swish.
///
/// # Errors
/// None in practice: any shape will do.
pub fn silu(g: &mut GraphBuilder, x: Value) -> Result<Value> {
    g.layer(Layer::Silu, &[x])
}

/// `x * Phi(x)`, exact (Hendrycks and Gimpel 2016).
///
/// # Errors
/// None in practice: any shape will do.
pub fn gelu(g: &mut GraphBuilder, x: Value) -> Result<Value> {
    g.layer(Layer::Gelu, &[x])
}

/// `x * sigmoid(1.702 x)`, the approximation CLIP was trained with.
///
/// # Errors
/// None in practice: any shape will do.
pub fn quick_gelu(g: &mut GraphBuilder, x: Value) -> Result<Value> {
    g.layer(Layer::QuickGelu, &[x])
}
