//! How much memory a process may use: the machine's, or what its control group or its own limits leave it. And what networks
//! take of it.

use std::fs;
use std::path::Path;

use sd_models::manifest::Component;
use sysinfo::System;

/// Bytes of memory that a picture takes at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// All of it, of the network that takes most.
    pub total: u64,
    /// What no other picture can use: activations, and weights that are not used as they are stored.
    pub own: u64,
    /// Weights that are mapped from files, of which there is one copy however many pictures are made at the same time.
    pub mapped: u64,
}

impl Needs {
    /// What is enough for both at once.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            total: self.total + other.total,
            own: self.own + other.own,
            mapped: self.mapped + other.mapped,
        }
    }

    /// What is enough for either.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            total: self.total.max(other.total),
            own: self.own.max(other.own),
            mapped: self.mapped.max(other.mapped),
        }
    }
}

/// Bytes that this process can have at most, swap not counted.
#[must_use]
pub fn limit() -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    let groups = Path::new("/sys/fs/cgroup");
    let of_self = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let limits = [
        group_limit(groups, &of_self("cgroup")),
        address_limit(&of_self("limits")),
    ];
    let least = limits.into_iter().flatten().min();
    system.total_memory().min(least.unwrap_or(u64::MAX))
}

/// Address space that programs, libraries, stacks and allocators take beside what is computed with.
const RESERVED: u64 = 500 << 20;

/// The soft limit of a process's address space (`ulimit -v`), as `/proc/PID/limits` tells it.
fn address_limit(limits: &str) -> Option<u64> {
    let mut lines = limits.lines();
    let values = lines.find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = values.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(RESERVED))
}

/// Bytes that a component's loaded network holds at most beside its activations: its weights, in single precision unless
/// the graph's own operators read them as they are stored.
#[must_use]
pub fn network(folder: &Path, variant: &str, recorded: Option<&Component>) -> u64 {
    let Some(recorded) = recorded else {
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        return files
            .filter_map(|file| Some(file.metadata().ok()?.len()))
            .sum();
    };
    let stored: u64 = recorded.files.values().map(|file| file.size).sum();
    let grows = |storage: &String| match storage.as_str() {
        "F32" => 1,
        "I8" => 4,
        _ => 2,
    };
    let widened = recorded.storage.iter().map(grows).max().unwrap_or(1);
    let needs = recorded.variants.get(variant);
    let as_stored = needs.is_some_and(|needs| !needs.custom_domains.is_empty());
    let whole = needs.is_some_and(|needs| needs.multiplies.is_some());
    match (as_stored, whole) {
        (true, _) => stored,
        // ONNX Runtime has its own order of whole numbers beside theirs, and the others in single precision.
        (false, true) => 2 * stored,
        (false, false) => widened * stored,
    }
}

/// The least limit of a process's control group and those around it. `own` is its `/proc/PID/cgroup`: lines of
/// `0::/path` (version 2) or `7:memory:/path` (version 1).
fn group_limit(root: &Path, own: &str) -> Option<u64> {
    let limits = own.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (root, file) = if controllers.is_empty() {
            (root.to_owned(), "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            return None;
        };
        // In a container the path is the host's, but the limit lies at the root.
        let group = root.join(path.trim_start_matches('/'));
        let around = group.ancestors().take_while(|at| at.starts_with(&root));
        let limit = |at: &Path| fs::read_to_string(at.join(file)).ok()?.trim().parse().ok();
        around.filter_map(limit).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sd_models::manifest::{self, Variant};

    use super::*;

    #[test]
    fn limits_of_control_groups_count() {
        let root = tempfile::tempdir().unwrap();
        let set = |group: &str, file: &str, limit: &str| {
            fs::create_dir_all(root.path().join(group)).unwrap();
            fs::write(root.path().join(group).join(file), limit).unwrap();
        };
        let limit = |own: &str| group_limit(root.path(), own);
        set("", "memory.max", "max\n");
        set("user/job", "memory.max", "3000\n");
        set("user", "memory.max", "2000\n");
        assert_eq!(limit("0::/user/job\n"), Some(2000));
        assert_eq!(limit("0::/another\n"), None);
        set("memory", "memory.limit_in_bytes", "900\n");
        assert_eq!(limit("5:cpu:/x\n7:memory:/docker/abc\n"), Some(900));
        assert_eq!(limit(""), None);
    }

    #[test]
    fn halves_count_twice_and_bytes_four_times_unless_the_graph_reads_them() {
        let file = |size| manifest::File {
            size,
            sha256: String::new(),
        };
        let native = Variant {
            opset: 17,
            custom_domains: vec!["sdrt".to_owned()],
            ..Variant::default()
        };
        let mut unet = Component {
            precision: "F32".to_owned(),
            storage: vec!["F16".to_owned()],
            variants: BTreeMap::from([
                ("model.onnx".to_owned(), Variant::default()),
                ("native.onnx".to_owned(), native),
            ]),
            files: BTreeMap::from([
                ("model.onnx".to_owned(), file(1)),
                ("model.onnx_data".to_owned(), file(10)),
            ]),
        };
        let dir = tempfile::tempdir().unwrap();
        let bytes =
            |variant: &str, recorded: Option<&Component>| network(dir.path(), variant, recorded);
        assert_eq!(bytes("model.onnx", Some(&unet)), 22);
        assert_eq!(bytes("native.onnx", Some(&unet)), 11);
        unet.storage = vec!["F16".to_owned(), "I8".to_owned()];
        assert_eq!(bytes("model.onnx", Some(&unet)), 44);
        assert_eq!(bytes("native.onnx", Some(&unet)), 11);
        unet.storage = vec!["F32".to_owned()];
        assert_eq!(bytes("model.onnx", Some(&unet)), 11);
        // Folders of other programs tell by their files only.
        fs::write(dir.path().join("model.onnx"), "abc").unwrap();
        assert_eq!(bytes("model.onnx", None), 3);
    }

    #[test]
    fn limits_of_address_space_count() {
        let limits = |soft: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max cpu time              unlimited            unlimited            seconds   \n\
                 Max address space         {soft}           unlimited            bytes     \n"
            )
        };
        assert_eq!(
            address_limit(&limits("4000000000")),
            Some(4_000_000_000 - RESERVED)
        );
        assert_eq!(address_limit(&limits("unlimited ")), None);
        assert_eq!(address_limit(""), None);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!((1 << 26..1 << 60).contains(&limit()));
    }
}
