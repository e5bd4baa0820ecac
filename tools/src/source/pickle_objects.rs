//! How the reader of pickles makes objects and fills them.

use super::pickle::Machine;
use super::pickle_globals;
use super::pickle_values::{Global, Object, Result, Tensor, Value};

impl<'a> Machine<'a> {
    pub(super) fn tuple(&mut self, count: usize) -> Result<()> {
        let first = self.top(count)?;
        self.count_items(count)?;
        let items = self.stack.split_off(first);
        self.push_object(Object::Tuple(items))
    }

    /// Sets items of the object below the `count` topmost values.
    pub(super) fn set_items(&mut self, count: usize) -> Result<()> {
        let first = self.top(count)?;
        self.count_items(count)?;
        let target = self.target(first);
        let (pairs, rest) = self.stack[first..].as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.malformed("a key without a value"));
        }
        let pairs = pairs.iter().map(|&[key, value]| (key, value));
        match target.and_then(|index| self.objects.get_mut(index)) {
            Some(Object::Dict(items)) => items.extend(pairs),
            // A class of its own with the items of a dict.
            Some(object @ Object::Opaque(_)) => *object = Object::Dict(pairs.collect()),
            _ => return Err(self.malformed("items are set on something that is no dict")),
        }
        self.stack.truncate(first);
        Ok(())
    }

    /// Appends the `count` topmost values to the object below them.
    pub(super) fn append(&mut self, count: usize) -> Result<()> {
        let first = self.top(count)?;
        let target = self.target(first);
        let is_object = |value: &Value<'a>| matches!(value, Value::Object(_));
        self.count_items(self.stack[first..].iter().filter(|value| is_object(value)).count())?;
        let object = |value: &Value<'a>| if let Value::Object(index) = *value { Some(index) } else { None };
        match target.and_then(|index| self.objects.get_mut(index)) {
            Some(Object::List(items)) => items.extend(self.stack[first..].iter().filter_map(object)),
            Some(Object::Opaque(_)) => {}
            _ => return Err(self.malformed("items are appended to something that is no list")),
        }
        self.stack.truncate(first);
        Ok(())
    }

    /// Adds the `count` topmost values to the set below them.
    pub(super) fn add(&mut self, count: usize) -> Result<()> {
        let first = self.top(count)?;
        match self.target(first).and_then(|index| self.objects.get(index)) {
            Some(Object::Skipped | Object::Opaque(_)) => {}
            _ => return Err(self.malformed("items are added to something that is no set")),
        }
        self.stack.truncate(first);
        Ok(())
    }

    /// The object below stack position `first`, above the innermost mark.
    fn target(&self, first: usize) -> Option<usize> {
        self.top(self.stack.len() - first + 1).ok()?;
        match self.stack.get(first.checked_sub(1)?)? {
            Value::Object(index) => Some(*index),
            _ => None,
        }
    }

    pub(super) fn persistent_id(&mut self) -> Result<()> {
        let id = self.pop()?;
        let storage = self.tuple_items(id).and_then(pickle_globals::storage);
        let storage = storage.ok_or_else(|| self.malformed("a persistent id that is no storage"))?;
        self.push_object(Object::Storage(storage))
    }

    pub(super) fn reduce(&mut self) -> Result<()> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        if self.tuple_items(arguments).is_none() {
            return Err(self.malformed("a call without a tuple of arguments"));
        }
        self.call(function, arguments)
    }

    /// Pushes what a call gives.
    fn call(&mut self, function: Value<'a>, arguments: Value<'a>) -> Result<()> {
        let items = self.tuple_items(arguments).unwrap_or_default();
        let object = match function {
            Value::Global(global @ (Global::RebuildTensor | Global::RebuildTyped)) => {
                Object::Tensor(self.tensor(global, items)?)
            }
            Value::Global(Global::RebuildParameter) => {
                let data = items.first().copied().filter(|_| matches!(items.len(), 3 | 4));
                return self.push_parameter(data);
            }
            // Attributes come beside the tensor, and are dropped.
            Value::Global(Global::RebuildFromType) => match *items {
                [function, Value::Global(Global::TensorClass), arguments, _]
                    if !matches!(function, Value::Global(Global::RebuildFromType)) =>
                {
                    return self.call(function, arguments);
                }
                [_, Value::Global(Global::Other(class)), _, _] => Object::Opaque(class),
                _ => return Err(self.malformed("a tensor with attributes is described wrongly")),
            },
            _ => return self.make(function),
        };
        self.push_object(object)
    }

    fn tensor(&self, global: Global, arguments: &[Value<'a>]) -> Result<Tensor<'a>> {
        let tensor = match global {
            Global::RebuildTyped => pickle_globals::typed_tensor(&self.objects, arguments),
            _ => pickle_globals::tensor(&self.objects, arguments),
        };
        tensor.ok_or_else(|| self.malformed("a tensor is described wrongly"))
    }

    /// A parameter is its tensor.
    fn push_parameter(&mut self, data: Option<Value<'a>>) -> Result<()> {
        match data {
            Some(data @ Value::Object(index))
                if matches!(self.objects[index], Object::Tensor(_) | Object::Opaque(_)) =>
            {
                self.push(data)
            }
            _ => Err(self.malformed("a parameter without a tensor")),
        }
    }

    /// Pops the `arguments` of a class, and the class; pushes an instance.
    pub(super) fn new_object(&mut self, arguments: usize) -> Result<()> {
        let first = self.top(arguments + 1)?;
        let class = self.stack[first];
        self.stack.truncate(first);
        self.make(class)
    }

    /// Pushes what a function or a class makes, whatever its arguments are.
    fn make(&mut self, function: Value<'a>) -> Result<()> {
        let object = match function {
            Value::Global(Global::OrderedDict) => Object::Dict(Vec::new()),
            Value::Global(Global::Other(global)) => Object::Opaque(global),
            Value::Global(_) => Object::Skipped,
            Value::Object(index) if matches!(self.objects[index], Object::Opaque(_)) => {
                return self.push(function);
            }
            _ => return Err(self.malformed("a call of something that is no function")),
        };
        self.push_object(object)
    }

    /// `BUILD` carries the attributes of an object, such as the `_metadata` of a state dict. They
    /// are dropped. Tensors get their attributes in another way.
    pub(super) fn build(&mut self) -> Result<()> {
        self.pop()?;
        let first = self.top(1)?;
        match self.stack[first] {
            Value::Object(index)
                if !matches!(self.objects[index], Object::Tensor(_) | Object::Storage(_)) =>
            {
                Ok(())
            }
            _ => Err(self.malformed("attributes are set on something that has none")),
        }
    }

    fn tuple_items(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match value {
            Value::Object(index) => match self.objects.get(index)? {
                Object::Tuple(items) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }
}
