//! The globals that describe tensors, and the values that they build. Any other global is a name
//! that is kept and never looked up.

use super::names::{MAX_DIMENSIONS, MAX_NAME};
use super::pickle_values::{ElementType, Global, Object, Storage, Tensor, Value};
use super::tensor::SourceDType;

/// The meaning of a global, if it has one here.
pub(super) fn known(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v3") => Global::RebuildTyped,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Global::RebuildParameter,
        ("torch._tensor", "_rebuild_from_type_v2") => Global::RebuildFromType,
        ("torch", "Tensor") | ("torch.nn.parameter", "Parameter" | "Buffer") => Global::TensorClass,
        ("torch", "BFloat16Storage") => Global::Storage(ElementType::Float(SourceDType::BF16)),
        ("torch", "HalfStorage") => Global::Storage(ElementType::Float(SourceDType::F16)),
        ("torch", "FloatStorage") => Global::Storage(ElementType::Float(SourceDType::F32)),
        ("torch", "DoubleStorage") => Global::Storage(ElementType::Float(SourceDType::F64)),
        ("torch.storage" | "torch", "UntypedStorage") => Global::Storage(ElementType::Untyped),
        ("torch", "bfloat16") => Global::DType(SourceDType::BF16),
        ("torch", "float16" | "half") => Global::DType(SourceDType::F16),
        ("torch", "float32" | "float") => Global::DType(SourceDType::F32),
        ("torch", "float64" | "double") => Global::DType(SourceDType::F64),
        _ => return None,
    })
}

/// `("storage", StorageType, key, location, elements)`.
pub(super) fn storage<'a>(id: &[Value<'a>]) -> Option<Storage<'a>> {
    let &[Value::Text("storage"), Value::Global(class), Value::Text(key), Value::Text(_), Value::Int(len)] =
        id
    else {
        return None;
    };
    let elements = match class {
        Global::Storage(elements) => elements,
        Global::Other(global) => ElementType::Other(global),
        _ => return None,
    };
    (key.len() <= MAX_NAME).then_some(Storage { elements, key, len: len.try_into().ok()? })
}

/// `(storage, offset, size, stride, requires_grad, hooks[, metadata])`.
pub(super) fn tensor<'a>(objects: &[Object<'a>], arguments: &[Value<'a>]) -> Option<Tensor<'a>> {
    let (arguments, rest) = arguments.split_first_chunk::<6>()?;
    (rest.len() <= 1).then(|| view(objects, arguments, None))?
}

/// The same with the element type before the metadata.
pub(super) fn typed_tensor<'a>(objects: &[Object<'a>], arguments: &[Value<'a>]) -> Option<Tensor<'a>> {
    let (arguments, rest) = arguments.split_first_chunk::<6>()?;
    let elements = match *rest.first()? {
        Value::Global(Global::DType(dtype)) => ElementType::Float(dtype),
        Value::Global(Global::Other(global)) => ElementType::Other(global),
        _ => return None,
    };
    (rest.len() <= 2).then(|| view(objects, arguments, Some(elements)))?
}

fn view<'a>(
    objects: &[Object<'a>],
    arguments: &[Value<'a>; 6],
    elements: Option<ElementType>,
) -> Option<Tensor<'a>> {
    let &[Value::Object(storage), Value::Int(offset), size, stride, Value::Bool, _] = arguments else {
        return None;
    };
    let Object::Storage(storage) = objects.get(storage)? else {
        return None;
    };
    let size = sizes(objects, size)?;
    let stride = sizes(objects, stride)?;
    let plausible = size.len() == stride.len() && size.len() <= MAX_DIMENSIONS;
    plausible.then_some(Tensor {
        storage: *storage,
        elements: elements.unwrap_or(storage.elements),
        offset: offset.try_into().ok()?,
        size,
        stride,
    })
}

/// A tuple of integers that are not negative.
fn sizes(objects: &[Object<'_>], value: Value<'_>) -> Option<Vec<u64>> {
    let Value::Object(index) = value else {
        return None;
    };
    let Object::Tuple(items) = objects.get(index)? else {
        return None;
    };
    if items.len() > MAX_DIMENSIONS {
        return None;
    }
    items.iter().map(|item| if let Value::Int(n) = item { u64::try_from(*n).ok() } else { None }).collect()
}
