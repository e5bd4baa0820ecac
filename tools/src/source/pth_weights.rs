//! Which of the dicts in a pickle has the weights. Trainers save more beside them, and under keys
//! of their own.

use super::error::SourceError;
use super::file::Source;
use super::names;
use super::pickle_values::{Object, Pickle, Value};

/// Most containers inside each other, down to the dict of the weights.
const MAX_DEPTH: usize = 8;

/// Most keys in a message, and their length in characters.
const SHOWN_KEYS: usize = 12;
const SHOWN_LEN: usize = 60;

/// The items of a dict.
pub(super) type Items<'a> = [(Value<'a>, Value<'a>)];

/// A container inside the saved value.
struct Node<'a> {
    object: usize,
    depth: usize,
    /// The container that has it, and its key or position there.
    parent: Option<(usize, Value<'a>)>,
}

/// The dict with the weights.
pub(super) struct Weights<'p, 'a> {
    pub(super) items: &'p Items<'a>,
    /// Keys of the saved dict that do not lead to the weights.
    pub(super) beside: Vec<String>,
}

/// Finds the dict of the weights: the one that has the embedding. A file without an embedding, such
/// as that of a tuned state, has a dict of tensors that is less deep than all others.
pub(super) fn find<'p, 'a>(pickle: &'p Pickle<'a>, source: &Source) -> Result<Weights<'p, 'a>, SourceError> {
    if let Value::Object(root) = pickle.root {
        names::check_count(source, dict(pickle, root).map_or(0, <[_]>::len))?;
    }
    let nodes = containers(pickle);
    let with = |test: fn(&Pickle<'_>, &Items<'_>) -> bool| -> Vec<&Node<'a>> {
        nodes
            .iter()
            .filter(|node| dict(pickle, node.object).is_some_and(|items| test(pickle, items)))
            .collect()
    };
    let mut found = with(has_embedding);
    if found.is_empty() {
        found = with(has_tensors);
        let depth = found.iter().map(|node| node.depth).min();
        found.retain(|node| Some(node.depth) == depth);
    }
    match found[..] {
        [node] => {
            let weights = |&(_, value): &(Value<'a>, Value<'a>)| {
                let of = |node: &Node<'a>| matches!(value, Value::Object(object) if object == node.object);
                of(node) || ancestors(&nodes, node).any(of)
            };
            let beside = match node.parent {
                None => Vec::new(),
                Some(_) => keys(pickle, |item| !weights(item)),
            };
            Ok(Weights { items: dict(pickle, node.object).unwrap_or_default(), beside })
        }
        [] => Err(no_tensors(pickle, source)),
        [first, ..] => {
            let shown = |node: &&Node<'_>| path(&nodes, node).iter().map(|key| format!("[{key}]")).collect();
            let paths: Vec<String> = found.iter().take(SHOWN_KEYS).map(shown).collect();
            Err(source.unsupported(format!(
                "{} dicts in this file could be the model: {}; save one of them alone: \
                 `torch.save(torch.load(\"OLD.pth\", map_location=\"cpu\"){}, \"NEW.pth\")`",
                found.len(),
                list(&paths),
                shown(&first)
            )))
        }
    }
}

/// The containers that have a container, the innermost first.
fn ancestors<'n, 'a>(nodes: &'n [Node<'a>], node: &'n Node<'a>) -> impl Iterator<Item = &'n Node<'a>> {
    std::iter::successors(Some(node), |node| node.parent.map(|(parent, _)| &nodes[parent])).skip(1)
}

/// The keys that lead to a container, as they may be printed.
fn path(nodes: &[Node<'_>], node: &Node<'_>) -> Vec<String> {
    let inside = std::iter::once(node).chain(ancestors(nodes, node));
    let mut keys: Vec<_> = inside.filter_map(|node| node.parent).map(|(_, key)| key_text(key)).collect();
    keys.reverse();
    keys
}

/// All dicts, lists and tuples, the outer ones first.
fn containers<'a>(pickle: &Pickle<'a>) -> Vec<Node<'a>> {
    let mut nodes = Vec::new();
    let mut seen = vec![false; pickle.objects.len()];
    let mut add = |nodes: &mut Vec<Node<'a>>, object: usize, depth: usize, parent| {
        let is_container =
            matches!(pickle.objects[object], Object::Dict(_) | Object::List(_) | Object::Tuple(_));
        if is_container && depth <= MAX_DEPTH && !std::mem::replace(&mut seen[object], true) {
            nodes.push(Node { object, depth, parent });
        }
    };
    if let Value::Object(root) = pickle.root {
        add(&mut nodes, root, 0, None);
    }
    let mut next = 0;
    while let Some(&Node { object, depth, .. }) = nodes.get(next) {
        let mut inside = |key, value| {
            if let Value::Object(object) = value {
                add(&mut nodes, object, depth + 1, Some((next, key)));
            }
        };
        let position = |i: usize| Value::Int(i as i64);
        match &pickle.objects[object] {
            Object::Dict(items) => items.iter().for_each(|&(key, value)| inside(key, value)),
            Object::Tuple(items) => {
                items.iter().enumerate().for_each(|(i, &value)| inside(position(i), value));
            }
            Object::List(items) => {
                items.iter().enumerate().for_each(|(i, &item)| inside(position(i), Value::Object(item)));
            }
            _ => {}
        }
        next += 1;
    }
    nodes
}

fn dict<'p, 'a>(pickle: &'p Pickle<'a>, object: usize) -> Option<&'p Items<'a>> {
    match pickle.objects.get(object)? {
        Object::Dict(items) => Some(items),
        _ => None,
    }
}

/// Whether a dict has the embedding of some naming scheme, under any prefix.
fn has_embedding(pickle: &Pickle<'_>, items: &Items<'_>) -> bool {
    items.iter().any(|&(key, value)| {
        let Value::Text(key) = key else { return false };
        let local =
            key.strip_suffix(".weight").map(|key| key.rsplit_once('.').map_or(key, |(_, local)| local));
        matches!(local, Some("emb" | "embeddings" | "embed_tokens"))
            && matches!(pickle.object(value), Some(Object::Tensor(_) | Object::Opaque(_)))
    })
}

fn has_tensors(pickle: &Pickle<'_>, items: &Items<'_>) -> bool {
    items.iter().any(|&(key, value)| {
        matches!(key, Value::Text(_)) && matches!(pickle.object(value), Some(Object::Tensor(_)))
    })
}

/// The error of a file in which no dict has tensors.
fn no_tensors(pickle: &Pickle<'_>, source: &Source) -> SourceError {
    match pickle.object(pickle.root) {
        Some(Object::Dict(_) | Object::List(_) | Object::Tuple(_)) => {
            let keys: Vec<_> = keys(pickle, |_| true).iter().map(|key| format!("{key:?}")).collect();
            let keys = if keys.is_empty() { "none".to_owned() } else { list(&keys) };
            source.not_a_checkpoint(format!("the saved dict holds no tensors; its keys are {keys}"))
        }
        Some(&Object::Opaque(global)) => SourceError::PickleGlobal {
            file: source.path().to_owned(),
            global: pickle.global_name(global),
            reason: "the file holds an object of that class, which only its own program can load; \
                     there, save the state_dict() of the model instead"
                .to_owned(),
        },
        _ => source.not_a_checkpoint("what was saved is no dict of tensors; save the state_dict()"),
    }
}

/// The keys of the saved dict, or of some of its items.
fn keys<'a>(pickle: &Pickle<'a>, is_one: impl Fn(&(Value<'a>, Value<'a>)) -> bool) -> Vec<String> {
    let items: &Items<'a> = match pickle.object(pickle.root) {
        Some(Object::Dict(items)) => items,
        _ => &[],
    };
    items.iter().filter(|item| is_one(item)).map(|&(key, _)| shown(key)).collect()
}

/// A key, shortened.
fn shown(key: Value<'_>) -> String {
    match key {
        Value::Text(text) => text.chars().take(SHOWN_LEN).collect(),
        Value::Int(n) => n.to_string(),
        _ => "?".to_owned(),
    }
}

/// A key, as Python writes it.
fn key_text(key: Value<'_>) -> String {
    if matches!(key, Value::Text(_)) { format!("{:?}", shown(key)) } else { shown(key) }
}

fn list(keys: &[String]) -> String {
    let shown = keys.iter().take(SHOWN_KEYS).map(String::as_str).collect::<Vec<_>>().join(", ");
    if keys.len() > SHOWN_KEYS { format!("{shown} and {} more", keys.len() - SHOWN_KEYS) } else { shown }
}
