//! The graph and the numbers of a picture, where they cannot be had once more.

use sd_kernels::Isa;

use super::NotCarried;
use crate::engine::{Compute, Dialect, Ep};
use crate::pipeline::{Models, Request};

/// Lets a request that came with a picture choose its graph and its numbers itself, as far as the picture's cannot be had with these
/// models, this provider and this processor, and tells what was left out. `given` says whether somebody asked for the graph, for
/// the numbers and for bands of rows, which stay then. A request that cannot be computed at all stays as it is.
///
/// ```no_run
/// use std::path::Path;
///
/// use sd_runtime::engine::{Dialect, Ep};
/// use sd_runtime::pipeline::infotext::within_reach;
/// use sd_runtime::pipeline::{ModelDir, Models, Request};
///
/// let models = Models::one(ModelDir::open(Path::new("model"))?);
/// let mut request = Request { graph: Dialect::Native, ..Request::default() };
/// let left_out = within_reach(&mut request, &models, Ep::Cuda, [false; 3]);
/// assert_eq!((left_out[0].field.as_str(), request.graph), ("Graph", Dialect::Auto));
/// # Ok::<_, sd_runtime::pipeline::PipelineError>(())
/// ```
pub fn within_reach(
    request: &mut Request,
    models: &Models,
    ep: Ep,
    given: [bool; 3],
) -> Vec<NotCarried> {
    let (graph, compute) = (request.graph, request.compute);
    let other_graph = if given[0] { graph } else { Dialect::Auto };
    let other_compute = if given[1] { compute } else { Compute::Auto };
    let nearest = [
        (graph, compute),
        (graph, other_compute),
        (other_graph, compute),
        (other_graph, other_compute),
    ];
    let runs = |wish: &(Dialect, Compute)| {
        wish.1.on(Isa::detect()).is_some()
            && models.all().all(|model| {
                model.key("unet", &[], ep, *wish).is_ok() && model.portable(ep, *wish).is_ok()
            })
    };
    let mut left_out = Vec::new();
    if let Some(wish) = nearest.into_iter().find(runs) {
        (request.graph, request.compute) = wish;
        if request.graph != graph {
            left_out.push(NotCarried::new("Graph", graph.name()));
        }
        if request.compute != compute {
            left_out.push(NotCarried::new("Compute", compute.name()));
        }
    }
    let wish = (request.graph, request.compute);
    let decoder = models.decoder().0.key("vae_decoder", &[], ep, wish);
    if request.tile && !given[2] && !decoder.is_ok_and(|(_, chosen)| chosen.is_native()) {
        request.tile = false;
        left_out.push(NotCarried::new("VAE tiling", "True"));
    }
    left_out
}
