//! The contents of a pickle: values without parts, objects with parts, and tensors.

use super::tensor::SourceDType;

/// Why a pickle is refused.
#[derive(Debug)]
pub(super) enum PickleError {
    /// It breaks the rules of the format or a limit.
    Malformed(String),
    /// It is of a kind that is not read.
    Unsupported(String),
}

pub(super) type Result<T> = std::result::Result<T, PickleError>;

/// A global: the name of a function or a class, which is never called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`: a state dict, and the always empty hooks of a tensor.
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`.
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v3`, which names the element type beside an untyped storage.
    RebuildTyped,
    /// `torch._utils._rebuild_parameter`, and the same `_with_state`.
    RebuildParameter,
    /// `torch._tensor._rebuild_from_type_v2`: a tensor with attributes.
    RebuildFromType,
    /// `torch.Tensor` and its subclasses that change no values.
    TensorClass,
    /// `torch.BFloat16Storage` and its relatives.
    Storage(ElementType),
    /// `torch.bfloat16` and its relatives.
    DType(SourceDType),
    /// Any other one, by its number in [`Pickle::globals`].
    Other(usize),
}

/// Element type of a storage or a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ElementType {
    /// One that is read.
    Float(SourceDType),
    /// None: the tensors say how the bytes are read.
    Untyped,
    /// One that is not read, by the number of its global.
    Other(usize),
}

/// One value. Everything with parts is in the machine's table of objects.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    None,
    Bool,
    Int(i64),
    /// A number or bytes that no tensor depends on.
    Plain,
    Text(&'a str),
    Global(Global),
    Object(usize),
}

/// A value with parts.
#[derive(Debug)]
pub(super) enum Object<'a> {
    Tuple(Vec<Value<'a>>),
    /// The objects in a list; its other items are dropped.
    List(Vec<usize>),
    /// A dict, or a dict of a class of its own.
    Dict(Vec<(Value<'a>, Value<'a>)>),
    Storage(Storage<'a>),
    Tensor(Tensor<'a>),
    /// A set, whose items are dropped; or an instance of a known class that is no tensor.
    Skipped,
    /// What a global would have made, by the number of the global. Its parts are dropped.
    Opaque(usize),
}

/// A storage: an entry of the zip file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage<'a> {
    pub(super) elements: ElementType,
    pub(super) key: &'a str,
    /// Number of elements; of bytes if it is untyped.
    pub(super) len: u64,
}

/// A tensor: a strided view of a storage, counted in elements.
#[derive(Debug, Clone)]
pub(super) struct Tensor<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) elements: ElementType,
    pub(super) offset: u64,
    pub(super) size: Vec<u64>,
    pub(super) stride: Vec<u64>,
}

/// A pickle that was read: all objects, and the value that was saved.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    pub(super) objects: Vec<Object<'a>>,
    /// Module and name of the globals that mean nothing here.
    pub(super) globals: Vec<(&'a str, &'a str)>,
    pub(super) root: Value<'a>,
}

impl<'a> Pickle<'a> {
    /// The object that a value refers to.
    pub(super) fn object(&self, value: Value<'a>) -> Option<&Object<'a>> {
        match value {
            Value::Object(index) => self.objects.get(index),
            _ => None,
        }
    }

    /// A global's name, as it may be printed.
    pub(super) fn global_name(&self, index: usize) -> String {
        let (module, name) = self.globals.get(index).copied().unwrap_or_default();
        format!("{module}.{name}").escape_debug().to_string()
    }

    /// The name of an element type that is not read.
    pub(super) fn type_name(&self, elements: ElementType) -> String {
        match elements {
            ElementType::Float(dtype) => dtype.to_string(),
            ElementType::Untyped => "untyped bytes".to_owned(),
            ElementType::Other(global) => {
                let (_, name) = self.globals.get(global).copied().unwrap_or_default();
                match dtype_of_storage(name) {
                    Some(dtype) => dtype.to_owned(),
                    None if name.starts_with("float8") => format!("{} (fp8)", name.escape_debug()),
                    None => name.escape_debug().to_string(),
                }
            }
        }
    }
}

/// The element type of a storage's class, as torch spells it.
fn dtype_of_storage(class: &str) -> Option<&'static str> {
    Some(match class {
        "LongStorage" => "int64",
        "IntStorage" => "int32",
        "ShortStorage" => "int16",
        "CharStorage" => "int8",
        "ByteStorage" => "uint8",
        "BoolStorage" => "bool",
        "ComplexFloatStorage" => "complex64",
        "ComplexDoubleStorage" => "complex128",
        _ => return None,
    })
}
