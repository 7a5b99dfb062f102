//! Parts of a graph that depend on some inputs only are graphs of their own, which run less often than the rest.
//!
//! What crosses from a part to the rest is an output of the part and an input of the rest, called after the place where it
//! is made. The sums and products are the same, so the results are.

use std::collections::{HashMap, HashSet};

use sd_models::graph::{Copier, Dim, Graph, GraphError, Node, Value};

/// A part to be taken out: what depends on nothing but these inputs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// Follows the graph's name: `unet.prompt`.
    pub(crate) name: &'static str,
    /// Names of graph inputs.
    pub(crate) inputs: &'static [&'static str],
    /// What the rest calls the batch of this part's values, which may be another than its own: guidance has two prompts and
    /// one picture.
    pub(crate) batch: &'static str,
}

/// A graph in parts.
pub(crate) struct Split {
    /// What was taken out, in the order asked for; `None` where nothing depends on those inputs only.
    pub(crate) parts: Vec<Option<Graph>>,
    /// The graph without them.
    pub(crate) rest: Graph,
}

/// Who computes a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// Whoever reads it: it depends on no input.
    Anybody,
    Part(usize),
    Rest,
}

impl Owner {
    /// Who computes what depends on the values of both.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Anybody, owner) | (owner, Self::Anybody) => owner,
            (a, b) if a == b => a,
            _ => Self::Rest,
        }
    }
}

/// Takes `parts` out of a graph.
///
/// # Errors
/// None in practice: the names of places are unique.
pub(crate) fn split(graph: &Graph, parts: &[Part]) -> Result<Split, GraphError> {
    let mut owners: HashMap<Value, Owner> = HashMap::new();
    for &input in &graph.inputs {
        let name = graph.info(input).name.as_str();
        let part = parts.iter().position(|part| part.inputs.contains(&name));
        owners.insert(input, part.map_or(Owner::Rest, Owner::Part));
    }
    let mut node_owners = Vec::new();
    for node in &graph.nodes {
        let operands = node.inputs.iter().flatten();
        let owner_of = |v: &Value| owners.get(v).copied().unwrap_or(Owner::Anybody);
        let owner = operands.map(owner_of).fold(Owner::Anybody, Owner::and);
        owners.extend(node.outputs.iter().map(|&output| (output, owner)));
        node_owners.push(owner);
    }
    let crossing = crossing(graph, parts, &node_owners, &owners);
    let extract = |owner| extract(graph, owner, &node_owners, &crossing);
    let taken = parts.iter().enumerate().map(|(i, part)| {
        let owner = Owner::Part(i);
        if !node_owners.contains(&owner) {
            return Ok(None);
        }
        let mut graph = extract(owner)?;
        graph.name = format!("{}.{}", graph.name, part.name);
        Ok(Some(graph))
    });
    Ok(Split {
        parts: taken.collect::<Result<_, GraphError>>()?,
        rest: extract(Owner::Rest)?,
    })
}

/// A value that one graph makes and another reads.
struct Crossing {
    value: Value,
    maker: Owner,
    name: String,
    /// As the reader sees it.
    shape: Vec<Dim>,
}

fn crossing(
    graph: &Graph,
    parts: &[Part],
    node_owners: &[Owner],
    owners: &HashMap<Value, Owner>,
) -> Vec<Crossing> {
    let mut read: HashSet<Value> = HashSet::new();
    for (node, reader) in graph.nodes.iter().zip(node_owners) {
        let operands = node.inputs.iter().flatten();
        read.extend(operands.filter(|v| owners.get(v).is_some_and(|owner| owner != reader)));
    }
    let mut names = HashSet::new();
    let mut crossing = Vec::new();
    for (node, &maker) in graph.nodes.iter().zip(node_owners) {
        let Owner::Part(part) = maker else { continue };
        for &value in node.outputs.iter().filter(|output| read.contains(output)) {
            let info = graph.info(value);
            let place = node.scope.clone();
            let unique = !place.is_empty() && names.insert(place.clone());
            let seen = |dim: &Dim| match dim {
                Dim::Symbol("batch") => Dim::Symbol(parts[part].batch),
                dim => dim.clone(),
            };
            crossing.push(Crossing {
                value,
                maker,
                name: if unique { place } else { info.name.clone() },
                shape: info.shape.iter().map(seen).collect(),
            });
        }
    }
    crossing
}

/// The nodes of one owner as a graph.
fn extract(
    graph: &Graph,
    owner: Owner,
    node_owners: &[Owner],
    crossing: &[Crossing],
) -> Result<Graph, GraphError> {
    let nodes = needed(graph, owner, node_owners);
    let read: HashSet<Value> = nodes
        .iter()
        .flat_map(|node| &node.inputs)
        .flatten()
        .copied()
        .collect();
    let mut copy = Copier::new(graph, &graph.name);
    for &input in graph.inputs.iter().filter(|&input| read.contains(input)) {
        copy.input(input)?;
    }
    for c in crossing
        .iter()
        .filter(|c| c.maker != owner && read.contains(&c.value))
    {
        let dtype = graph.info(c.value).dtype;
        let input = copy
            .builder
            .input_of_shape(&c.name, dtype, c.shape.clone())?;
        copy.bind(c.value, input);
    }
    for param in graph
        .params
        .iter()
        .filter(|param| read.contains(&param.value))
    {
        let value = copy
            .builder
            .param_like(param, graph.info(param.value).dtype)?;
        copy.bind(param.value, value);
    }
    for node in nodes {
        copy.node(node)?;
    }
    for c in crossing.iter().filter(|c| c.maker == owner) {
        let value = copy.get(c.value);
        copy.builder.output(&c.name, value)?;
    }
    Ok(copy.finish())
}

/// An owner's nodes, and those of anybody that they need, in order.
fn needed<'a>(graph: &'a Graph, owner: Owner, node_owners: &[Owner]) -> Vec<&'a Node> {
    let mut read: HashSet<Value> = HashSet::new();
    let mut nodes = Vec::new();
    for (node, &of) in graph.nodes.iter().zip(node_owners).rev() {
        let wanted = node.outputs.iter().any(|output| read.contains(output));
        if of == owner || (of == Owner::Anybody && wanted) {
            read.extend(node.inputs.iter().flatten());
            nodes.push(node);
        }
    }
    nodes.reverse();
    nodes
}
