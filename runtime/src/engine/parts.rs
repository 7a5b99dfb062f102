//! Graphs that another graph needs: what depends on the prompt alone, or on the noise level alone, is computed when that
//! changes and remembered, not at every step.

use std::collections::VecDeque;
use std::sync::Arc;

use ndarray::ArrayD;
use ort::value::DynValue;

use super::network::Graph;
use super::{Cancel, EngineError, Input};

/// Sets of inputs whose outputs are remembered: the conditions of a step, and those of the one before.
const REMEMBERED: usize = 4;

/// A part, and what it made of its latest inputs.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) graph: Graph,
    remembered: VecDeque<Remembered>,
}

/// Inputs by name, and what came out.
#[derive(Debug)]
struct Remembered {
    inputs: Vec<(String, Array)>,
    outputs: Arc<Vec<(String, DynValue)>>,
}

#[derive(Debug, PartialEq)]
enum Array {
    F32(ArrayD<f32>),
    Ids(ArrayD<i64>),
}

impl Array {
    fn of(input: &Input<'_>) -> Self {
        match input {
            Input::F32(x) => Self::F32(x.to_owned()),
            Input::Ids(x) => Self::Ids(x.to_owned()),
        }
    }

    fn equals(&self, input: &Input<'_>) -> bool {
        match (self, input) {
            (Self::F32(a), Input::F32(b)) => a == b,
            (Self::Ids(a), Input::Ids(b)) => a == b,
            _ => false,
        }
    }
}

impl Part {
    pub(super) fn new(graph: Graph) -> Self {
        Self {
            graph,
            remembered: VecDeque::new(),
        }
    }

    /// What the part makes of those `inputs` that it has.
    pub(super) fn outputs(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        cancel: &Cancel,
    ) -> Result<Arc<Vec<(String, DynValue)>>, EngineError> {
        let own = inputs.iter().filter(|(name, _)| self.graph.has_input(name));
        let own: Vec<_> = own.collect();
        let same = |remembered: &Remembered| {
            let known = remembered.inputs.iter();
            remembered.inputs.len() == own.len()
                && known
                    .zip(&own)
                    .all(|((a, x), (b, y))| a == b && x.equals(y))
        };
        if let Some(place) = self.remembered.iter().position(same) {
            return Ok(Arc::clone(&self.remembered[place].outputs));
        }
        let values = own.iter().map(|(name, input)| {
            let value = self.graph.value(name, input)?;
            Ok(((*name).to_owned(), value.into()))
        });
        let values = values.collect::<Result<Vec<_>, EngineError>>()?;
        let outputs = Arc::new(self.graph.run(values, cancel)?);
        if self.remembered.len() == REMEMBERED {
            self.remembered.pop_front();
        }
        let inputs = own
            .iter()
            .map(|(name, input)| ((*name).to_owned(), Array::of(input)));
        self.remembered.push_back(Remembered {
            inputs: inputs.collect(),
            outputs: Arc::clone(&outputs),
        });
        Ok(outputs)
    }
}
