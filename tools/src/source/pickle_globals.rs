//! The globals that the pickle of a dict of tensors needs, and the values that they build.

use super::names::{MAX_DIMENSIONS, MAX_NAME};
use super::pickle_values::{Global, Object, PickleError, Result, Storage, Tensor, Value};
use super::tensor::SourceDType;

/// Finds a global on the list; the error names any other one.
pub(super) fn resolve(module: &str, name: &str) -> Result<Global> {
    match (module, name) {
        ("collections", "OrderedDict") => Ok(Global::OrderedDict),
        ("torch._utils", "_rebuild_tensor_v2") => Ok(Global::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => Ok(Global::RebuildParameter),
        ("torch", "BFloat16Storage") => Ok(Global::Storage(SourceDType::BF16)),
        ("torch", "HalfStorage") => Ok(Global::Storage(SourceDType::F16)),
        ("torch", "FloatStorage") => Ok(Global::Storage(SourceDType::F32)),
        ("torch", "DoubleStorage") => Ok(Global::Storage(SourceDType::F64)),
        _ => Err(PickleError::Global {
            global: format!("{module}.{name}").escape_debug().to_string(),
            reason: reason(module, name),
        }),
    }
}

fn reason(module: &str, name: &str) -> &'static str {
    if module == "__main__" || module == "src" || module.starts_with("src.") {
        "the file holds a pickled module object, not only its weights; save its state_dict() instead"
    } else if module == "torch" && name.ends_with("Storage") {
        "tensors must be bfloat16, half, float or double; use the original, unquantized checkpoint"
    } else {
        "a pickle can run code, so only the globals of plain tensors are accepted"
    }
}

/// `("storage", StorageType, key, location, elements)`.
pub(super) fn storage<'a>(id: &[Value<'a>]) -> Option<Storage<'a>> {
    match *id {
        [
            Value::Text("storage"),
            Value::Global(Global::Storage(dtype)),
            Value::Text(key),
            Value::Text(_),
            Value::Int(elements),
        ] if key.len() <= MAX_NAME => Some(Storage { dtype, key, elements: elements.try_into().ok()? }),
        _ => None,
    }
}

/// `(storage, offset, size, stride, requires_grad, hooks[, metadata])`.
pub(super) fn tensor<'a>(objects: &[Object<'a>], arguments: &[Value<'a>]) -> Option<Tensor<'a>> {
    let (&[Value::Object(storage), Value::Int(offset), size, stride, Value::Bool, _], rest) =
        arguments.split_first_chunk::<6>()?
    else {
        return None;
    };
    let Object::Storage(storage) = objects.get(storage)? else {
        return None;
    };
    let size = sizes(objects, size)?;
    let stride = sizes(objects, stride)?;
    let plausible = size.len() == stride.len() && size.len() <= MAX_DIMENSIONS && rest.len() <= 1;
    plausible.then_some(Tensor { storage: *storage, offset: offset.try_into().ok()?, size, stride })
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
