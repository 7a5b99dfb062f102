//! A graph as text, one node a line: what tests pin and people read.

use std::fmt;

use super::{Attr, Dim, Graph, Op, custom};

/// `[batch, 4, height, width]`
pub(super) fn shape_text(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().map(ToString::to_string).collect();
    format!("[{}]", dims.join(", "))
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let typed = |v| {
            let info = self.info(v);
            format!("{} {}{}", info.name, info.dtype, shape_text(&info.shape))
        };
        writeln!(f, "graph {}", self.name)?;
        for &input in &self.inputs {
            writeln!(f, "  in  {}", typed(input))?;
        }
        for &output in &self.outputs {
            writeln!(f, "  out {}", typed(output))?;
        }
        for param in &self.params {
            let layout = if param.transposed { " transposed" } else { "" };
            writeln!(f, "  param {} {:?}{layout}", param.name, param.shape)?;
        }
        for node in &self.nodes {
            let inputs: Vec<&str> = node
                .inputs
                .iter()
                .map(|v| v.map_or("-", |v| self.info(v).name.as_str()))
                .collect();
            let outputs: Vec<String> = node.outputs.iter().map(|&v| typed(v)).collect();
            write!(f, "  {} = ", outputs.join(", "))?;
            match node.op {
                Op::Onnx(name) => write!(f, "{name}")?,
                Op::Layer(layer) => write!(f, "{layer:?}")?,
                Op::Custom(name) => write!(f, "{}.{name}", custom::DOMAIN)?,
            }
            write!(f, "({})", inputs.join(", "))?;
            for (name, attr) in &node.attributes {
                match attr {
                    Attr::Float(x) => write!(f, " {name}={x}")?,
                    Attr::Int(x) => write!(f, " {name}={x}")?,
                    Attr::Ints(x) => write!(f, " {name}={x:?}")?,
                    Attr::Text(x) => write!(f, " {name}={x}")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
