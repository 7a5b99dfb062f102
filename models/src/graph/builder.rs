//! Builds a [`Graph`] layer by layer: scopes spell parameter names, one method per operator (in `ops.rs`).

use std::collections::{HashMap, HashSet};

use super::{
    Attr, Constant, ConstantData, DType, Dim, Graph, GraphError, Node, Op, Param, Result, Value,
    ValueInfo,
};

/// A path component: `"conv_in"`, or `("down_blocks", 0)` for `down_blocks.0`.
#[derive(Clone, Debug)]
pub struct Scope(String);

impl From<&str> for Scope {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl From<String> for Scope {
    fn from(name: String) -> Self {
        Self(name)
    }
}

impl From<(&str, usize)> for Scope {
    fn from((name, index): (&str, usize)) -> Self {
        Self(format!("{name}.{index}"))
    }
}

/// Builds a [`Graph`]; every method that adds a node checks its operands' shapes.
#[derive(Debug)]
pub struct GraphBuilder {
    graph: Graph,
    scope: Vec<String>,
    params: HashMap<String, usize>,
    node_names: HashMap<String, usize>,
    boundary_names: HashSet<String>,
}

impl GraphBuilder {
    /// An empty graph called `name`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            graph: Graph {
                name: name.to_owned(),
                inputs: Vec::new(),
                outputs: Vec::new(),
                nodes: Vec::new(),
                params: Vec::new(),
                constants: Vec::new(),
                values: Vec::new(),
            },
            scope: Vec::new(),
            params: HashMap::new(),
            node_names: HashMap::new(),
            boundary_names: HashSet::new(),
        }
    }

    /// Builds layers under a path component: parameters declared inside are called `path.component.name`.
    ///
    /// # Errors
    /// Whatever `build` returns.
    pub fn scope<T>(
        &mut self,
        name: impl Into<Scope>,
        build: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        self.scope.push(name.into().0);
        let result = build(self);
        self.scope.pop();
        result
    }

    /// Builds under a whole path, wherever the builder is: what is written anew keeps the place that it had.
    pub fn at<T>(&mut self, path: &str, build: impl FnOnce(&mut Self) -> T) -> T {
        let outside = std::mem::replace(&mut self.scope, vec![path.to_owned()]);
        let result = build(self);
        self.scope = outside;
        result
    }

    /// Declares a graph input.
    ///
    /// # Errors
    /// The name is taken.
    pub fn input<const N: usize>(
        &mut self,
        name: &str,
        dtype: DType,
        shape: [Dim; N],
    ) -> Result<Value> {
        self.input_of_shape(name, dtype, shape.into())
    }

    /// [`Self::input`] of any rank.
    ///
    /// # Errors
    /// The name is taken.
    pub fn input_of_shape(&mut self, name: &str, dtype: DType, shape: Vec<Dim>) -> Result<Value> {
        self.claim(name)?;
        let value = self.value(name.to_owned(), dtype, shape);
        self.graph.inputs.push(value);
        Ok(value)
    }

    /// Makes `value` the graph output called `name`.
    ///
    /// # Errors
    /// The name is taken.
    pub fn output(&mut self, name: &str, value: Value) -> Result<()> {
        self.claim(name)?;
        let info = self.info(value).clone();
        // A node of its own, so that one value can be returned under two names.
        let result = self.value(name.to_owned(), info.dtype, info.shape);
        let op = Op::Onnx("Identity");
        self.push_node(op, vec![Some(value)], vec![result], Vec::new());
        self.graph.outputs.push(result);
        Ok(())
    }

    /// Declares a parameter of the current scope, read in its checkpoint shape.
    ///
    /// # Errors
    /// It was declared before with another shape.
    pub fn param<const N: usize>(&mut self, name: &str, shape: [usize; N]) -> Result<Value> {
        self.declare(self.path(name), shape.to_vec(), false, DType::F32)
    }

    /// Declares a matrix parameter `[out, in]` that the graph reads as `[in, out]`, the way `MatMul` wants it.
    ///
    /// # Errors
    /// It was declared before with another shape.
    pub fn param_transposed(&mut self, name: &str, shape: [usize; 2]) -> Result<Value> {
        self.declare(self.path(name), shape.to_vec(), true, DType::F32)
    }

    /// Declares another graph's parameter under its name, to be read as `dtype`.
    ///
    /// # Errors
    /// It was declared before with another shape.
    pub fn param_like(&mut self, param: &Param, dtype: DType) -> Result<Value> {
        let Param {
            name,
            shape,
            transposed,
            ..
        } = param.clone();
        self.declare(name, shape, transposed, dtype)
    }

    /// Declares the scales of a parameter whose outputs' weights are whole numbers times a scale each, `[out]`.
    ///
    /// # Errors
    /// They were declared before with another shape.
    pub fn scales_of(&mut self, param: &Param) -> Result<Value> {
        let outputs = vec![param.shape[0]];
        self.declare(param.scales_name(), outputs, false, DType::F32)
    }

    fn declare(
        &mut self,
        name: String,
        shape: Vec<usize>,
        transposed: bool,
        dtype: DType,
    ) -> Result<Value> {
        if let Some(&i) = self.params.get(&name) {
            let first = &self.graph.params[i];
            if first.shape == shape && first.transposed == transposed {
                return Ok(first.value);
            }
            return Err(GraphError::ParamConflict {
                name,
                first: first.shape.clone(),
                second: shape,
            });
        }
        let mut dims: Vec<Dim> = shape.iter().map(|&n| Dim::Fixed(n)).collect();
        if transposed {
            dims.reverse();
        }
        let value = self.value(name.clone(), dtype, dims);
        self.params.insert(name.clone(), self.graph.params.len());
        self.graph.params.push(Param {
            value,
            name,
            shape,
            transposed,
        });
        Ok(value)
    }

    /// A constant of single-precision numbers; equal ones are shared.
    pub fn constant_f32(&mut self, shape: &[usize], data: Vec<f32>) -> Value {
        self.constant(DType::F32, shape, ConstantData::F32(data))
    }

    /// A constant list of integers; equal ones are shared.
    pub fn constant_i64(&mut self, data: &[i64]) -> Value {
        self.constant(DType::I64, &[data.len()], ConstantData::I64(data.to_vec()))
    }

    /// A single-precision scalar; equal ones are shared.
    pub fn scalar(&mut self, x: f32) -> Value {
        self.constant_f32(&[], vec![x])
    }

    fn constant(&mut self, dtype: DType, shape: &[usize], data: ConstantData) -> Value {
        let dims = shape.iter().map(|&n| Dim::Fixed(n)).collect();
        self.constant_of(dtype, dims, data)
    }

    pub(super) fn constant_of(
        &mut self,
        dtype: DType,
        dims: Vec<Dim>,
        data: ConstantData,
    ) -> Value {
        let known = self
            .graph
            .constants
            .iter()
            .find(|c| c.data == data && self.graph.info(c.value).shape == dims);
        if let Some(constant) = known {
            return constant.value;
        }
        let name = format!("constant.{}", self.graph.constants.len());
        let value = self.value(name, dtype, dims);
        self.graph.constants.push(Constant { value, data });
        value
    }

    /// The finished graph.
    #[must_use]
    pub fn finish(self) -> Graph {
        self.graph
    }

    /// Name, type and shape of a value.
    #[must_use]
    pub fn info(&self, value: Value) -> &ValueInfo {
        self.graph.info(value)
    }

    /// Shape of a value.
    #[must_use]
    pub fn shape(&self, value: Value) -> &[Dim] {
        &self.info(value).shape
    }

    /// Channels of an `[N, C, ...]` value, or the width of one whose last dimension is `axis`.
    ///
    /// # Errors
    /// The dimension does not exist or is not fixed.
    pub fn fixed_dim(&self, value: Value, axis: usize) -> Result<usize> {
        let dim = self.shape(value).get(axis).and_then(Dim::fixed);
        dim.ok_or_else(|| {
            self.impossible(
                "layer",
                &[value],
                &format!("dimension {axis} must be known"),
            )
        })
    }

    pub(super) fn node<const N: usize>(
        &mut self,
        op: &'static str,
        inputs: [Value; N],
        shape: Vec<Dim>,
        attributes: Vec<(&'static str, Attr)>,
    ) -> Value {
        let dtype = self.info(inputs[0]).dtype;
        self.typed_node(op, inputs.map(Some).to_vec(), dtype, shape, attributes)
    }

    pub(super) fn typed_node(
        &mut self,
        op: &'static str,
        inputs: Vec<Option<Value>>,
        dtype: DType,
        shape: Vec<Dim>,
        attributes: Vec<(&'static str, Attr)>,
    ) -> Value {
        let outputs = vec![(dtype, shape)];
        self.any_node(Op::Onnx(op), inputs, outputs, attributes)[0]
    }

    /// A node with `count` outputs of one shape.
    pub(super) fn multi_output_node<const N: usize>(
        &mut self,
        op: &'static str,
        inputs: [Value; N],
        shape: &[Dim],
        count: usize,
        attributes: Vec<(&'static str, Attr)>,
    ) -> Vec<Value> {
        let dtype = self.info(inputs[0]).dtype;
        let outputs = vec![(dtype, shape.to_vec()); count];
        let inputs = inputs.map(Some).to_vec();
        self.any_node(Op::Onnx(op), inputs, outputs, attributes)
    }

    /// A node of any kind, with outputs of these types and shapes.
    pub(super) fn any_node(
        &mut self,
        op: Op,
        inputs: Vec<Option<Value>>,
        outputs: Vec<(DType, Vec<Dim>)>,
        attributes: Vec<(&'static str, Attr)>,
    ) -> Vec<Value> {
        let new = |(dtype, shape)| self.value(String::new(), dtype, shape);
        let outputs: Vec<Value> = outputs.into_iter().map(new).collect();
        let name = self.push_node(op, inputs, outputs.clone(), attributes);
        for (i, output) in outputs.iter().enumerate() {
            self.graph.values[output.index()].name = format!("{name}:{i}");
        }
        outputs
    }

    fn push_node(
        &mut self,
        op: Op,
        inputs: Vec<Option<Value>>,
        outputs: Vec<Value>,
        attributes: Vec<(&'static str, Attr)>,
    ) -> String {
        let base = format!("/{}", self.path(op.name()));
        let count = self.node_names.entry(base.clone()).or_default();
        let name = if *count == 0 {
            base
        } else {
            format!("{base}_{count}")
        };
        *count += 1;
        self.graph.nodes.push(Node {
            op,
            name: name.clone(),
            scope: self.scope.join("."),
            inputs,
            outputs,
            attributes,
        });
        name
    }

    /// The error of a layer whose operands do not fit.
    #[must_use]
    pub fn impossible(&self, op: &'static str, operands: &[Value], reason: &str) -> GraphError {
        let shapes: Vec<String> = operands
            .iter()
            .map(|&v| super::dump::shape_text(self.shape(v)))
            .collect();
        GraphError::Shape {
            scope: self.scope.join("."),
            op,
            shapes: shapes.join(" and "),
            reason: reason.to_owned(),
        }
    }

    fn value(&mut self, name: String, dtype: DType, shape: Vec<Dim>) -> Value {
        let value = Value(
            u32::try_from(self.graph.values.len()).expect("a graph has fewer than 2^32 values"),
        );
        self.graph.values.push(ValueInfo { name, dtype, shape });
        value
    }

    fn claim(&mut self, name: &str) -> Result<()> {
        if self.boundary_names.insert(name.to_owned()) {
            Ok(())
        } else {
            Err(GraphError::DuplicateName {
                name: name.to_owned(),
            })
        }
    }

    fn path(&self, name: &str) -> String {
        let mut path = self.scope.join(".");
        if !path.is_empty() {
            path.push('.');
        }
        path + name
    }
}
