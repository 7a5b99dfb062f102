//! An ONNX graph as its bytes have it, as far as it takes to change one when it is loaded.

use std::collections::BTreeSet;

use super::protobuf::{Field, Fields, NO_GRAPH, bytes, varint};

/// A model whose graph becomes what `change` makes of its bytes, and what else that returns.
///
/// # Errors
/// It is no ONNX graph, or as of `change`.
pub(super) fn changed<T>(
    model: &[u8],
    change: impl Fn(&[u8]) -> Result<(Vec<u8>, T), &'static str>,
) -> Result<(Vec<u8>, T), &'static str> {
    let (mut changed, mut told) = (Vec::with_capacity(model.len() + 1024), Err(NO_GRAPH));
    for field in Fields(model) {
        match field? {
            Field {
                number: 7,
                bytes: Some(graph),
                ..
            } => {
                let (graph, tells) = change(graph)?;
                bytes(&mut changed, 7, &graph);
                told = Ok(tells);
            }
            field => changed.extend_from_slice(field.raw),
        }
    }
    Ok((changed, told?))
}

/// A graph's nodes, and its tensors as they are.
pub(super) fn parts(graph: &[u8]) -> Result<(Vec<Node<'_>>, Vec<&[u8]>), &'static str> {
    let (mut nodes, mut tensors) = (Vec::new(), Vec::new());
    for field in Fields(graph) {
        let field = field?;
        match (field.number, field.bytes) {
            (1, Some(node)) => nodes.push(Node::read(node)?),
            (5, Some(tensor)) => tensors.push(tensor),
            _ => {}
        }
    }
    Ok((nodes, tensors))
}

/// Names of the files beside a model that hold its tensors.
///
/// # Errors
/// It is no ONNX graph.
pub(super) fn data_files(model: &[u8]) -> Result<BTreeSet<&[u8]>, &'static str> {
    let mut files = BTreeSet::new();
    for graph in contents(model, 7) {
        for tensor in contents(graph?, 5) {
            for entry in contents(tensor?, 13) {
                let entry = entry?;
                if contents(entry, 1).next().transpose()? == Some(b"location") {
                    files.extend(contents(entry, 2).next().transpose()?);
                }
            }
        }
    }
    Ok(files)
}

/// What is in those fields of a message that have this number.
fn contents(message: &[u8], number: u64) -> impl Iterator<Item = Result<&[u8], &'static str>> {
    Fields(message).filter_map(move |field| match field {
        Ok(field) if field.number == number => field.bytes.map(Ok),
        Ok(_) => None,
        Err(problem) => Some(Err(problem)),
    })
}

/// A node of a graph.
pub(super) struct Node<'a> {
    pub(super) inputs: Vec<&'a [u8]>,
    pub(super) outputs: Vec<&'a [u8]>,
    pub(super) operator: &'a [u8],
    pub(super) domain: &'a [u8],
    pub(super) attributes: Vec<Attribute<'a>>,
}

/// An attribute: one of these is its value.
#[derive(Default)]
pub(super) struct Attribute<'a> {
    pub(super) name: &'a [u8],
    pub(super) float: f32,
    pub(super) int: u64,
    pub(super) text: &'a [u8],
    pub(super) ints: Vec<u64>,
}

impl<'a> Node<'a> {
    pub(super) fn read(node: &'a [u8]) -> Result<Self, &'static str> {
        let mut read = Self {
            inputs: Vec::new(),
            outputs: Vec::new(),
            operator: b"",
            domain: b"",
            attributes: Vec::new(),
        };
        for field in Fields(node) {
            let field = field?;
            match (field.number, field.bytes) {
                (1, Some(name)) => read.inputs.push(name),
                (2, Some(name)) => read.outputs.push(name),
                (4, Some(name)) => read.operator = name,
                (5, Some(attribute)) => read.attributes.push(Attribute::read(attribute)?),
                (7, Some(name)) => read.domain = name,
                _ => {}
            }
        }
        Ok(read)
    }

    pub(super) fn is(&self, domain: &str, operator: &str) -> bool {
        self.domain == domain.as_bytes() && self.operator == operator.as_bytes()
    }

    pub(super) fn makes(&self, name: &[u8]) -> bool {
        self.outputs.contains(&name)
    }

    pub(super) fn output(&self) -> Result<&'a [u8], &'static str> {
        self.outputs.first().copied().ok_or(NO_GRAPH)
    }

    pub(super) fn attribute(&self, name: &str) -> Result<&Attribute<'a>, &'static str> {
        let mut attributes = self.attributes.iter();
        let found = attributes.find(|attribute| attribute.name == name.as_bytes());
        found.ok_or(NO_GRAPH)
    }

    pub(super) fn int(&self, name: &str) -> Result<usize, &'static str> {
        usize::try_from(self.attribute(name)?.int).map_err(|_| NO_GRAPH)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.attribute(name)
            .is_ok_and(|attribute| attribute.int != 0)
    }

    pub(super) fn four(&self, name: &str) -> Result<[usize; 4], &'static str> {
        let ints = &self.attribute(name)?.ints;
        let four = <[u64; 4]>::try_from(&ints[..]).map_err(|_| NO_GRAPH)?;
        Ok(four.map(|n| n as usize))
    }
}

impl<'a> Attribute<'a> {
    fn read(attribute: &'a [u8]) -> Result<Self, &'static str> {
        let mut read = Self::default();
        for field in Fields(attribute) {
            let field = field?;
            match (field.number, field.bytes) {
                (1, Some(name)) => read.name = name,
                (2, None) => {
                    let float = field.raw.last_chunk().ok_or(NO_GRAPH)?;
                    read.float = f32::from_le_bytes(*float);
                }
                (3, None) => read.int = field.number_value,
                (4, Some(text)) => read.text = text,
                (8, None) => read.ints.push(field.number_value),
                (8, Some(mut packed)) => {
                    while !packed.is_empty() {
                        read.ints.push(varint(&mut packed)?);
                    }
                }
                _ => {}
            }
        }
        Ok(read)
    }
}
