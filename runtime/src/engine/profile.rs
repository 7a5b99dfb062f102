//! ONNX Runtime's profile of a session: a list of events in Chrome's trace format, of which those of nodes are kept.
//!
//! Shapes are those of the tensors that a node reads when it runs. Weights that its kernel has packed when the session was
//! made are not among them: a matrix product with packed weights has one input.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What a graph did while it was profiled.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// File name of the graph.
    pub graph: String,
    /// Its runs, each with those of its nodes in the order in which they ended.
    pub runs: Vec<Vec<NodeRun>>,
}

/// One run of one node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRun {
    /// The node's name; optimizations that join nodes make new ones.
    pub name: String,
    /// The operator, without its domain: `Conv`, `LayerNormalization`.
    pub operator: String,
    /// Time in seconds.
    pub seconds: f64,
    /// Shapes of the inputs that are there, packed weights excepted.
    pub inputs: Vec<Vec<usize>>,
    /// Shapes of the outputs.
    pub outputs: Vec<Vec<usize>>,
    /// What it read and wrote, packed weights excepted.
    pub bytes: u64,
}

/// An event of the file; only nodes' have all that is asked for.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "cat")]
    category: String,
    name: String,
    /// Microseconds.
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: serde_json::Value,
}

/// A tensor's shape under the name of its elements' type. Sequences and other values that are no tensors have none.
type Shapes = Vec<BTreeMap<String, Vec<usize>>>;

/// `args` of a node's event.
#[derive(Deserialize)]
struct Node {
    op_name: String,
    #[serde(default)]
    input_type_shape: Shapes,
    #[serde(default)]
    output_type_shape: Shapes,
    #[serde(default)]
    activation_size: String,
    #[serde(default)]
    parameter_size: String,
    #[serde(default)]
    output_size: String,
}

/// The runs of a graph in a profile, each with those of its nodes in the order in which they ended.
pub(super) fn parse(text: &str) -> serde_json::Result<Vec<Vec<NodeRun>>> {
    const KERNEL: &str = "_kernel_time";
    /// The event of a whole run, which follows those of its nodes.
    const RUN: &str = "model_run";
    let events: Vec<Event> = serde_json::from_str(text)?;
    let (mut runs, mut nodes) = (Vec::new(), Vec::new());
    for event in events {
        match (event.category.as_str(), event.name.strip_suffix(KERNEL)) {
            ("Session", _) if event.name == RUN => runs.push(std::mem::take(&mut nodes)),
            ("Node", Some(name)) => nodes.push(node_run(name, event.dur, event.args)?),
            _ => {}
        }
    }
    Ok(runs)
}

fn node_run(name: &str, microseconds: f64, args: serde_json::Value) -> serde_json::Result<NodeRun> {
    let shapes = |all: Shapes| all.into_iter().flat_map(BTreeMap::into_values).collect();
    let node: Node = serde_json::from_value(args)?;
    let sizes = [
        &node.activation_size,
        &node.parameter_size,
        &node.output_size,
    ];
    let sizes = sizes.iter().filter_map(|size| size.parse::<u64>().ok());
    Ok(NodeRun {
        name: name.to_owned(),
        operator: node.op_name,
        seconds: microseconds / 1e6,
        bytes: sizes.sum(),
        inputs: shapes(node.input_type_shape),
        outputs: shapes(node.output_type_shape),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events as version 1.27 writes them.
    const PROFILE: &str = r#"[
        {"cat": "Session", "pid": 1, "tid": 1, "dur": 400402, "ts": 2, "ph": "X", "name": "model_loading_uri", "args": {}},
        {"cat": "Node", "pid": 1, "tid": 1, "dur": 76, "ts": 3, "ph": "X", "name": "/conv_in.Conv_kernel_time", "args": {
            "input_type_shape": [{"float": [1, 4, 16, 16]}, {"float": [32, 4, 3, 3]}, {"float": [32]}],
            "node_index": "253", "activation_size": "4096", "op_name": "Conv", "parameter_size": "4736",
            "provider": "CPUExecutionProvider", "output_type_shape": [{"float": [1, 32, 16, 16]}],
            "thread_scheduling_stats": "", "output_size": "32768"}},
        {"cat": "Session", "pid": 1, "tid": 1, "dur": 5, "ts": 4, "ph": "X", "name": "model_run", "args": {}}
    ]"#;

    #[test]
    fn runs_and_their_nodes_are_read() {
        let expected = NodeRun {
            name: "/conv_in.Conv".to_owned(),
            operator: "Conv".to_owned(),
            seconds: 76e-6,
            inputs: vec![vec![1, 4, 16, 16], vec![32, 4, 3, 3], vec![32]],
            outputs: vec![vec![1, 32, 16, 16]],
            bytes: 4096 + 4736 + 32768,
        };
        assert_eq!(parse(PROFILE).unwrap(), [[expected]]);
    }
}
