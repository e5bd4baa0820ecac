//! Tensor names: prefixes of wrappers, order, adapters.

use std::cmp::Ordering;

use super::error::SourceError;
use super::file::Source;
use super::tensor::{Index, SourceTensor};

/// Parts that `torch.compile`, data-parallel wrappers and adapters put between the parts of a name.
const WRAPPERS: [&str; 5] =
    ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module", "base_layer"];

/// Prefixes of names in files that have no embedding, and of names beside the model's prefix.
const PREFIXES: [&str; 2] = ["module.", "model."];

/// First parts of the names of weights, in all naming schemes.
const WEIGHTS: [&str; 9] =
    ["emb", "blocks", "ln_out", "head", "embeddings", "embed_tokens", "layers", "norm", "lm_head"];

/// Longest tensor name accepted.
pub(super) const MAX_NAME: usize = 512;

/// Longest name in a file, where wrappers may have put prefixes in front of it.
pub(super) const MAX_STORED_NAME: usize = 2 * MAX_NAME;

/// Most entries of a checkpoint, tensors and others. A model of 1024 layers has 40,000 tensors.
pub(super) const MAX_ENTRIES: usize = 1 << 17;

/// Most dimensions of a tensor.
pub(super) const MAX_DIMENSIONS: usize = 8;

/// Refuses a checkpoint of more entries than any model has.
pub(super) fn check_count(source: &Source, entries: usize) -> Result<(), SourceError> {
    if entries > MAX_ENTRIES {
        return Err(source.malformed(format!("more than {MAX_ENTRIES} entries")));
    }
    Ok(())
}

/// Strips prefixes and sorts. Unreadable entries that are no weights become other entries.
pub(super) fn clean(source: &Source, index: &mut Index) -> Result<(), SourceError> {
    let Index { tensors, unreadable, other_entries, .. } = index;
    for name in tensors.iter_mut().map(|t| &mut t.name).chain(unreadable.iter_mut().map(|u| &mut u.name)) {
        drop_wrappers(name);
    }
    let names = || tensors.iter().map(|t| &*t.name).chain(unreadable.iter().map(|u| &*u.name));
    let prefix = model_prefix(source, names)?;
    for name in tensors.iter_mut().map(|t| &mut t.name).chain(unreadable.iter_mut().map(|u| &mut u.name)) {
        let stripped = strip_prefixes(name.strip_prefix(&prefix).unwrap_or(name));
        if stripped.len() != name.len() {
            *name = stripped.to_owned();
        }
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(source.malformed(format!("a tensor name of {} bytes", name.len())));
        }
    }
    let others = unreadable.extract_if(.., |entry| {
        let first = entry.name.split('.').next();
        !first.is_some_and(|first| WEIGHTS.contains(&first))
    });
    other_entries.extend(others.map(|entry| entry.name));
    sort(source, tensors)
}

/// Removes the parts of a name that wrappers add.
fn drop_wrappers(name: &mut String) {
    if name.split('.').any(|part| WRAPPERS.contains(&part)) {
        let kept = name.split('.').filter(|part| !WRAPPERS.contains(part));
        *name = kept.collect::<Vec<_>>().join(".");
    }
}

/// The prefix of the model's names: what stands before `emb.weight`. In a file without an embedding,
/// what stands before `blocks.` in every name that has it.
fn model_prefix<'n, I: Iterator<Item = &'n str>>(
    source: &Source,
    names: impl Fn() -> I,
) -> Result<String, SourceError> {
    let has_prefix = |name: &&str| name.is_empty() || name.ends_with('.');
    let embeddings = names().filter_map(|name| name.strip_suffix("emb.weight")).filter(has_prefix);
    let mut prefixes: Vec<&str> = embeddings.filter(|prefix| !prefix.contains("blocks.")).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    // Another part of the model may have an embedding of its own, but no layers.
    if prefixes.len() > 1 {
        let has_layers = |prefix: &&str| {
            names().any(|name| name.strip_prefix(*prefix).is_some_and(|name| name.starts_with("blocks.")))
        };
        let with_layers: Vec<&str> = prefixes.iter().copied().filter(has_layers).collect();
        if !with_layers.is_empty() {
            prefixes = with_layers;
        }
    }
    match prefixes[..] {
        [prefix] => Ok(prefix.to_owned()),
        [] => {
            let before = |name: &'n str| {
                let (prefix, rest) = name.split_at(name.find("blocks.")?);
                (has_prefix(&prefix) && split_layer(rest).is_some()).then_some(prefix)
            };
            let mut found = names().filter_map(before);
            let first = found.next().unwrap_or_default();
            Ok(if found.all(|prefix| prefix == first) { first.to_owned() } else { String::new() })
        }
        _ => {
            let shown: Vec<_> = prefixes.iter().take(8).map(|prefix| format!("{prefix}emb.weight")).collect();
            Err(source.unsupported(format!(
                "{} models in one dict: {}; save the tensors of one of them alone",
                prefixes.len(),
                shown.join(", ").escape_debug()
            )))
        }
    }
}

/// Sorts into natural order; refuses equal names.
pub(super) fn sort(source: &Source, tensors: &mut [SourceTensor]) -> Result<(), SourceError> {
    tensors.sort_unstable_by(|a, b| natural_cmp(&a.name, &b.name));
    for pair in tensors.windows(2) {
        if pair[0].name == pair[1].name {
            return Err(source.tensor(
                &pair[0].name,
                "one tensor of that name",
                "two, after removing prefixes and translating names",
            ));
        }
    }
    Ok(())
}

fn strip_prefixes(mut name: &str) -> &str {
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = rest;
    }
    name
}

/// Finds a name in a sorted list.
pub(super) fn find<'a>(tensors: &'a [SourceTensor], name: &str) -> Option<&'a SourceTensor> {
    let index = tensors.binary_search_by(|tensor| natural_cmp(&tensor.name, name)).ok()?;
    tensors.get(index)
}

/// Splits `blocks.7.att.key.weight` into the layer's number and the name inside the layer.
pub(super) fn split_layer(name: &str) -> Option<(usize, &str)> {
    split_numbered(name, "blocks.")
}

/// The same for layers of another name; `prefix` ends with a dot.
pub(super) fn split_numbered<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (number, local) = name.strip_prefix(prefix)?.split_once('.')?;
    let canonical =
        number == "0" || (!number.starts_with('0') && number.bytes().all(|byte| byte.is_ascii_digit()));
    canonical.then_some((number.parse().ok()?, local))
}

/// Number of layers: one more than the largest number in a name.
pub(super) fn layers<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    names.filter_map(|name| split_layer(name)).map(|(layer, _)| layer.saturating_add(1)).max().unwrap_or(0)
}

/// Orders runs of digits by value and everything else by bytes; equal only for equal names.
pub(super) fn natural_cmp(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a.as_bytes(), b.as_bytes());
    while let (Some(p), Some(q)) = (x.first(), y.first()) {
        let order = if p.is_ascii_digit() && q.is_ascii_digit() {
            let (m, n) = (take_number(&mut x), take_number(&mut y));
            m.len().cmp(&n.len()).then_with(|| m.cmp(n))
        } else {
            (x, y) = (&x[1..], &y[1..]);
            p.cmp(q)
        };
        if order.is_ne() {
            return order;
        }
    }
    x.len().cmp(&y.len()).then_with(|| a.cmp(b))
}

/// Splits off the leading digits, without leading zeros.
fn take_number<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    let zeros = digits.iter().position(|&byte| byte != b'0').unwrap_or(digits.len());
    &digits[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_by_the_value_of_their_numbers() {
        let mut names =
            ["blocks.10.a", "blocks.2.b", "blocks.2.a", "emb", "blocks.02.a", "blocks", "blocks.9"];
        names.sort_unstable_by(|a, b| natural_cmp(a, b));
        assert_eq!(
            names,
            ["blocks", "blocks.02.a", "blocks.2.a", "blocks.2.b", "blocks.9", "blocks.10.a", "emb"]
        );
    }

    #[test]
    fn natural_order_is_total_and_equal_only_for_equal_names() {
        let names =
            ["", "0", "00", "1", "01", "a", "a1", "a01", "a1b", "a01b", "a1.2", "a01.02", "ä", "10", "9"];
        for a in names {
            for b in names {
                assert_eq!(natural_cmp(a, b), natural_cmp(b, a).reverse(), "{a:?} {b:?}");
                assert_eq!(natural_cmp(a, b).is_eq(), a == b, "{a:?} {b:?}");
                for c in names {
                    if natural_cmp(a, b).is_le() && natural_cmp(b, c).is_le() {
                        assert!(natural_cmp(a, c).is_le(), "{a:?} {b:?} {c:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn prefixes_are_stripped_in_any_order_and_number() {
        assert_eq!(strip_prefixes("module.model.module.emb.weight"), "emb.weight");
        assert_eq!(strip_prefixes("models.emb.weight"), "models.emb.weight");
        assert_eq!(strip_prefixes("blocks.0.module.x"), "blocks.0.module.x");
    }

    #[test]
    fn parts_of_wrappers_are_dropped_wherever_they_stand() {
        for (name, kept) in [
            ("_orig_mod.emb.weight", "emb.weight"),
            ("_fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module.att.x", "blocks.0.att.x"),
            ("blocks.0._orig_mod_.x", "blocks.0._orig_mod_.x"),
            ("emb._orig_mod", "emb"),
        ] {
            let mut name = name.to_owned();
            drop_wrappers(&mut name);
            assert_eq!(name, kept);
        }
    }
}
