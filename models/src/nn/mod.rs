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

use crate::graph::{GraphBuilder, Result, Value};

/// `x * sigmoid(x)` (Elfwing et al. 2017), also called swish.
///
/// # Errors
/// None in practice: the operands have one shape.
pub fn silu(g: &mut GraphBuilder, x: Value) -> Result<Value> {
    let gate = g.sigmoid(x);
    g.mul(x, gate)
}

/// `x * Phi(x)`, exact (Hendrycks and Gimpel 2016).
///
/// # Errors
/// None in practice: the operands have one shape.
pub fn gelu(g: &mut GraphBuilder, x: Value) -> Result<Value> {
    let sqrt_2 = g.scalar(std::f32::consts::SQRT_2);
    let z = g.div(x, sqrt_2)?;
    let erf = g.erf(z);
    let one = g.scalar(1.0);
    let phi_twice = g.add(erf, one)?;
    let y = g.mul(x, phi_twice)?;
    let half = g.scalar(0.5);
    g.mul(y, half)
}

/// `x * sigmoid(1.702 x)`, the approximation CLIP was trained with.
///
/// # Errors
/// None in practice: the operands have one shape.
pub fn quick_gelu(g: &mut GraphBuilder, x: Value) -> Result<Value> {
    let factor = g.scalar(1.702);
    let z = g.mul(x, factor)?;
    let gate = g.sigmoid(z);
    g.mul(x, gate)
}
