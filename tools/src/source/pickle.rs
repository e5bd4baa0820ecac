//! A reader for the pickles inside torch checkpoints, of protocols 2 to 5.
//!
//! Nothing is executed. A call of a global that describes no tensor gives an opaque object, whose
//! parts are dropped. Containers live in one table and refer to each other by index, so nothing
//! here recurses, and a pickle of any depth, or one that contains itself, costs no stack. The
//! limits below bound the memory that a pickle can make the reader allocate.

use super::pickle_globals;
use super::pickle_opcodes as opcode;
use super::pickle_values::{Global, Object, Pickle, PickleError, Result, Value};

/// Largest `data.pkl`. The one of a 61-layer model has 0.3 MB.
pub(super) const MAX_PICKLE: u64 = 16 << 20;

/// Most values on the stack; Python's pickler flushes a dict after 1000 pairs.
const MAX_STACK: usize = 1 << 16;

/// Most open marks; a mark opens a tuple or a batch of items. Python's pickler recurses at each.
const MAX_MARKS: usize = 1 << 10;

/// Most memo slots. The memo numbers objects from zero.
const MAX_MEMO: usize = 1 << 20;

/// Most objects together, and most globals.
const MAX_OBJECTS: usize = 1 << 20;

/// Most values inside all objects together.
const MAX_ITEMS: usize = 1 << 22;

/// Longest line of a global's module or name.
const MAX_LINE: usize = 256;

/// Reads a whole pickle.
pub(super) fn read(data: &[u8]) -> Result<Pickle<'_>> {
    let mut machine = Machine::new(data);
    let [opcode::PROTO, version] = machine.take_array()? else {
        return Err(PickleError::Malformed("data.pkl does not start with a pickle protocol".into()));
    };
    if !(2..=5).contains(&version) {
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
    Ok(Pickle { objects: machine.objects, globals: machine.globals, root })
}

/// The state of the reader.
pub(super) struct Machine<'a> {
    data: &'a [u8],
    at: usize,
    pub(super) stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: Vec<Option<Value<'a>>>,
    /// Filled slots of the memo.
    memoized: usize,
    pub(super) objects: Vec<Object<'a>>,
    globals: Vec<(&'a str, &'a str)>,
    /// Values inside all objects.
    items: usize,
}

impl<'a> Machine<'a> {
    fn new(data: &'a [u8]) -> Self {
        Self {
            data,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            memoized: 0,
            objects: Vec::new(),
            globals: Vec::new(),
            items: 0,
        }
    }

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
            opcode::LONG1 => self.long(1),
            opcode::LONG4 => self.long(4),
            opcode::BINFLOAT => self.skip(8),
            opcode::SHORT_BINBYTES | opcode::SHORT_BINSTRING => self.bytes(1),
            opcode::BINBYTES | opcode::BINSTRING => self.bytes(4),
            opcode::BINBYTES8 | opcode::BYTEARRAY8 => self.bytes(8),
            opcode::SHORT_BINUNICODE => self.text(1),
            opcode::BINUNICODE => self.text(4),
            opcode::BINUNICODE8 => self.text(8),
            opcode::FRAME => self.take(8).map(drop),
            opcode::EMPTY_DICT => self.push_object(Object::Dict(Vec::new())),
            opcode::EMPTY_LIST => self.push_object(Object::List(Vec::new())),
            opcode::EMPTY_SET => self.push_object(Object::Skipped),
            opcode::EMPTY_TUPLE => self.tuple(0),
            opcode::TUPLE1 => self.tuple(1),
            opcode::TUPLE2 => self.tuple(2),
            opcode::TUPLE3 => self.tuple(3),
            opcode::TUPLE => {
                let count = self.close_mark()?;
                self.tuple(count)
            }
            opcode::FROZENSET => {
                self.pop_mark()?;
                self.push_object(Object::Skipped)
            }
            opcode::MARK => self.mark(),
            opcode::POP => self.pop_or_close(),
            opcode::POP_MARK => self.pop_mark(),
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
            opcode::ADDITEMS => {
                let count = self.close_mark()?;
                self.add(count)
            }
            opcode::BINPUT | opcode::LONG_BINPUT => {
                let slot = self.memo_slot(op == opcode::LONG_BINPUT)?;
                self.put(slot)
            }
            opcode::MEMOIZE => self.put(self.memoized),
            opcode::BINGET | opcode::LONG_BINGET => {
                let slot = self.memo_slot(op == opcode::LONG_BINGET)?;
                self.get(slot)
            }
            opcode::GLOBAL => {
                let (module, name) = (self.take_line()?, self.take_line()?);
                self.global(module, name)
            }
            opcode::STACK_GLOBAL => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => self.global(module, name),
                _ => Err(self.malformed("a global without a name")),
            },
            opcode::BINPERSID => self.persistent_id(),
            opcode::REDUCE => self.reduce(),
            opcode::NEWOBJ => self.new_object(1),
            opcode::NEWOBJ_EX => self.new_object(2),
            opcode::BUILD => self.build(),
            _ => Err(PickleError::Unsupported(format!(
                "pickle opcode {op:#04x} (data.pkl, byte {}); torch.save writes none",
                self.at.saturating_sub(1)
            ))),
        }
    }

    pub(super) fn malformed(&self, what: &str) -> PickleError {
        PickleError::Malformed(format!("{what} (data.pkl, byte {})", self.at))
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

    /// Takes a length of `width` bytes, and as many bytes as it says.
    fn take_counted(&mut self, width: usize) -> Result<&'a [u8]> {
        let mut count = [0; 8];
        count[..width].copy_from_slice(self.take(width)?);
        // A length that does not fit is beyond the data in any case.
        self.take(usize::try_from(u64::from_le_bytes(count)).unwrap_or(usize::MAX))
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

    pub(super) fn push(&mut self, value: Value<'a>) -> Result<()> {
        if self.stack.len() >= MAX_STACK {
            return Err(self.malformed("the pickle's stack grows beyond its limit"));
        }
        self.stack.push(value);
        Ok(())
    }

    pub(super) fn push_object(&mut self, object: Object<'a>) -> Result<()> {
        if self.objects.len() >= MAX_OBJECTS {
            return Err(self.malformed("the pickle builds more objects than its limit"));
        }
        self.objects.push(object);
        self.push(Value::Object(self.objects.len() - 1))
    }

    /// First index of the `count` topmost values; they must all be above the innermost mark.
    pub(super) fn top(&self, count: usize) -> Result<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count) {
            Some(first) if first >= floor => Ok(first),
            _ => Err(self.malformed("the pickle takes more from its stack than is there")),
        }
    }

    pub(super) fn pop(&mut self) -> Result<Value<'a>> {
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

    /// Removes the innermost mark and the values above it.
    fn pop_mark(&mut self) -> Result<()> {
        let count = self.close_mark()?;
        self.stack.truncate(self.stack.len() - count);
        Ok(())
    }

    /// Removes the topmost value, or the mark if that is on top.
    fn pop_or_close(&mut self) -> Result<()> {
        if self.marks.last() == Some(&self.stack.len()) { self.pop_mark() } else { self.pop().map(drop) }
    }

    pub(super) fn count_items(&mut self, count: usize) -> Result<()> {
        self.items += count;
        if self.items > MAX_ITEMS {
            return Err(self.malformed("the pickle's objects hold more values than their limit"));
        }
        Ok(())
    }

    /// An integer. Tensors have none of more than 64 bits.
    fn long(&mut self, width: usize) -> Result<()> {
        let bytes = self.take_counted(width)?;
        if bytes.len() > 8 {
            return self.push(Value::Plain);
        }
        let sign = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut wide = [if sign { 0xff } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    fn skip(&mut self, count: usize) -> Result<()> {
        self.take(count)?;
        self.push(Value::Plain)
    }

    fn bytes(&mut self, width: usize) -> Result<()> {
        self.take_counted(width)?;
        self.push(Value::Plain)
    }

    fn text(&mut self, width: usize) -> Result<()> {
        let bytes = self.take_counted(width)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.malformed("a string is not UTF-8"))?;
        self.push(Value::Text(text))
    }

    fn memo_slot(&mut self, long: bool) -> Result<usize> {
        if long {
            return Ok(u32::from_le_bytes(self.take_array()?) as usize);
        }
        let [slot] = self.take_array()?;
        Ok(slot.into())
    }

    fn put(&mut self, slot: usize) -> Result<()> {
        if slot >= MAX_MEMO {
            return Err(self.malformed("the pickle's memo grows beyond its limit"));
        }
        let &value = self.stack.last().ok_or_else(|| self.malformed("the pickle's stack is empty"))?;
        if slot >= self.memo.len() {
            self.memo.resize(slot + 1, None);
        }
        self.memoized += usize::from(self.memo[slot].is_none());
        self.memo[slot] = Some(value);
        Ok(())
    }

    fn get(&mut self, slot: usize) -> Result<()> {
        match self.memo.get(slot) {
            Some(&Some(value)) => self.push(value),
            _ => Err(self.malformed("the pickle refers to a memo slot it did not fill")),
        }
    }

    fn global(&mut self, module: &'a str, name: &'a str) -> Result<()> {
        if let Some(global) = pickle_globals::known(module, name) {
            return self.push(Value::Global(global));
        }
        if self.globals.len() >= MAX_OBJECTS {
            return Err(self.malformed("the pickle names more globals than its limit"));
        }
        self.globals.push((module, name));
        self.push(Value::Global(Global::Other(self.globals.len() - 1)))
    }
}
