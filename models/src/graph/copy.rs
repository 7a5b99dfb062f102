//! Copies of graphs, node by node, for passes that write some nodes otherwise.

use std::collections::HashMap;

use super::{Constant, DType, Dim, Graph, GraphBuilder, Node, Result, Value};

/// Writes a graph anew: what of the old one is already in the new one, and the builder of that.
#[derive(Debug)]
pub struct Copier<'a> {
    old: &'a Graph,
    /// Where new nodes go.
    pub builder: GraphBuilder,
    new: HashMap<Value, Value>,
    constants: HashMap<Value, &'a Constant>,
}

impl<'a> Copier<'a> {
    /// An empty copy, called `name`.
    #[must_use]
    pub fn new(old: &'a Graph, name: &str) -> Self {
        Self {
            old,
            builder: GraphBuilder::new(name),
            new: HashMap::new(),
            constants: old.constants.iter().map(|c| (c.value, c)).collect(),
        }
    }

    /// Says which new value an old one has become.
    pub fn bind(&mut self, old: Value, new: Value) {
        self.new.insert(old, new);
    }

    /// The new value of an old one, if there is one already; constants are copied when they are first asked for.
    pub fn find(&mut self, old: Value) -> Option<Value> {
        if let Some(&new) = self.new.get(&old) {
            return Some(new);
        }
        let constant = *self.constants.get(&old)?;
        let info = self.old.info(old);
        let new = self
            .builder
            .constant_of(info.dtype, info.shape.clone(), constant.data.clone());
        self.bind(old, new);
        Some(new)
    }

    /// The new value of an old one.
    ///
    /// # Panics
    /// It has none: nodes are copied in another order than their own.
    #[must_use]
    pub fn get(&mut self, old: Value) -> Value {
        let new = self.find(old);
        new.expect("what a node reads is copied before the node")
    }

    /// Copies a graph input.
    ///
    /// # Errors
    /// The name is taken.
    pub fn input(&mut self, input: Value) -> Result<()> {
        let info = self.old.info(input);
        let new = self
            .builder
            .input_of_shape(&info.name, info.dtype, info.shape.clone())?;
        self.bind(input, new);
        Ok(())
    }

    /// Copies a node as it is.
    ///
    /// # Errors
    /// The name of a graph output is taken.
    pub fn node(&mut self, node: &Node) -> Result<()> {
        let inputs: Vec<Option<Value>> = node
            .inputs
            .iter()
            .map(|input| input.map(|v| self.get(v)))
            .collect();
        if let ([output], [Some(returned)]) = (&node.outputs[..], &inputs[..])
            && self.old.outputs.contains(output)
        {
            let name = &self.old.info(*output).name;
            return self.builder.output(name, *returned);
        }
        let typed = |&v: &Value| {
            let info = self.old.info(v);
            (info.dtype, info.shape.clone())
        };
        let outputs = node.outputs.iter().map(typed).collect();
        let new = self.builder.copy_of(node, inputs, outputs);
        for (&old, new) in node.outputs.iter().zip(new) {
            self.bind(old, new);
        }
        Ok(())
    }

    /// The finished copy.
    #[must_use]
    pub fn finish(self) -> Graph {
        self.builder.finish()
    }
}

impl GraphBuilder {
    /// A node like another graph's, at its place, on other values.
    pub fn copy_of(
        &mut self,
        node: &Node,
        inputs: Vec<Option<Value>>,
        outputs: Vec<(DType, Vec<Dim>)>,
    ) -> Vec<Value> {
        let build = |g: &mut Self| g.any_node(node.op, inputs, outputs, node.attributes.clone());
        self.at(&node.scope, build)
    }
}
