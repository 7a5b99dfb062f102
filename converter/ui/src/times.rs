//! How long phases took: the libraries' spans, told when they end.

use std::fmt::{self, Write};
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Writes a line such as `encode: load (component text_encoder): 0.31 s` for every span of ours that ends: the phases around it,
/// itself, its fields.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PhaseTimes;

/// When a phase began, and its fields.
struct Phase {
    start: Instant,
    fields: Fields,
}

/// Fields as `name value, name value`.
#[derive(Default)]
struct Fields(String);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let comma = if self.0.is_empty() { "" } else { ", " };
        let _ = write!(self.0, "{comma}{} {value:?}", field.name());
    }
}

impl PhaseTimes {
    /// Whether a span is a phase of one of our libraries.
    fn concerns(attributes: &Attributes<'_>) -> bool {
        let metadata = attributes.metadata();
        *metadata.level() <= Level::INFO && metadata.target().starts_with("sd_")
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for PhaseTimes {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if Self::concerns(attributes) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            let start = Instant::now();
            span.extensions_mut().insert(Phase { start, fields });
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else {
            return;
        };
        let extensions = span.extensions();
        let Some(phase) = extensions.get::<Phase>() else {
            return;
        };
        let names: Vec<&str> = span.scope().from_root().map(|span| span.name()).collect();
        let fields = match phase.fields.0.as_str() {
            "" => String::new(),
            fields => format!(" ({fields})"),
        };
        let seconds = phase.start.elapsed().as_secs_f64();
        crate::say(&format!("{}{fields}: {seconds:.2} s", names.join(": ")));
    }
}
