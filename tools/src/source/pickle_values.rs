//! The contents of a pickle: values without parts, objects with parts, and tensors.

use super::tensor::SourceDType;

/// Why a pickle is refused.
#[derive(Debug)]
pub(super) enum PickleError {
    /// It breaks the rules of the format or a limit.
    Malformed(String),
    /// It is not the pickle of a dict of tensors.
    Unsupported(String),
    /// It names a global that is not on the list.
    Global {
        /// `module.name`.
        global: String,
        /// Why, and what to do.
        reason: &'static str,
    },
}

pub(super) type Result<T> = std::result::Result<T, PickleError>;

/// A global that may appear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`: a state dict, and the always empty hooks of a tensor.
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`.
    RebuildParameter,
    /// `torch.BFloat16Storage` and its relatives.
    Storage(SourceDType),
}

/// One value. Everything with parts is in the machine's table of objects.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    None,
    Bool,
    Int(i64),
    Float,
    Text(&'a str),
    Global(Global),
    Object(usize),
}

/// A value with parts.
#[derive(Debug)]
pub(super) enum Object<'a> {
    Tuple(Vec<Value<'a>>),
    /// The items of lists are dropped: no tensor of a model is inside one.
    List,
    Dict(Vec<(Value<'a>, Value<'a>)>),
    Storage(Storage<'a>),
    Tensor(Tensor<'a>),
}

/// A storage: an entry of the zip file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage<'a> {
    pub(super) dtype: SourceDType,
    pub(super) key: &'a str,
    pub(super) elements: u64,
}

/// A tensor: a strided view of a storage, counted in elements.
#[derive(Debug, Clone)]
pub(super) struct Tensor<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) offset: u64,
    pub(super) size: Vec<u64>,
    pub(super) stride: Vec<u64>,
}

/// A pickle that was read: all objects, and the value that was saved.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    pub(super) objects: Vec<Object<'a>>,
    pub(super) root: Value<'a>,
}
