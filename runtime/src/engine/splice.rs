//! Vectors of a caller's in place of some that a text encoder looks up: how textual inversions enter graphs that were made
//! without them.
//!
//! A graph that looks up `input_ids` in a table gets one node more, behind the lookup, and two inputs: `vectors` [n, width], and
//! `vector_places` [n, 2], batch and position of each. The file on disk stays as it is. Only those bytes of it are understood
//! that this takes (field numbers are those of `onnx.proto3`); all others are copied.

use super::graph::{Node, changed, parts};
use super::protobuf::{Field, Fields, bytes, number, varint};

/// Name of the input with the vectors.
pub const VECTORS: &str = "vectors";

/// Name of the input with their places.
pub const VECTOR_PLACES: &str = "vector_places";

const INT64: u64 = 7;

/// Operators through which ids remain ids.
const KEEP_IDS: [&str; 5] = ["Cast", "Reshape", "Identity", "Squeeze", "Unsqueeze"];

/// The graph with the additional inputs.
///
/// # Errors
/// It is no ONNX graph, or has no table in which `input_ids` are looked up.
pub(super) fn with_vectors(model: &[u8]) -> Result<Vec<u8>, &'static str> {
    let (spliced, ()) = changed(model, |graph| Ok((splice(graph)?, ())))?;
    Ok(spliced)
}

const NO_TABLE: &str = "it looks up `input_ids` in no table, so textual inversions cannot enter";

impl Node<'_> {
    fn is_one_of(&self, operators: &[&str]) -> bool {
        operators
            .iter()
            .any(|name| name.as_bytes() == self.operator)
    }

    /// The type that a `Cast` makes.
    fn to(&self) -> Option<u64> {
        Some(self.attribute("to").ok()?.int)
    }
}

/// Name, element type and last dimension of a tensor.
fn tensor(initializer: &[u8]) -> Result<(&[u8], u64, u64), &'static str> {
    let (mut name, mut element, mut width) = (&b""[..], 0, 0);
    for field in Fields(initializer) {
        match field? {
            Field {
                number: 1,
                bytes: Some(packed),
                ..
            } => {
                let mut rest = packed;
                while !rest.is_empty() {
                    width = varint(&mut rest)?;
                }
            }
            Field {
                number: 1,
                number_value,
                ..
            } => width = number_value,
            Field {
                number: 2,
                number_value,
                ..
            } => element = number_value,
            Field {
                number: 8,
                bytes: Some(named),
                ..
            } => name = named,
            _ => {}
        }
    }
    Ok((name, element, width))
}

fn splice(graph: &[u8]) -> Result<Vec<u8>, &'static str> {
    let (nodes, tensors) = parts(graph)?;
    let tensors = tensors
        .into_iter()
        .map(tensor)
        .collect::<Result<Vec<_>, _>>()?;
    let (looked_up, element, width) = lookup(&nodes, &tensors).ok_or(NO_TABLE)?;
    let of_table = [looked_up, b".of_table"].concat();
    let mut spliced = Vec::with_capacity(graph.len() + 512);
    for field in Fields(graph) {
        let field = field?;
        match field {
            Field {
                number: 1,
                bytes: Some(node),
                ..
            } if Node::read(node)?.makes(looked_up) => {
                bytes(&mut spliced, 1, &renamed(node, looked_up, &of_table)?);
                let mut scatter = Vec::new();
                bytes(&mut scatter, 1, &of_table);
                bytes(&mut scatter, 1, VECTOR_PLACES.as_bytes());
                bytes(&mut scatter, 1, VECTORS.as_bytes());
                bytes(&mut scatter, 2, looked_up);
                bytes(&mut scatter, 3, b"textual_inversions");
                bytes(&mut scatter, 4, b"ScatterND");
                bytes(&mut spliced, 1, &scatter);
            }
            _ => spliced.extend_from_slice(field.raw),
        }
    }
    bytes(&mut spliced, 11, &input(VECTOR_PLACES, INT64, 2));
    bytes(&mut spliced, 11, &input(VECTORS, element, width));
    Ok(spliced)
}

/// What is looked up for `input_ids`: its name, in the numbers that the network computes in, their type and how many there are.
fn lookup<'a>(
    nodes: &[Node<'a>],
    tensors: &[(&'a [u8], u64, u64)],
) -> Option<(&'a [u8], u64, u64)> {
    let mut ids = vec![&b"input_ids"[..]];
    let mut gather = None;
    for node in nodes {
        match (&node.inputs[..], &node.outputs[..]) {
            ([of, ..], [out]) if node.is_one_of(&KEEP_IDS) && ids.contains(of) => ids.push(out),
            ([table, of], [out]) if node.is_one_of(&["Gather"]) && ids.contains(of) => {
                gather = Some((*table, *out));
                break;
            }
            _ => {}
        }
    }
    let (table, out) = gather?;
    let cast_of_table = nodes
        .iter()
        .find(|node| node.is_one_of(&["Cast"]) && node.makes(table));
    let stored = cast_of_table.map_or(table, |cast| cast.inputs[0]);
    let (_, element, width) = tensors.iter().find(|(name, ..)| *name == stored)?;
    let element = cast_of_table.map_or(Some(*element), Node::to)?;
    // Tables of half precision may be widened after the lookup.
    let mut users = nodes.iter().filter(|node| node.inputs.contains(&out));
    match (users.next(), users.next()) {
        (Some(cast), None) if cast.is_one_of(&["Cast"]) => {
            Some((cast.outputs.first()?, cast.to()?, *width))
        }
        _ => Some((out, element, *width)),
    }
}

/// A node that makes its output under another name.
fn renamed(node: &[u8], from: &[u8], to: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut renamed = Vec::with_capacity(node.len() + to.len());
    for field in Fields(node) {
        match field? {
            Field {
                number: 2,
                bytes: Some(name),
                ..
            } if name == from => bytes(&mut renamed, 2, to),
            field => renamed.extend_from_slice(field.raw),
        }
    }
    Ok(renamed)
}

/// A graph's input [n, width].
fn input(name: &str, element: u64, width: u64) -> Vec<u8> {
    let (mut any, mut fixed, mut shape) = (Vec::new(), Vec::new(), Vec::new());
    bytes(&mut any, 2, b"vector_count");
    number(&mut fixed, 1, width);
    bytes(&mut shape, 1, &any);
    bytes(&mut shape, 1, &fixed);
    let (mut tensor, mut kind, mut input) = (Vec::new(), Vec::new(), Vec::new());
    number(&mut tensor, 1, element);
    bytes(&mut tensor, 2, &shape);
    bytes(&mut kind, 1, &tensor);
    bytes(&mut input, 1, name.as_bytes());
    bytes(&mut input, 2, &kind);
    input
}

#[cfg(test)]
mod tests {
    use super::super::protobuf::NO_GRAPH;
    use super::*;

    /// A node by operator, inputs and output; casts are to half precision.
    fn node(operator: &str, inputs: &[&str], output: &str) -> Vec<u8> {
        let mut node = Vec::new();
        inputs
            .iter()
            .for_each(|name| bytes(&mut node, 1, name.as_bytes()));
        bytes(&mut node, 2, output.as_bytes());
        bytes(&mut node, 4, operator.as_bytes());
        if operator == "Cast" {
            let mut to = Vec::new();
            bytes(&mut to, 1, b"to");
            number(&mut to, 3, 10);
            bytes(&mut node, 5, &to);
        }
        node
    }

    fn model(nodes: &[Vec<u8>]) -> Vec<u8> {
        let (mut graph, mut table, mut model) = (Vec::new(), Vec::new(), Vec::new());
        nodes.iter().for_each(|node| bytes(&mut graph, 1, node));
        number(&mut table, 1, 49408);
        number(&mut table, 1, 768);
        number(&mut table, 2, 1);
        bytes(&mut table, 8, b"table");
        bytes(&mut graph, 5, &table);
        number(&mut model, 1, 8);
        bytes(&mut model, 7, &graph);
        model
    }

    /// Inputs and output of the additional node, and the element type of the vectors.
    fn spliced(nodes: &[Vec<u8>]) -> Result<(Vec<String>, u64), &'static str> {
        let model = with_vectors(&model(nodes))?;
        let graph = Fields(&model)
            .find_map(|field| field.unwrap().bytes)
            .unwrap();
        let text = |name: &[u8]| String::from_utf8(name.to_vec()).unwrap();
        let (mut names, mut element) = (Vec::new(), 0);
        for field in Fields(graph).map(Result::unwrap) {
            match (field.number, field.bytes) {
                (1, Some(node)) => {
                    let node = Node::read(node)?;
                    if node.is_one_of(&["ScatterND"]) {
                        names = node
                            .inputs
                            .iter()
                            .chain(&node.outputs)
                            .map(|name| text(name))
                            .collect();
                    }
                }
                (11, Some(found)) if *found == *input(VECTORS, 1, 768) => element = 1,
                (11, Some(found)) if *found == *input(VECTORS, 10, 768) => element = 10,
                _ => {}
            }
        }
        Ok((names, element))
    }

    #[test]
    fn vectors_enter_behind_the_lookup_in_the_numbers_that_follow() {
        let places = |of: &str| {
            [&*format!("{of}.of_table"), "vector_places", "vectors", of]
                .map(str::to_owned)
                .to_vec()
        };
        let gather = node("Gather", &["table", "input_ids"], "rows");
        let use_rows = node("Add", &["rows", "positions"], "sum");
        assert_eq!(
            spliced(&[gather.clone(), use_rows.clone()]),
            Ok((places("rows"), 1))
        );
        let shaped = [
            node("Gather", &["positions", "constant"], "other"),
            node("Reshape", &["input_ids", "shape"], "ids"),
            node("Gather", &["table", "ids"], "rows"),
            use_rows.clone(),
        ];
        assert_eq!(spliced(&shaped), Ok((places("rows"), 1)));
        let stored = [
            node("Cast", &["table"], "table:f16"),
            node("Gather", &["table:f16", "input_ids"], "rows"),
            use_rows,
        ];
        assert_eq!(spliced(&stored), Ok((places("rows"), 10)));
        let widened = [gather, node("Cast", &["rows"], "wide")];
        assert_eq!(spliced(&widened), Ok((places("wide"), 10)));
    }

    #[test]
    fn other_graphs_and_damaged_ones_are_errors() {
        assert_eq!(
            spliced(&[node("ArgMax", &["input_ids"], "end")]),
            Err(NO_TABLE)
        );
        assert_eq!(with_vectors(b""), Err(NO_GRAPH));
        let whole = model(&[node("Gather", &["table", "input_ids"], "rows")]);
        for length in 1..whole.len() {
            // Whatever comes of it.
            let _ = with_vectors(&whole[..length]);
        }
    }
}
