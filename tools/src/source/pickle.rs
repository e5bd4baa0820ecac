//! A reader for the pickles inside torch checkpoints: protocol 2, a fixed list of opcodes, a fixed
//! list of globals.
//!
//! Nothing is executed. Containers live in one table and refer to each other by index, so nothing
//! here recurses, and a pickle of any depth, or one that contains itself, costs no stack. The
//! limits below bound the memory that a pickle can make the reader allocate.

use super::names::MAX_STORED_NAME;
use super::pickle_globals;
use super::pickle_values::{Global, Object, Pickle, PickleError, Result, Value};

/// Largest `data.pkl`. The one of a 61-layer model has 0.3 MB.
pub(super) const MAX_PICKLE: u64 = 16 << 20;

/// Most values on the stack; Python's pickler flushes a dict after 1000 pairs.
const MAX_STACK: usize = 1 << 16;

/// Most open marks; a mark opens a tuple or a batch of items.
const MAX_MARKS: usize = 64;

/// Most memo slots. The memo numbers objects from zero.
const MAX_MEMO: usize = 1 << 20;

/// Most tuples, lists, dicts, storages and tensors together.
const MAX_OBJECTS: usize = 1 << 20;

/// Most values inside all tuples and dicts together.
const MAX_ITEMS: usize = 1 << 22;

/// Longest string.
const MAX_TEXT: usize = 1 << 20;

/// Longest line of a global's module or name.
const MAX_LINE: usize = 256;

/// Reads a whole pickle.
pub(super) fn read(data: &[u8]) -> Result<Pickle<'_>> {
    let mut machine = Machine {
        data,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        objects: Vec::new(),
        items: 0,
    };
    let [opcode::PROTO, version] = machine.take_array()? else {
        return Err(PickleError::Malformed("data.pkl does not start with a pickle protocol".into()));
    };
    if !(2..=3).contains(&version) {
        return Err(PickleError::Unsupported(format!(
            "pickle protocol {version}; save with torch.save's default, protocol 2"
        )));
    }
    let root = loop {
        let [op] = machine.take_array()?;
        if op == opcode::STOP {
            break machine.pop()?;
        }
        machine.step(op)?;
    };
    if !machine.stack.is_empty() || !machine.marks.is_empty() || machine.at != data.len() {
        return Err(machine.malformed("the pickle does not end where its data ends"));
    }
    Ok(Pickle { objects: machine.objects, root })
}

/// Codes of the opcodes in torch's pickles. Two more are read only to name their global in the
/// error.
mod opcode {
    pub(super) const MARK: u8 = b'(';
    pub(super) const STOP: u8 = b'.';
    pub(super) const BINFLOAT: u8 = b'G';
    pub(super) const BININT: u8 = b'J';
    pub(super) const BININT1: u8 = b'K';
    pub(super) const BININT2: u8 = b'M';
    pub(super) const NONE: u8 = b'N';
    pub(super) const BINPERSID: u8 = b'Q';
    pub(super) const REDUCE: u8 = b'R';
    pub(super) const BINUNICODE: u8 = b'X';
    pub(super) const EMPTY_LIST: u8 = b']';
    pub(super) const APPEND: u8 = b'a';
    pub(super) const BUILD: u8 = b'b';
    pub(super) const GLOBAL: u8 = b'c';
    pub(super) const APPENDS: u8 = b'e';
    pub(super) const BINGET: u8 = b'h';
    pub(super) const INST: u8 = b'i';
    pub(super) const LONG_BINGET: u8 = b'j';
    pub(super) const BINPUT: u8 = b'q';
    pub(super) const LONG_BINPUT: u8 = b'r';
    pub(super) const SETITEM: u8 = b's';
    pub(super) const TUPLE: u8 = b't';
    pub(super) const SETITEMS: u8 = b'u';
    pub(super) const EMPTY_DICT: u8 = b'}';
    pub(super) const EMPTY_TUPLE: u8 = b')';
    pub(super) const PROTO: u8 = 0x80;
    pub(super) const TUPLE1: u8 = 0x85;
    pub(super) const TUPLE2: u8 = 0x86;
    pub(super) const TUPLE3: u8 = 0x87;
    pub(super) const NEWTRUE: u8 = 0x88;
    pub(super) const NEWFALSE: u8 = 0x89;
    pub(super) const LONG1: u8 = 0x8a;
    pub(super) const STACK_GLOBAL: u8 = 0x93;
}

struct Machine<'a> {
    data: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: Vec<Option<Value<'a>>>,
    objects: Vec<Object<'a>>,
    /// Values inside all tuples and dicts.
    items: usize,
}

impl<'a> Machine<'a> {
    fn step(&mut self, op: u8) -> Result<()> {
        match op {
            opcode::NONE => self.push(Value::None),
            opcode::NEWTRUE | opcode::NEWFALSE => self.push(Value::Bool),
            opcode::BININT => {
                let value = i32::from_le_bytes(self.take_array()?);
                self.push(Value::Int(value.into()))
            }
            opcode::BININT1 => {
                let [value] = self.take_array()?;
                self.push(Value::Int(value.into()))
            }
            opcode::BININT2 => {
                let value = u16::from_le_bytes(self.take_array()?);
                self.push(Value::Int(value.into()))
            }
            opcode::LONG1 => self.long1(),
            opcode::BINFLOAT => {
                self.take(8)?;
                self.push(Value::Float)
            }
            opcode::BINUNICODE => self.text(),
            opcode::EMPTY_DICT => self.push_object(Object::Dict(Vec::new())),
            opcode::EMPTY_LIST => self.push_object(Object::List),
            opcode::EMPTY_TUPLE => self.tuple(0),
            opcode::TUPLE1 => self.tuple(1),
            opcode::TUPLE2 => self.tuple(2),
            opcode::TUPLE3 => self.tuple(3),
            opcode::TUPLE => {
                let count = self.close_mark()?;
                self.tuple(count)
            }
            opcode::MARK => self.mark(),
            opcode::SETITEM => self.set_items(2),
            opcode::SETITEMS => {
                let count = self.close_mark()?;
                self.set_items(count)
            }
            opcode::APPEND => self.append(1),
            opcode::APPENDS => {
                let count = self.close_mark()?;
                self.append(count)
            }
            opcode::BINPUT | opcode::LONG_BINPUT => {
                let slot = self.memo_slot(op == opcode::LONG_BINPUT)?;
                self.put(slot)
            }
            opcode::BINGET | opcode::LONG_BINGET => {
                let slot = self.memo_slot(op == opcode::LONG_BINGET)?;
                self.get(slot)
            }
            opcode::GLOBAL => {
                let global = self.global()?;
                self.push(Value::Global(global))
            }
            opcode::BINPERSID => self.persistent_id(),
            opcode::REDUCE => self.reduce(),
            opcode::BUILD => self.build(),
            opcode::INST | opcode::STACK_GLOBAL => Err(self.refuse_old_or_new_global(op)),
            _ => Err(self.refuse_opcode(op)),
        }
    }

    fn malformed(&self, what: &str) -> PickleError {
        PickleError::Malformed(format!("{what} (data.pkl, byte {})", self.at))
    }

    fn refuse_opcode(&self, op: u8) -> PickleError {
        PickleError::Unsupported(format!(
            "pickle opcode {op:#04x} (data.pkl, byte {}); the pickle of a dict of tensors does not use it",
            self.at.saturating_sub(1)
        ))
    }

    /// These opcodes name a global too. They are refused like any other, but a hostile global is
    /// named.
    fn refuse_old_or_new_global(&mut self, op: u8) -> PickleError {
        let named = match (op, self.stack.as_slice()) {
            (opcode::STACK_GLOBAL, [.., Value::Text(module), Value::Text(name)]) => {
                pickle_globals::resolve(module, name).map(drop)
            }
            (opcode::INST, _) => self.global().map(drop),
            _ => Ok(()),
        };
        named.err().unwrap_or_else(|| self.refuse_opcode(op))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let rest = &self.data[self.at..];
        let Some(bytes) = rest.get(..count) else {
            return Err(self.malformed("the pickle is cut off"));
        };
        self.at += count;
        Ok(bytes)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn take_line(&mut self) -> Result<&'a str> {
        let rest = &self.data[self.at..];
        let end = rest.iter().take(MAX_LINE + 1).position(|&byte| byte == b'\n');
        let Some(end) = end else {
            return Err(self.malformed("a global's name does not end"));
        };
        let line = std::str::from_utf8(&rest[..end]).map_err(|_| self.malformed("a name is not UTF-8"))?;
        self.at += end + 1;
        Ok(line)
    }

    fn push(&mut self, value: Value<'a>) -> Result<()> {
        if self.stack.len() >= MAX_STACK {
            return Err(self.malformed("the pickle's stack grows beyond its limit"));
        }
        self.stack.push(value);
        Ok(())
    }

    fn push_object(&mut self, object: Object<'a>) -> Result<()> {
        if self.objects.len() >= MAX_OBJECTS {
            return Err(self.malformed("the pickle builds more objects than its limit"));
        }
        self.objects.push(object);
        self.push(Value::Object(self.objects.len() - 1))
    }

    /// First index of the `count` topmost values; they must all be above the innermost mark.
    fn top(&self, count: usize) -> Result<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count) {
            Some(first) if first >= floor => Ok(first),
            _ => Err(self.malformed("the pickle takes more from its stack than is there")),
        }
    }

    fn pop(&mut self) -> Result<Value<'a>> {
        self.top(1)?;
        self.stack.pop().ok_or_else(|| self.malformed("the pickle's stack is empty"))
    }

    fn mark(&mut self) -> Result<()> {
        if self.marks.len() >= MAX_MARKS {
            return Err(self.malformed("the pickle is nested too deeply"));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// Removes the innermost mark; returns the number of values above it.
    fn close_mark(&mut self) -> Result<usize> {
        match self.marks.pop() {
            Some(floor) => Ok(self.stack.len() - floor),
            None => Err(self.malformed("the pickle closes a group it did not open")),
        }
    }

    fn count_items(&mut self, count: usize) -> Result<()> {
        self.items += count;
        if self.items > MAX_ITEMS {
            return Err(self.malformed("the pickle's objects hold more values than their limit"));
        }
        Ok(())
    }

    fn long1(&mut self) -> Result<()> {
        let [count] = self.take_array()?;
        let bytes = self.take(count.into())?;
        if bytes.len() > 8 {
            return Err(self.malformed("an integer of more than 64 bits"));
        }
        let sign = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut wide = [if sign { 0xff } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    fn text(&mut self) -> Result<()> {
        let count = u32::from_le_bytes(self.take_array()?) as usize;
        if count > MAX_TEXT {
            return Err(self.malformed("a string is longer than its limit"));
        }
        let bytes = self.take(count)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.malformed("a string is not UTF-8"))?;
        self.push(Value::Text(text))
    }

    fn tuple(&mut self, count: usize) -> Result<()> {
        let first = self.top(count)?;
        self.count_items(count)?;
        let items = self.stack.split_off(first);
        self.push_object(Object::Tuple(items))
    }

    fn set_items(&mut self, count: usize) -> Result<()> {
        let first = self.top(count)?;
        self.count_items(count)?;
        let Some(&Value::Object(index)) = first.checked_sub(1).and_then(|below| self.stack.get(below)) else {
            return Err(self.malformed("items are set on something that is no dict"));
        };
        let Some(Object::Dict(items)) = self.objects.get_mut(index) else {
            return Err(self.malformed("items are set on something that is no dict"));
        };
        let (pairs, rest) = self.stack[first..].as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.malformed("a key without a value"));
        }
        // Many items can share one key, and every tensor keeps a copy of its own.
        let is_too_long =
            |[key, _]: &[Value<'_>; 2]| matches!(key, Value::Text(key) if key.len() > MAX_STORED_NAME);
        if pairs.iter().any(is_too_long) {
            return Err(self.malformed("a key is longer than a tensor's name may be"));
        }
        items.extend(pairs.iter().map(|&[key, value]| (key, value)));
        self.stack.truncate(first);
        Ok(())
    }

    fn append(&mut self, count: usize) -> Result<()> {
        let first = self.top(count)?;
        let target = first.checked_sub(1).and_then(|below| self.stack.get(below));
        if !matches!(target, Some(&Value::Object(index)) if matches!(self.objects[index], Object::List)) {
            return Err(self.malformed("items are appended to something that is no list"));
        }
        self.stack.truncate(first);
        Ok(())
    }

    fn memo_slot(&mut self, long: bool) -> Result<usize> {
        let slot = if long {
            u32::from_le_bytes(self.take_array()?) as usize
        } else {
            let [slot] = self.take_array()?;
            slot.into()
        };
        if slot >= MAX_MEMO {
            return Err(self.malformed("the pickle's memo grows beyond its limit"));
        }
        Ok(slot)
    }

    fn put(&mut self, slot: usize) -> Result<()> {
        let &value = self.stack.last().ok_or_else(|| self.malformed("the pickle's stack is empty"))?;
        if slot >= self.memo.len() {
            self.memo.resize(slot + 1, None);
        }
        self.memo[slot] = Some(value);
        Ok(())
    }

    fn get(&mut self, slot: usize) -> Result<()> {
        match self.memo.get(slot) {
            Some(&Some(value)) => self.push(value),
            _ => Err(self.malformed("the pickle refers to a memo slot it did not fill")),
        }
    }

    fn global(&mut self) -> Result<Global> {
        let module = self.take_line()?;
        let name = self.take_line()?;
        pickle_globals::resolve(module, name)
    }

    fn persistent_id(&mut self) -> Result<()> {
        let id = self.pop()?;
        let storage = self.tuple_items(id).and_then(pickle_globals::storage);
        let storage = storage.ok_or_else(|| self.malformed("a persistent id that is no storage"))?;
        self.push_object(Object::Storage(storage))
    }

    fn reduce(&mut self) -> Result<()> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let Some(arguments) = self.tuple_items(arguments) else {
            return Err(self.malformed("a call without a tuple of arguments"));
        };
        let object = match (function, arguments) {
            (Value::Global(Global::OrderedDict), []) => Object::Dict(Vec::new()),
            (Value::Global(Global::RebuildTensor), arguments) => {
                let tensor = pickle_globals::tensor(&self.objects, arguments);
                Object::Tensor(tensor.ok_or_else(|| self.malformed("a tensor is described wrongly"))?)
            }
            (Value::Global(Global::RebuildParameter), &[data, _, _]) => return self.push_parameter(data),
            _ => return Err(self.malformed("a call that builds neither a tensor nor an empty dict")),
        };
        self.push_object(object)
    }

    /// A parameter is its tensor.
    fn push_parameter(&mut self, data: Value<'a>) -> Result<()> {
        match data {
            Value::Object(index) if matches!(self.objects[index], Object::Tensor(_)) => self.push(data),
            _ => Err(self.malformed("a parameter without a tensor")),
        }
    }

    /// `BUILD` carries the attributes of an ordered dict, such as the `_metadata` of a state dict;
    /// they are dropped.
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        let first = self.top(1)?;
        match self.stack[first] {
            Value::Object(index) if matches!(self.objects[index], Object::Dict(_)) => Ok(()),
            _ => Err(self.malformed("attributes are set on something that is no dict")),
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
