//! `pytorch_model.bin`: where the tensors of a `torch.save`d state dict lie in the file. Nothing of the pickle is executed.
//!
//! Why not candle's reader: it copies an object at every use of its memo and drops nested objects by recursion, so a crafted
//! file of a few kilobytes takes all memory or overflows the stack, which no guard catches; it prints to standard error, and
//! it does not read files from before PyTorch 1.6, of which many are still about. Here every opcode makes at most one node
//! of a flat list that refers to others by number, so work and memory are linear in the file and nothing recurses. Tensors
//! stay where they are, in the mapped file.
//!
//! Sources: CPython's `pickletools.py` (opcodes), PyTorch's `serialization.py` (both containers) and `_utils.py`
//! (`_rebuild_tensor_v2`).

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;

use safetensors::tensor::Dtype;
use zip::{CompressionMethod, ZipArchive};

/// Where a tensor's values lie in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Range<usize>,
}

type Found<T> = Result<T, String>;

/// The tensors of a file.
///
/// # Errors
/// What is wrong with it, as the end of a message.
pub(super) fn tensors(file: &[u8]) -> Found<Vec<(String, Place)>> {
    /// Magic number and protocol version, each a pickle: the start of files from before PyTorch 1.6.
    const OLD: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";
    let (tensors, storages) = match file.strip_prefix(OLD) {
        Some(rest) => old_container(file.len() - rest.len(), file)?,
        None => zip_container(file)?,
    };
    if tensors.is_empty() {
        return Err("holds no tensors; expected the weights that torch.save(model.state_dict(), …) writes".into());
    }
    let place = |t: Tensor<'_>| {
        let bytes = storages.get(t.storage).ok_or_else(|| format!("tensor {} has no storage {}", t.name, t.storage))?;
        Ok((t.name.to_owned(), t.place(bytes)?))
    };
    tensors.into_iter().map(place).collect()
}

/// A state dict and where each of its storages lies.
type Container<'a> = (Vec<Tensor<'a>>, HashMap<&'a str, Range<usize>>);

fn zip_container(file: &[u8]) -> Found<Container<'_>> {
    let broken =
        |e: zip::result::ZipError| format!("is not a whole file of torch.save ({e}); copy or download it again");
    let mut zip = ZipArchive::new(Cursor::new(file)).map_err(broken)?;
    let mut parts = HashMap::new();
    for i in 0..zip.len() {
        let part = zip.by_index_raw(i).map_err(broken)?;
        let name = part.name().map_err(broken)?.into_owned();
        if part.compression() != CompressionMethod::Stored || part.encrypted() {
            return Err(format!("has a compressed part {name}, as torch.save writes none; save it again"));
        }
        let start = part.data_start().ok_or("has a part without data")?;
        let range = start..start.checked_add(part.size()).ok_or("is damaged")?;
        let range = (range.end <= file.len() as u64).then_some(range.start as usize..range.end as usize);
        parts.insert(name, range.ok_or("ends before its last tensor; copy or download it again")?);
    }
    let pickle = parts.keys().find(|n| n.ends_with("/data.pkl") || *n == "data.pkl");
    let pickle = pickle.ok_or("is a zip file without data.pkl, so nothing of torch.save")?.clone();
    let folder = pickle.strip_suffix("data.pkl").unwrap_or("");
    if parts.get(&format!("{folder}byteorder")).is_some_and(|r| &file[r.clone()] != b"little") {
        return Err("was written on a big-endian machine; save it again on another".into());
    }
    let (root, pickled) = Pickle::read(&file[parts[&pickle].clone()])?;
    let tensors = pickled.state_dict(root)?;
    let storage = |t: &Tensor<'_>| parts.get(&format!("{folder}data/{}", t.storage)).cloned();
    let storages = tensors.iter().filter_map(|t| Some((t.storage, storage(t)?))).collect();
    Ok((tensors, storages))
}

/// System, state dict and the storages' keys as pickles, then the storages: a count of elements and the elements.
fn old_container(start: usize, file: &[u8]) -> Found<Container<'_>> {
    let mut at = start;
    let mut next = || {
        let (root, pickled) = Pickle::read(&file[at..])?;
        at += pickled.length;
        Ok::<_, String>((root, pickled))
    };
    next()?;
    let (root, pickled) = next()?;
    let (keys, list) = next()?;
    let tensors = pickled.state_dict(root)?;
    let sizes: HashMap<&str, usize> = pickled.storages().map(|(key, dtype)| (key, size_of_one(dtype))).collect();
    let mut storages = HashMap::new();
    for key in list.items(keys).unwrap_or_default() {
        let key = list.text(*key).ok_or("has a storage without a name")?;
        let short = || "ends before its last tensor; copy or download it again".to_owned();
        let count = file.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(short)?;
        let size = sizes.get(key).ok_or_else(|| format!("has a storage {key} of no tensor"))?;
        let length = usize::try_from(u64::from_le_bytes(*count)).ok().and_then(|n| n.checked_mul(*size));
        let end = length.and_then(|n| n.checked_add(at + 8)).filter(|end| *end <= file.len()).ok_or_else(short)?;
        storages.insert(key, at + 8..end);
        at = end;
    }
    // The keys are those of the state dict, which outlives the list.
    let named = tensors.iter().filter_map(|t| Some((t.storage, storages.get(t.storage)?.clone()))).collect();
    Ok((tensors, named))
}

/// A tensor as the pickle tells it.
#[derive(Debug)]
struct Tensor<'a> {
    name: &'a str,
    storage: &'a str,
    dtype: Dtype,
    /// In elements.
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Tensor<'_> {
    fn place(self, storage: &Range<usize>) -> Found<Place> {
        let Self { name, dtype, .. } = self;
        let mut expected = 1usize;
        for (&n, &stride) in self.shape.iter().zip(&self.strides).rev() {
            // The stride of a single row says nothing.
            if n > 1 && stride != expected {
                return Err(format!("has tensor {name} in another order than row by row; save its .contiguous()"));
            }
            expected = expected.checked_mul(n).ok_or_else(|| format!("has tensor {name} of an impossible shape"))?;
        }
        let size = size_of_one(dtype);
        let start = self.offset.checked_mul(size).and_then(|n| n.checked_add(storage.start));
        let range = start.and_then(|start| Some(start..expected.checked_mul(size)?.checked_add(start)?));
        match range.filter(|range| range.end <= storage.end) {
            Some(bytes) => Ok(Place { dtype, shape: self.shape, bytes }),
            None => Err(format!("ends before the values of tensor {name}; copy or download it again")),
        }
    }
}

fn size_of_one(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F64 | Dtype::I64 => 8,
        Dtype::F32 | Dtype::I32 => 4,
        Dtype::F16 | Dtype::BF16 | Dtype::I16 => 2,
        _ => 1,
    }
}

fn storage_type(name: &str) -> Option<Dtype> {
    Some(match name {
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "DoubleStorage" => Dtype::F64,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

#[derive(Debug)]
enum Node<'a> {
    Int(i64),
    Text(&'a str),
    /// Module and name.
    Global(&'a str, &'a str),
    /// A tuple or a list.
    Items(Vec<u32>),
    Dict(Vec<(u32, u32)>),
    /// What a call of the first with the items of the second would give.
    Call(u32, u32),
    /// What the file holds outside the pickle.
    Persistent(u32),
    /// Nothing that describes a tensor.
    Other,
}

/// The objects of a pickle.
struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    /// Bytes read.
    length: usize,
}

/// The state of reading.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<u32>,
    marks: Vec<usize>,
    memo: HashMap<u32, u32>,
}

impl<'a> Pickle<'a> {
    /// The object that a pickle describes, as a number, and all objects in it.
    fn read(bytes: &'a [u8]) -> Found<(u32, Self)> {
        let mut machine =
            Machine { bytes, at: 0, nodes: vec![], stack: vec![], marks: vec![], memo: HashMap::default() };
        while machine.step()? {}
        let root = machine.pop()?;
        Ok((root, Self { nodes: machine.nodes, length: machine.at }))
    }

    fn node(&self, at: u32) -> &Node<'a> {
        &self.nodes[at as usize] // numbers are those of nodes
    }

    fn text(&self, at: u32) -> Option<&'a str> {
        if let Node::Text(text) = self.node(at) { Some(text) } else { None }
    }

    fn items(&self, at: u32) -> Option<&[u32]> {
        if let Node::Items(items) = self.node(at) { Some(items) } else { None }
    }

    fn size(&self, at: u32) -> Option<usize> {
        if let Node::Int(n) = self.node(at) { usize::try_from(*n).ok() } else { None }
    }

    /// Key and type of every storage.
    fn storages(&self) -> impl Iterator<Item = (&'a str, Dtype)> {
        self.nodes.iter().filter_map(|node| if let Node::Persistent(id) = node { self.storage(*id) } else { None })
    }

    /// Of `("storage", type, key, location, elements)`; files of old add a view, which must be none.
    fn storage(&self, id: u32) -> Option<(&'a str, Dtype)> {
        let items = self.items(id)?;
        let (&[tag, class, key, _, _], rest) = items.split_first_chunk()?;
        let Node::Global("torch", class) = self.node(class) else { return None };
        let whole = rest.iter().all(|&view| matches!(self.node(view), Node::Other));
        (self.text(tag)? == "storage" && whole).then_some((self.text(key)?, storage_type(class)?))
    }

    /// The tensors of a state dict, which a checkpoint of a trainer may hold as one of its parts.
    fn state_dict(&self, root: u32) -> Found<Vec<Tensor<'a>>> {
        let Node::Dict(entries) = self.node(root) else {
            return Err("does not hold a state dict; save model.state_dict(), not the model itself".into());
        };
        let part = |name: &str| entries.iter().find(|(key, _)| self.text(*key) == Some(name)).map(|(_, value)| *value);
        let inner = ["state_dict", "model_state_dict"].into_iter().find_map(part);
        let entries = match inner.map(|at| self.node(at)) {
            Some(Node::Dict(inner)) => inner,
            _ => entries,
        };
        let mut tensors = vec![];
        for &(key, value) in entries {
            let (Some(name), Node::Call(..)) = (self.text(key), self.node(value)) else { continue };
            let tensor = self.tensor(name, value);
            tensors.push(tensor.ok_or_else(|| format!("has tensor {name} in a form that is not known"))?);
        }
        Ok(tensors)
    }

    /// Of a call of `torch._utils._rebuild_tensor_v2(storage, offset, size, strides, …)`, in what it may be wrapped.
    fn tensor(&self, name: &'a str, mut value: u32) -> Option<Tensor<'a>> {
        for _ in 0..3 {
            let &Node::Call(mut callee, mut args) = self.node(value) else { return None };
            let items = self.items(args)?;
            match *self.node(callee) {
                Node::Global("torch._utils", "_rebuild_parameter") => {
                    value = *items.first()?;
                    continue;
                }
                Node::Global("torch._tensor", "_rebuild_from_type_v2") => {
                    (callee, args) = (*items.first()?, *items.get(2)?)
                }
                _ => {}
            }
            let Node::Global("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") = self.node(callee) else {
                return None;
            };
            let (&[storage, offset, shape, strides], _) = self.items(args)?.split_first_chunk()?;
            let Node::Persistent(id) = *self.node(storage) else { return None };
            let (storage, dtype) = self.storage(id)?;
            let sizes = |at| self.items(at)?.iter().map(|&n| self.size(n)).collect::<Option<Vec<_>>>();
            let (shape, strides) = (sizes(shape)?, sizes(strides)?);
            let offset = self.size(offset)?;
            return (shape.len() == strides.len()).then_some(Tensor { name, storage, dtype, offset, shape, strides });
        }
        None
    }
}

impl<'a> Machine<'a> {
    /// One opcode; `false` after the last.
    fn step(&mut self) -> Found<bool> {
        let [code] = self.take()?;
        match code {
            0x80 => drop(self.take::<1>()?), // protocol
            0x95 => drop(self.take::<8>()?), // frame
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'c' => {
                let global = Node::Global(self.line()?, self.line()?);
                self.push(global)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (&Node::Text(module), &Node::Text(name)) = (self.node(module), self.node(name)) else {
                    return Err(self.wrong("a name that is no text"));
                };
                self.push(Node::Global(module, name))?;
            }
            b'q' | b'r' | 0x94 => {
                let key = match code {
                    b'q' => self.byte()?,
                    b'r' => u32::from_le_bytes(self.take()?),
                    _ => self.memo.len() as u32,
                };
                let top = self.top()?;
                self.memo.insert(key, top);
            }
            b'h' | b'j' => {
                let key = if code == b'h' { self.byte()? } else { u32::from_le_bytes(self.take()?) };
                let known = self.memo.get(&key).copied();
                self.stack.push(known.ok_or_else(|| self.wrong("a use of what was not made"))?);
            }
            b'X' | b'T' | b'B' => self.string(|bytes| u32::from_le_bytes(bytes).into(), code == b'X')?,
            0x8c | b'U' | b'C' => self.string(|[n]: [u8; 1]| n.into(), code == 0x8c)?,
            0x8d => self.string(u64::from_le_bytes, true)?,
            b'J' => {
                let n = i32::from_le_bytes(self.take()?);
                self.push(Node::Int(n.into()))?;
            }
            b'K' => {
                let n = self.byte()?;
                self.push(Node::Int(n.into()))?;
            }
            b'M' => {
                let n = u16::from_le_bytes(self.take()?);
                self.push(Node::Int(n.into()))?;
            }
            0x8a => self.long()?,
            b'G' => {
                self.take::<8>()?;
                self.push(Node::Other)?;
            }
            b'N' | 0x88 | 0x89 => self.push(Node::Other)?,
            b')' | b']' => self.push(Node::Items(vec![]))?,
            b'}' => self.push(Node::Dict(vec![]))?,
            b't' | b'l' => {
                let items = self.since_mark()?;
                self.push(Node::Items(items))?;
            }
            0x85..=0x87 => {
                let start = self.stack.len().checked_sub(usize::from(code) - 0x84);
                let items = self.stack.split_off(start.ok_or_else(|| self.wrong("a tuple of nothing"))?);
                self.push(Node::Items(items))?;
            }
            b'd' => {
                let items = self.since_mark()?;
                self.push(Node::Dict(pairs(&items)))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set(&items)?;
            }
            b'R' | 0x81 => {
                let (args, callee) = (self.pop()?, self.pop()?);
                let is_dict = matches!(self.node(callee), Node::Global("collections", "OrderedDict" | "defaultdict"));
                self.push(if is_dict { Node::Dict(vec![]) } else { Node::Call(callee, args) })?;
            }
            // Attributes of the object below, such as a state dict's _metadata.
            b'b' => drop(self.pop()?),
            b'Q' => {
                let id = self.pop()?;
                self.push(Node::Persistent(id))?;
            }
            b'.' => return Ok(false),
            other => return Err(self.wrong(&format!("opcode {other:#04x}"))),
        }
        Ok(true)
    }

    fn wrong(&self, what: &str) -> String {
        format!("is not a file of torch.save that can be read: {what} at byte {} of its pickle", self.at)
    }

    fn node(&self, at: u32) -> &Node<'a> {
        &self.nodes[at as usize]
    }

    fn slice(&mut self, length: usize) -> Found<&'a [u8]> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.wrong("an early end"))?;
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    fn take<const N: usize>(&mut self) -> Found<[u8; N]> {
        let bytes = self.slice(N)?;
        bytes.try_into().map_err(|_| self.wrong("an early end"))
    }

    fn byte(&mut self) -> Found<u32> {
        Ok(self.take::<1>()?[0].into())
    }

    fn line(&mut self) -> Found<&'a str> {
        let length = self.bytes[self.at..].iter().position(|b| *b == b'\n');
        let line = self.slice(length.ok_or_else(|| self.wrong("an early end"))? + 1)?;
        std::str::from_utf8(&line[..line.len() - 1]).map_err(|_| self.wrong("a name that is not UTF-8"))
    }

    /// A text after its length; bytes that are none are of no use.
    fn string<const N: usize>(&mut self, length: impl Fn([u8; N]) -> u64, is_text: bool) -> Found<()> {
        let length = length(self.take()?);
        let bytes = self.slice(usize::try_from(length).unwrap_or(usize::MAX))?;
        match std::str::from_utf8(bytes) {
            Ok(text) => self.push(Node::Text(text)),
            Err(_) if is_text => Err(self.wrong("a text that is not UTF-8")),
            Err(_) => self.push(Node::Other),
        }
    }

    /// Little-endian, in two's complement; what does not fit 64 bits is no size.
    fn long(&mut self) -> Found<()> {
        let length = self.byte()? as usize;
        let bytes = self.slice(length)?;
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut eight = [if negative { 0xff } else { 0 }; 8];
        let node = match eight.get_mut(..length) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Node::Int(i64::from_le_bytes(eight))
            }
            None => Node::Other,
        };
        self.push(node)
    }

    fn push(&mut self, node: Node<'a>) -> Found<()> {
        let number = u32::try_from(self.nodes.len()).map_err(|_| self.wrong("too many objects"))?;
        self.nodes.push(node);
        self.stack.push(number);
        Ok(())
    }

    /// The last object, not beyond a mark.
    fn top(&self) -> Found<u32> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = self.stack.last().filter(|_| self.stack.len() > floor);
        top.copied().ok_or_else(|| self.wrong("a missing object"))
    }

    fn pop(&mut self) -> Found<u32> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn since_mark(&mut self) -> Found<Vec<u32>> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len());
        Ok(self.stack.split_off(mark.ok_or_else(|| self.wrong("a missing mark"))?))
    }

    fn append(&mut self, items: &[u32]) -> Found<()> {
        let list = self.top()? as usize;
        if let Node::Items(list) = &mut self.nodes[list] {
            list.extend(items);
        }
        Ok(())
    }

    fn set(&mut self, items: &[u32]) -> Found<()> {
        let dict = self.top()? as usize;
        if let Node::Dict(entries) = &mut self.nodes[dict] {
            entries.extend(pairs(items));
        }
        Ok(())
    }
}

fn pairs(items: &[u32]) -> Vec<(u32, u32)> {
    items.as_chunks().0.iter().map(|[key, value]| (*key, *value)).collect()
}

#[cfg(test)]
mod tests;
