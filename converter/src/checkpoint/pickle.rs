//! Pickles, read without running anything.
//!
//! A pickle is a program for a stack machine whose `REDUCE` calls any Python function it names. This machine knows the
//! few functions that PyTorch's own files need, builds plain values for them, and refuses the file at the first other
//! name (Python's `pickletools` documents the opcodes). Values live in one list and refer to each other by position: a
//! value that contains itself costs nothing and nothing recurses over them.

use std::collections::HashMap;

use super::Dtype;
use super::torch_tensor::{StorageRef, TensorRef};
use crate::Remedy;

/// Longest pickle that is read; that of a real checkpoint is below 2 MiB.
pub(super) const MAX_PICKLE: usize = 64 << 20;
/// Most values, stack entries and memoised values.
const MAX_VALUES: usize = 1_000_000;
/// Most entries that are copied or searched, over all calls: a few bytes of pickle could ask for millions each.
const MAX_WORK: usize = 10_000_000;
/// Most dimensions of a tensor.
const MAX_RANK: usize = 8;
/// Longest string.
const MAX_STRING: usize = 1 << 20;

/// What a pickle asks for beyond plain data.
#[derive(Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PickleError {
    /// It names a function that no checkpoint needs.
    #[error(
        "this file asks to run `{global}` while loading (at byte {offset} of its pickle); it will not be loaded"
    )]
    Unsafe {
        /// Position of the opcode.
        offset: usize,
        /// Module and name.
        global: String,
    },
    /// An opcode that no checkpoint needs.
    #[error(
        "its pickle has opcode 0x{opcode:02x} at byte {offset}, which no checkpoint needs; it will not be loaded"
    )]
    Opcode {
        /// Position of the opcode.
        offset: usize,
        /// The opcode.
        opcode: u8,
    },
    /// It is larger than any checkpoint's.
    #[error("its pickle has {what} at byte {offset}, beyond what any checkpoint has")]
    Limit {
        /// Position of the opcode.
        offset: usize,
        /// What there is too much of.
        what: &'static str,
    },
    /// It is no valid pickle.
    #[error("its pickle is damaged at byte {offset}: {problem}")]
    Damaged {
        /// Position of the opcode.
        offset: usize,
        /// What is wrong.
        problem: &'static str,
    },
}

impl PickleError {
    /// What can be done about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<Remedy> {
        match self {
            Self::Unsafe { .. } | Self::Opcode { .. } => {
                Some(Remedy::words("ask for a .safetensors version"))
            }
            Self::Damaged { .. } => {
                Some(Remedy::words("the file may be truncated; fetch it again"))
            }
            Self::Limit { .. } => None,
        }
    }
}

/// Position of a value in [`Pickle::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id(u32);

/// A plain value.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i128),
    Str(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(&'static Global),
    Storage(Box<StorageRef>),
    Tensor(Box<TensorRef>),
    /// Something inert: kept to have something to put into lists.
    Opaque,
}

/// The result of one pickle.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: Id,
    /// Bytes up to and with its last opcode.
    pub(super) length: usize,
}

impl<'a> Pickle<'a> {
    pub(super) fn root(&self) -> &Value<'a> {
        self.get(self.root)
    }

    pub(super) fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id.0 as usize]
    }

    /// The entry of a dictionary with this text as its key.
    pub(super) fn entry(&self, dict: &[(Id, Id)], key: &str) -> Option<&Value<'a>> {
        let found = dict
            .iter()
            .find(|(k, _)| matches!(self.get(*k), Value::Str(text) if *text == key));
        found.map(|(_, value)| self.get(*value))
    }
}

/// What stands for a Python function or class.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Meaning {
    /// `OrderedDict()` and the like.
    Dict,
    List,
    /// The only argument: `int`, `torch.Size`.
    Same,
    RebuildTensor,
    RebuildTensorV3,
    /// The first argument: a parameter is its tensor.
    RebuildParameter,
    Storage(Option<Dtype>),
    ElementType(Option<Dtype>),
    Inert,
}

/// A name that a pickle may use, and what it means.
#[derive(Debug)]
pub(super) struct Global {
    module: &'static str,
    name: &'static str,
    meaning: Meaning,
}

const fn global(module: &'static str, name: &'static str, meaning: Meaning) -> Global {
    Global {
        module,
        name,
        meaning,
    }
}

/// Every name that is accepted. Additions are made one exact name at a time, each with a file as its reason.
static ALLOWED: &[Global] = &{
    use Dtype::{Bf16, Bool, F8E4M3, F8E5M2, F16, F32, F64, I8, I16, I32, I64, U8};
    use Meaning::{
        Dict, ElementType, Inert, List, RebuildParameter, RebuildTensor, RebuildTensorV3, Same,
        Storage,
    };
    [
        global("collections", "OrderedDict", Dict),
        global("collections", "defaultdict", Dict),
        global("builtins", "dict", Dict),
        global("torch.nn.modules.container", "ParameterDict", Dict),
        global("builtins", "set", List),
        global("__builtin__", "set", List),
        global("builtins", "list", List),
        global("builtins", "int", Same),
        global("builtins", "float", Same),
        global("torch", "Size", Same),
        global("torch._utils", "_rebuild_tensor", RebuildTensor),
        global("torch._utils", "_rebuild_tensor_v2", RebuildTensor),
        global("torch._utils", "_rebuild_tensor_v3", RebuildTensorV3),
        global("torch._utils", "_rebuild_parameter", RebuildParameter),
        global(
            "torch._utils",
            "_rebuild_parameter_with_state",
            RebuildParameter,
        ),
        global("torch.nn.parameter", "Parameter", RebuildParameter),
        global("torch", "FloatStorage", Storage(Some(F32))),
        global("torch", "DoubleStorage", Storage(Some(F64))),
        global("torch", "HalfStorage", Storage(Some(F16))),
        global("torch", "BFloat16Storage", Storage(Some(Bf16))),
        global("torch", "LongStorage", Storage(Some(I64))),
        global("torch", "IntStorage", Storage(Some(I32))),
        global("torch", "ShortStorage", Storage(Some(I16))),
        global("torch", "CharStorage", Storage(Some(I8))),
        global("torch", "ByteStorage", Storage(Some(U8))),
        global("torch", "BoolStorage", Storage(Some(Bool))),
        global("torch.storage", "UntypedStorage", Storage(None)),
        global("torch.storage", "TypedStorage", Storage(None)),
        global("torch", "float64", ElementType(Some(F64))),
        global("torch", "float32", ElementType(Some(F32))),
        global("torch", "float16", ElementType(Some(F16))),
        global("torch", "bfloat16", ElementType(Some(Bf16))),
        global("torch", "int64", ElementType(Some(I64))),
        global("torch", "int32", ElementType(Some(I32))),
        global("torch", "int16", ElementType(Some(I16))),
        global("torch", "int8", ElementType(Some(I8))),
        global("torch", "uint8", ElementType(Some(U8))),
        global("torch", "bool", ElementType(Some(Bool))),
        global("torch", "float8_e4m3fn", ElementType(Some(F8E4M3))),
        global("torch", "float8_e5m2", ElementType(Some(F8E5M2))),
        global("torch", "device", Inert),
        global("numpy.core.multiarray", "scalar", Inert),
        global("numpy._core.multiarray", "scalar", Inert),
        global("numpy", "dtype", Inert),
        global("numpy", "ndarray", Inert),
        global("numpy.core.multiarray", "_reconstruct", Inert),
        global("numpy._core.multiarray", "_reconstruct", Inert),
        global("_codecs", "encode", Inert),
        // The original SD 1.x checkpoints use the class as a key of a dictionary.
        global(
            "pytorch_lightning.callbacks.model_checkpoint",
            "ModelCheckpoint",
            Inert,
        ),
        global("pytorch_lightning.callbacks", "model_checkpoint", Inert),
    ]
};

/// Reads the pickle that `bytes` begin with.
///
/// # Errors
/// It asks for anything but plain data and tensors, or is damaged.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle<'_>, PickleError> {
    Machine {
        bytes,
        at: 0,
        opcode_at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        work: 0,
    }
    .run()
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    opcode_at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Entries copied or searched so far.
    work: usize,
}

type Result<T, E = PickleError> = std::result::Result<T, E>;

impl<'a> Machine<'a> {
    fn run(mut self) -> Result<Pickle<'a>> {
        if self.take(1)? != [0x80] {
            return Err(self.damaged("it does not begin with a protocol of 2 or later"));
        }
        if !(2..=5).contains(&self.take(1)?[0]) {
            return Err(self.damaged("its protocol is none of 2 to 5"));
        }
        loop {
            self.opcode_at = self.at;
            let opcode = self.take(1)?[0];
            if self.stack.len().max(self.memo.len()) > MAX_VALUES {
                return Err(self.limit("too many values"));
            }
            match opcode {
                b'.' => {
                    let root = self.pop()?;
                    return Ok(Pickle {
                        values: self.values,
                        root,
                        length: self.at,
                    });
                }
                // A frame's length: only a hint for buffering.
                0x95 => drop(self.take(8)?),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                _ => self
                    .scalar(opcode)
                    .or_else(|| self.collection(opcode))
                    .or_else(|| self.call(opcode))
                    .unwrap_or(Err(PickleError::Opcode {
                        offset: self.opcode_at,
                        opcode,
                    }))?,
            }
        }
    }

    /// Opcodes that push a constant.
    fn scalar(&mut self, opcode: u8) -> Option<Result<()>> {
        let value = match opcode {
            b'N' => Ok(Value::None),
            0x88 => Ok(Value::Bool(true)),
            0x89 => Ok(Value::Bool(false)),
            b'K' => self.int(1, false),
            b'M' => self.int(2, false),
            b'J' => self.int(4, true),
            0x8A => self.length(1).and_then(|n| self.int(n, true)),
            0x8B => self.length(4).and_then(|n| self.int(n, true)),
            b'I' => self.line().and_then(|text| match text {
                "00" => Ok(Value::Bool(false)),
                "01" => Ok(Value::Bool(true)),
                _ => self.parsed(text).map(Value::Int),
            }),
            b'L' => self
                .line()
                .and_then(|text| self.parsed(text.trim_end_matches('L')))
                .map(Value::Int),
            // Numbers with fractions and bytes describe no tensor.
            b'F' => self.line().map(|_| Value::Opaque),
            b'G' => self.take(8).map(|_| Value::Opaque),
            b'S' | b'V' => self.line().and_then(|text| self.unescaped(text)),
            // Strings of Python 2 hold bytes; those of checkpoints are names.
            b'U' | 0x8C => self.length(1).and_then(|n| self.text(n)),
            b'T' | b'X' => self.length(4).and_then(|n| self.text(n)),
            0x8D => self.length(8).and_then(|n| self.text(n)),
            b'C' => self
                .length(1)
                .and_then(|n| self.take(n))
                .map(|_| Value::Opaque),
            b'B' => self
                .length(4)
                .and_then(|n| self.take(n))
                .map(|_| Value::Opaque),
            0x8E | 0x96 => self
                .length(8)
                .and_then(|n| self.take(n))
                .map(|_| Value::Opaque),
            _ => return None,
        };
        Some(value.and_then(|value| self.push(value)))
    }

    /// Opcodes that make and fill tuples, lists, dictionaries, and those of the memo.
    fn collection(&mut self, opcode: u8) -> Option<Result<()>> {
        Some(match opcode {
            b')' => self.push(Value::Tuple(Vec::new())),
            0x85..=0x87 => self
                .pop_many(usize::from(opcode) - 0x84)
                .and_then(|items| self.push(Value::Tuple(items))),
            b't' => self
                .pop_mark()
                .and_then(|items| self.push(Value::Tuple(items))),
            b']' | 0x8F => self.push(Value::List(Vec::new())),
            b'l' | 0x91 => self
                .pop_mark()
                .and_then(|items| self.push(Value::List(items))),
            b'a' => self.pop().and_then(|item| self.extend(vec![item])),
            b'e' | 0x90 => self.pop_mark().and_then(|items| self.extend(items)),
            b'}' => self.push(Value::Dict(Vec::new())),
            b'd' => self
                .pop_mark()
                .and_then(|items| self.pairs(&items))
                .and_then(|pairs| self.push(Value::Dict(pairs))),
            b's' => self.pop_many(2).and_then(|items| self.set_items(&items)),
            b'u' => self.pop_mark().and_then(|items| self.set_items(&items)),
            b'p' => self
                .line()
                .and_then(|text| self.parsed(text))
                .and_then(|i| self.memoise(i)),
            b'q' => self.index(1).and_then(|i| self.memoise(i)),
            b'r' => self.index(4).and_then(|i| self.memoise(i)),
            0x94 => self.memoise(self.memo.len() as u32),
            b'g' => self
                .line()
                .and_then(|text| self.parsed(text))
                .and_then(|i| self.recall(i)),
            b'h' => self.index(1).and_then(|i| self.recall(i)),
            b'j' => self.index(4).and_then(|i| self.recall(i)),
            _ => return None,
        })
    }

    /// Opcodes that name functions and "call" them.
    fn call(&mut self, opcode: u8) -> Option<Result<()>> {
        Some(match opcode {
            b'c' => self
                .line()
                .and_then(|module| Ok((module, self.line()?)))
                .and_then(|(module, name)| self.push_global(module, name)),
            0x93 => self.pop_many(2).and_then(|names| {
                match (self.value(names[0]), self.value(names[1])) {
                    (&Value::Str(module), &Value::Str(name)) => self.push_global(module, name),
                    _ => Err(self.damaged("a function is named by something that is no text")),
                }
            }),
            b'R' | 0x81 => self
                .pop_many(2)
                .and_then(|items| self.reduce(items[0], items[1])),
            b'b' => self.pop().and_then(|state| self.build(state)),
            b'Q' => self.pop().and_then(|id| self.persistent(id)),
            _ => return None,
        })
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<()> {
        match ALLOWED
            .iter()
            .find(|g| g.module == module && g.name == name)
        {
            Some(global) => self.push(Value::Global(global)),
            None => Err(PickleError::Unsafe {
                offset: self.opcode_at,
                global: format!("{module}.{name}"),
            }),
        }
    }

    /// What calling `function` with the tuple `arguments` would give.
    fn reduce(&mut self, function: Id, arguments: Id) -> Result<()> {
        // No function takes more than seven.
        let arguments: Vec<Id> = match self.value(arguments) {
            Value::Tuple(items) => items.iter().take(8).copied().collect(),
            _ => return Err(self.damaged("a call without a tuple of arguments")),
        };
        let meaning = match self.value(function) {
            Value::Global(global) => global.meaning,
            Value::Opaque => Meaning::Inert,
            _ => return Err(self.damaged("a call of something that is no function")),
        };
        let first = arguments.first().copied();
        match meaning {
            Meaning::Dict => {
                // Python 2 gives the items as a list of pairs; `defaultdict` gives what makes missing values.
                let items = match first.map(|id| self.value(id)) {
                    Some(Value::List(items)) => items.clone(),
                    _ => Vec::new(),
                };
                self.spend(items.len())?;
                let pair = |id: &Id| match self.value(*id) {
                    Value::Tuple(p) | Value::List(p) if p.len() == 2 => Ok((p[0], p[1])),
                    _ => Err(self.damaged("a dictionary of something that is no pair")),
                };
                let pairs = items.iter().map(pair).collect::<Result<_>>()?;
                self.push(Value::Dict(pairs))
            }
            Meaning::List => {
                let items = match first.map(|id| self.value(id)) {
                    Some(Value::List(items) | Value::Tuple(items)) => items.clone(),
                    _ => Vec::new(),
                };
                self.spend(items.len())?;
                self.push(Value::List(items))
            }
            Meaning::Same | Meaning::RebuildParameter => match first {
                Some(id) => {
                    self.stack.push(id);
                    Ok(())
                }
                None => self.push(Value::Opaque),
            },
            Meaning::RebuildTensor => self.rebuild_tensor(&arguments, None),
            Meaning::RebuildTensorV3 => {
                let dtype = match arguments.get(6).map(|id| self.value(*id)) {
                    Some(Value::Global(Global {
                        meaning: Meaning::ElementType(Some(dtype)),
                        ..
                    })) => *dtype,
                    _ => return Err(self.damaged("a tensor without an element type")),
                };
                self.rebuild_tensor(&arguments, Some(dtype))
            }
            Meaning::Inert => self.push(Value::Opaque),
            Meaning::Storage(_) | Meaning::ElementType(_) => {
                Err(self.damaged("a call of a type of elements"))
            }
        }
    }

    /// Arguments: storage, offset, size, stride, ..; offset and strides count elements.
    fn rebuild_tensor(&mut self, arguments: &[Id], dtype: Option<Dtype>) -> Result<()> {
        let [storage, offset, size, stride, ..] = arguments else {
            return Err(self.damaged("a tensor needs storage, offset, size and stride"));
        };
        let Value::Storage(storage) = self.value(*storage).clone() else {
            return Err(self.damaged("a tensor without storage"));
        };
        let Some(dtype) = dtype.or(storage.dtype) else {
            return Err(self.damaged("a tensor without an element type"));
        };
        let tensor = TensorRef {
            offset: self.count(*offset)?,
            shape: self.counts(*size)?,
            stride: self.counts(*stride)?,
            dtype,
            storage: *storage,
        };
        self.push(Value::Tensor(Box::new(tensor)))
    }

    /// Sets attributes of the object below; only a dictionary of parameters has any that matter.
    fn build(&mut self, state: Id) -> Result<()> {
        let object = self.top()?;
        if let Value::Dict(state) = self.value(state) {
            self.spend(state.len())?;
        }
        let parameters = match self.value(state) {
            Value::Dict(state) => state.iter().find_map(|(key, value)| {
                let named = matches!(self.value(*key), Value::Str("_parameters"));
                match self.value(*value) {
                    Value::Dict(items) if named => Some(items.clone()),
                    _ => None,
                }
            }),
            _ => None,
        };
        match &mut self.values[object.0 as usize] {
            Value::Dict(items) => {
                let parameters = parameters.unwrap_or_default();
                let added = parameters.len();
                items.extend(parameters);
                self.spend(added)
            }
            Value::Opaque | Value::Tensor(_) => Ok(()),
            _ => Err(self.damaged("attributes of something that has none")),
        }
    }

    /// A storage: `("storage", type, key, location, number of elements)`, in old files with a view of another storage; or, in old
    /// files, a class with its source: `("module", class, file, source)`.
    fn persistent(&mut self, id: Id) -> Result<()> {
        let items: Vec<Id> = match self.value(id) {
            Value::Tuple(items) => items.iter().take(6).copied().collect(),
            _ => return Err(self.damaged("a persistent id that is no tuple")),
        };
        if let [kind, class, _file, _source] = items[..]
            && let (Value::Str("module"), &Value::Global(global)) =
                (self.value(kind), self.value(class))
        {
            return self.push(Value::Global(global));
        }
        let [kind, storage, key, _location, numel, view @ ..] = items.as_slice() else {
            return Err(self.damaged("a persistent id that is no storage"));
        };
        let (Value::Str("storage"), Value::Global(global), &Value::Str(key)) =
            (self.value(*kind), self.value(*storage), self.value(*key))
        else {
            return Err(self.damaged("a persistent id that is no storage"));
        };
        let Meaning::Storage(dtype) = global.meaning else {
            return Err(self.damaged("a storage of something that is no type of storage"));
        };
        let view_offset = match view.first().map(|id| self.value(*id)) {
            None | Some(Value::None) => 0,
            Some(Value::Tuple(view)) if view.len() == 3 => self.count(view[1])?,
            Some(_) => return Err(self.damaged("a view of a storage that is none")),
        };
        let storage = StorageRef {
            key: key.to_owned(),
            dtype,
            numel: self.count(*numel)?,
            view_offset,
        };
        self.push(Value::Storage(Box::new(storage)))
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<()> {
        let object = self.top()?;
        match &mut self.values[object.0 as usize] {
            Value::List(list) => list.extend(items),
            Value::Opaque => {}
            _ => return Err(self.damaged("items added to something that is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let pairs = self.pairs(items)?;
        let object = self.top()?;
        match &mut self.values[object.0 as usize] {
            Value::Dict(dict) => dict.extend(pairs),
            Value::Opaque => {}
            _ => return Err(self.damaged("entries set in something that is no dictionary")),
        }
        Ok(())
    }

    fn spend(&mut self, work: usize) -> Result<()> {
        self.work += work;
        if self.work > MAX_WORK {
            return Err(self.limit("too much to do"));
        }
        Ok(())
    }

    fn pairs(&self, items: &[Id]) -> Result<Vec<(Id, Id)>> {
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err(self.damaged("a key without a value"));
        };
        Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
    }

    fn memoise(&mut self, index: u32) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<()> {
        let Some(&id) = self.memo.get(&index) else {
            return Err(self.damaged("a value recalled that was never kept"));
        };
        self.stack.push(id);
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) -> Result<()> {
        if self.values.len() >= MAX_VALUES {
            return Err(self.limit("too many values"));
        }
        self.stack.push(Id(self.values.len() as u32));
        self.values.push(value);
        Ok(())
    }

    fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id.0 as usize]
    }

    fn top(&self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(&id) if self.stack.len() > floor => Ok(id),
            _ => Err(self.damaged("the stack is empty")),
        }
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// The uppermost `count` values, the lowest first.
    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count) {
            Some(at) if at >= floor => Ok(self.stack.split_off(at)),
            _ => Err(self.damaged("the stack is empty")),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(at) => Ok(self.stack.split_off(at)),
            None => Err(self.damaged("no mark on the stack")),
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count);
        let Some(taken) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            return Err(self.damaged("it ends early"));
        };
        self.at += count;
        Ok(taken)
    }

    /// A little-endian number of up to 16 bytes, two's complement if `signed`.
    fn int(&mut self, size: usize, signed: bool) -> Result<Value<'a>> {
        if size > 16 {
            return Err(self.limit("a number of more than 128 bits"));
        }
        let bytes = self.take(size)?;
        let negative = signed && bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut all = if negative { [0xFF; 16] } else { [0; 16] };
        all[..size].copy_from_slice(bytes);
        Ok(Value::Int(i128::from_le_bytes(all)))
    }

    fn length(&mut self, size: usize) -> Result<usize> {
        match self.int(size, false)? {
            Value::Int(n) if n >= 0 && n <= MAX_STRING as i128 => Ok(n as usize),
            _ => Err(self.limit("a text of more than 1 MiB")),
        }
    }

    fn index(&mut self, size: usize) -> Result<u32> {
        match self.int(size, false)? {
            Value::Int(n) => Ok(n as u32),
            _ => Err(self.damaged("no index")),
        }
    }

    fn text(&mut self, length: usize) -> Result<Value<'a>> {
        let bytes = self.take(length)?;
        Ok(std::str::from_utf8(bytes).map_or(Value::Opaque, Value::Str))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(MAX_STRING).position(|&b| b == b'\n');
        let line = end.and_then(|end| std::str::from_utf8(&rest[..end]).ok());
        let Some(line) = line else {
            return Err(self.damaged("a line of text does not end"));
        };
        self.at += line.len() + 1;
        Ok(line)
    }

    /// The text of a protocol 0 string; none in a checkpoint needs escapes.
    fn unescaped(&self, line: &'a str) -> Result<Value<'a>> {
        let quoted = |q: char| line.strip_prefix(q).and_then(|rest| rest.strip_suffix(q));
        if line.contains('\\') {
            return Err(self.damaged("a text with escapes"));
        }
        let text = quoted('\'').or_else(|| quoted('"')).unwrap_or(line);
        Ok(Value::Str(text))
    }

    fn parsed<T: std::str::FromStr>(&self, text: &str) -> Result<T> {
        text.trim()
            .parse()
            .map_err(|_| self.damaged("a number that is none"))
    }

    fn count(&self, id: Id) -> Result<usize> {
        match self.value(id) {
            Value::Int(n) => {
                usize::try_from(*n).map_err(|_| self.damaged("a size that is no size"))
            }
            _ => Err(self.damaged("a size that is no number")),
        }
    }

    fn counts(&self, id: Id) -> Result<Vec<usize>> {
        match self.value(id) {
            Value::Tuple(items) | Value::List(items) if items.len() <= MAX_RANK => {
                items.iter().map(|&id| self.count(id)).collect()
            }
            _ => Err(self.damaged("a shape that is no tuple of at most 8 numbers")),
        }
    }

    fn damaged(&self, problem: &'static str) -> PickleError {
        PickleError::Damaged {
            offset: self.opcode_at,
            problem,
        }
    }

    fn limit(&self, what: &'static str) -> PickleError {
        PickleError::Limit {
            offset: self.opcode_at,
            what,
        }
    }
}
