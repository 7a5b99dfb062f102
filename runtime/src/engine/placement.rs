//! Which nodes of a graph a provider takes. ONNX Runtime gives the rest to its own kernels, and says so in its log only.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use ort::logging::LogLevel;
use ort::session::builder::SessionBuilder;

use super::{EngineError, Ep, log};

/// What the log of a session that is being made says about nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct Placement(Arc<Mutex<Heard>>);

#[derive(Debug, Default)]
struct Heard {
    /// Whether anything was said.
    told: bool,
    /// Whether the lines that follow are nodes of ONNX Runtime's own kernels.
    listing: bool,
    nodes: Vec<String>,
}

impl Placement {
    /// Listens to a session's log.
    pub(super) fn listen(&self, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        let heard = Arc::clone(&self.0);
        let listener = move |level: LogLevel, category: &str, id: &str, place: &str, text: &str| {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.hear(text);
            if level != LogLevel::Verbose {
                log(level, category, id, place, text);
            }
        };
        let builder = builder.with_log_level(LogLevel::Verbose)?;
        Ok(builder.with_logger(Arc::new(listener))?)
    }

    /// Nodes of the graph `path` that `ep` does not take. They are warned of, or an error if `strict`.
    pub(super) fn left(
        &self,
        ep: Ep,
        path: &Path,
        strict: bool,
    ) -> Result<Vec<String>, EngineError> {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let nodes = std::mem::take(&mut heard.nodes);
        if nodes.is_empty() && heard.told {
            return Ok(nodes);
        }
        let error = EngineError::FellBack {
            path: path.to_owned(),
            ep,
            nodes: nodes.clone(),
        };
        if strict {
            return Err(error);
        }
        tracing::warn!("{error}");
        Ok(nodes)
    }
}

impl Heard {
    /// A line of the log, as versions 1.17 to 1.32 write them.
    fn hear(&mut self, line: &str) {
        const ALL: &str = "All nodes placed on [";
        const SOME: &str = "Node(s) placed on [";
        const OWN: &str = "CPUExecutionProvider]";
        let text = line.trim();
        if let Some(provider) = text.strip_prefix(ALL) {
            self.told = true;
            self.listing = false;
            if provider.starts_with(OWN) {
                self.nodes.push("all of them".to_owned());
            }
        } else if let Some(provider) = text.strip_prefix(SOME) {
            self.told = true;
            self.listing = provider.starts_with(OWN);
        } else if line.starts_with("  ") && self.listing {
            let node = text.strip_suffix("()").unwrap_or(text).trim_end();
            self.nodes.push(node.to_owned());
        } else {
            self.listing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &[&str]) -> Heard {
        let mut heard = Heard::default();
        lines.iter().for_each(|line| heard.hear(line));
        heard
    }

    #[test]
    fn nodes_of_the_cpu_are_heard() {
        let some = heard(&[
            "Node placements",
            " Node(s) placed on [OpenVINOExecutionProvider]. Number of nodes: 1",
            "  OpenVINO-EP-subgraph_1 (OpenVINOExecutionProvider_OpenVINO-EP-subgraph_1_0)",
            " Node(s) placed on [CPUExecutionProvider]. Number of nodes: 2",
            "  Gelu (/a)",
            "  Gelu ()",
            "SaveMLValueNameIndexMapping",
            "  Conv (/b)",
        ]);
        assert!(some.told);
        assert_eq!(some.nodes, ["Gelu (/a)", "Gelu"]);
    }

    #[test]
    fn a_provider_that_takes_all_leaves_nothing() {
        let line = " All nodes placed on [OpenVINOExecutionProvider]. Number of nodes: 1";
        let all = heard(&[line]);
        assert!(all.told && all.nodes.is_empty());
        let none = heard(&[" All nodes placed on [CPUExecutionProvider]. Number of nodes: 9"]);
        assert_eq!(none.nodes.len(), 1);
        let (placement, path) = (Placement::default(), Path::new("model.onnx"));
        let left = |strict| placement.left(Ep::OpenVino, path, strict);
        // Where nothing is told, nobody can say that all is well.
        let error = left(true).unwrap_err().to_string();
        assert!(error.contains("does not tell"), "{error}");
        assert!(left(false).unwrap().is_empty());
    }
}
