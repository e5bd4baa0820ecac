//! Makes every checkpoint look like BlinkDL's: names, split tensors, and which low-rank factors are
//! transposed.
//!
//! No rule looks at the file's name. Names tell transformers and flash-linear-attention apart.
//! Files for web-rwkv differ from BlinkDL's in little, and are recognised by that:
//!
//! * RWKV-6: `time_mix_x` in place of `time_maa_x`. All mixes and `time_first` have their
//!   names changed.
//! * RWKV-5: a `time_first` with one value per channel beside the group norm. BlinkDL's has one
//!   value per head and is an exponent; this one is `time_faaaa` under another name.
//! * RWKV-7: the same names, but low-rank factors whose shapes are swapped.
//!
//! A low-rank factor is as wide as the model on one side, and that side says how it is stored. Only
//! the shape counts, whatever the container. A factor that is as wide on both sides is stored as
//! the program stores all factors. If the program is unknown, it is stored like the other factors
//! of the file. If all factors of an RWKV-7 in a safetensors file are square, the user has to say
//! who wrote it. Torch files are BlinkDL's.

use super::aliases::{Naming, blinkdl_name, naming};
use super::error::SourceError;
use super::file::Source;
use super::location::Location;
use super::names::{self, find, split_layer};
use super::tensor::{Container, SourceTensor};

/// The mixes of RWKV-7 in the order in which one tensor holds them.
const MIXES: [&str; 6] = ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g"];

/// Low-rank factors that BlinkDL stores as `[width, rank]`.
const FIRST_FACTORS: [&str; 6] =
    ["att.time_maa_w1", "att.time_decay_w1", "att.w1", "att.a1", "att.v1", "att.g1"];

/// Low-rank factors that BlinkDL stores as `[.., rank, width]`.
const SECOND_FACTORS: [&str; 6] =
    ["att.time_maa_w2", "att.time_decay_w2", "att.w2", "att.a2", "att.v2", "att.g2"];

const TUNED_STATE: &str = "att.time_state";

/// Renames, splits and marks the tensors. They come sorted and stay sorted. `wanted` decides
/// between BlinkDL and web-rwkv where the tensors do not.
pub(super) fn canonicalize(
    source: &Source,
    container: Container,
    tensors: &mut Vec<SourceTensor>,
    wanted: Option<Naming>,
) -> Result<Naming, SourceError> {
    refuse_states_alone(source, container, tensors)?;
    let mut naming = if container == Container::Gguf { Naming::LlamaCpp } else { naming(tensors) };
    tensors.iter_mut().for_each(|tensor| tensor.name = blinkdl_name(naming, &tensor.name));
    split_mixes(source, container, naming, tensors)?;
    names::sort(source, tensors)?;

    let dynamic_mixes = rename_mixes_of_v6(tensors);
    let raw_bonus = container != Container::RwkvCpp && rename_raw_bonus(tensors);
    names::sort(source, tensors)?;
    if naming == Naming::BlinkDl && (dynamic_mixes || raw_bonus) {
        naming = Naming::WebRwkv;
    }

    let always_swapped = container == Container::RwkvCpp
        || matches!(naming, Naming::FlashLinearAttention | Naming::LlamaCpp)
        || (naming == Naming::WebRwkv && dynamic_mixes);
    let if_all_square = match (naming, container) {
        (Naming::BlinkDl, Container::Safetensors) if find(tensors, "blocks.0.att.r_k").is_some() => {
            wanted.map(|wanted| wanted == Naming::WebRwkv)
        }
        _ => Some(false),
    };
    let swapped = mark_low_rank(source, tensors, always_swapped, if_all_square)?;
    if naming == Naming::BlinkDl && swapped && container != Container::RwkvCpp {
        naming = Naming::WebRwkv;
    }
    if naming == Naming::WebRwkv {
        let states = tensors.iter_mut().filter(|tensor| is_in_layer(tensor, TUNED_STATE));
        states.for_each(|tensor| tensor.transposed = true);
    }
    check_wanted(source, naming, wanted, tensors)?;
    Ok(naming)
}

/// Refuses an answer of the user that the tensors contradict. RWKV-4 and 5 have no factors, so the
/// names of both programs may be the same there.
fn check_wanted(
    source: &Source,
    naming: Naming,
    wanted: Option<Naming>,
    tensors: &[SourceTensor],
) -> Result<(), SourceError> {
    let has_factors = tensors.iter().any(|tensor| is_in_layer(tensor, "att.w1"));
    match wanted {
        Some(wanted) if wanted != naming && (naming != Naming::BlinkDl || has_factors) => {
            Err(source.unsupported(format!("the tensors are those of {naming}, and not of {wanted}")))
        }
        _ => Ok(()),
    }
}

/// Whether a tensor of some layer has this name inside the layer.
fn is_in_layer(tensor: &SourceTensor, local: &str) -> bool {
    split_layer(&tensor.name).is_some_and(|(_, name)| name == local)
}

/// Tuned states are square and have the same name everywhere, so a file of nothing else does not
/// say how they are stored. Trainers save them with torch; the safetensors files are conversions,
/// and those swap.
fn refuse_states_alone(
    source: &Source,
    container: Container,
    tensors: &[SourceTensor],
) -> Result<(), SourceError> {
    let alone = tensors.iter().all(|tensor| is_in_layer(tensor, TUNED_STATE));
    if container == Container::Safetensors && alone {
        return Err(source.unsupported(
            "a safetensors file of tuned states alone does not say whether they are transposed, as web-rwkv has \
             them; use the .pth file that they were converted from",
        ));
    }
    Ok(())
}

/// Presents the joined mixes of RWKV-7 as six tensors. rwkv.cpp and early flash-linear-attention
/// join them.
fn split_mixes(
    source: &Source,
    container: Container,
    naming: Naming,
    tensors: &mut Vec<SourceTensor>,
) -> Result<(), SourceError> {
    let joined_name = match (container, naming) {
        (Container::RwkvCpp, _) => "att.x_rwkvag",
        (_, Naming::FlashLinearAttention) => "att.x_x",
        _ => return Ok(()),
    };
    let joined: Vec<_> = tensors.extract_if(.., |tensor| is_in_layer(tensor, joined_name)).collect();
    for tensor in joined {
        let parts = six_parts(&tensor)
            .ok_or_else(|| source.tensor(&tensor.name, "six mixes", format!("{:?}", tensor.shape)))?;
        let layer = tensor.name.strip_suffix(joined_name).unwrap_or_default();
        for (mix, location) in MIXES.into_iter().zip(parts) {
            let name = format!("{layer}att.{mix}");
            let shape = vec![1, 1, tensor.elements() / MIXES.len()];
            tensors.push(SourceTensor { name, shape, location, ..tensor });
        }
    }
    Ok(())
}

/// Where the six equal parts of a tensor are.
fn six_parts(tensor: &SourceTensor) -> Option<Vec<Location>> {
    if tensor.shape.first() != Some(&MIXES.len()) {
        return None;
    }
    let width = tensor.elements() / MIXES.len();
    let part = |index| tensor.location.part(index * width, width, tensor.dtype.size());
    (0..MIXES.len()).map(part).collect()
}

/// Renames `time_mix_*` of RWKV-6 to `time_maa_*`. The same names are right in RWKV-4 and 5, which
/// have no `time_mix_x`.
fn rename_mixes_of_v6(tensors: &mut [SourceTensor]) -> bool {
    let is_v6 = find(tensors, "blocks.0.att.time_mix_x").is_some();
    if is_v6 {
        tensors.iter_mut().for_each(|tensor| tensor.name = tensor.name.replace(".time_mix_", ".time_maa_"));
    }
    is_v6
}

/// Renames `time_first` to `time_faaaa` if it has one value per channel and there is a group norm.
fn rename_raw_bonus(tensors: &mut [SourceTensor]) -> bool {
    let raw = |tensor: &SourceTensor| {
        let (layer, _) = split_layer(&tensor.name).filter(|(_, local)| *local == "att.time_first")?;
        let norm = find(tensors, &format!("blocks.{layer}.att.ln_x.weight"))?;
        let renamed = format!("blocks.{layer}.att.time_faaaa");
        (norm.elements() == tensor.elements() && find(tensors, &renamed).is_none()).then_some(renamed)
    };
    let renamed: Vec<_> =
        tensors.iter().enumerate().filter_map(|(i, tensor)| Some((i, raw(tensor)?))).collect();
    let any = !renamed.is_empty();
    for (index, name) in renamed {
        tensors[index].name = name;
    }
    any
}

/// Storage order of a factor, as far as its shape tells.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stored {
    AsBlinkDl,
    Swapped,
    /// Both sides are as wide as the model.
    Square,
    /// Neither side is: the shape is wrong either way.
    Unfit,
}

fn stored(tensor: &SourceTensor, width: usize, first: bool) -> Stored {
    let [.., rows, columns] = tensor.shape[..] else {
        return Stored::Unfit;
    };
    let (right, swapped) = if first { (rows, columns) } else { (columns, rows) };
    match (right == width, swapped == width) {
        (true, false) => Stored::AsBlinkDl,
        (false, true) => Stored::Swapped,
        (true, true) => Stored::Square,
        (false, false) => Stored::Unfit,
    }
}

/// Sets `transposed` of the low-rank factors; returns whether the file stores them swapped.
/// `if_all_square` says so where no shape does; without it such a file is refused.
fn mark_low_rank(
    source: &Source,
    tensors: &mut [SourceTensor],
    always_swapped: bool,
    if_all_square: Option<bool>,
) -> Result<bool, SourceError> {
    let matrix = |name: &str| <[usize; 2]>::try_from(find(tensors, name)?.shape.as_slice()).ok();
    let (Some([_, embd]), Some([att, _])) = (matrix("emb.weight"), matrix("blocks.0.att.key.weight")) else {
        return Ok(false);
    };
    let how = |tensor: &SourceTensor| {
        let (_, local) = split_layer(&tensor.name)?;
        if FIRST_FACTORS.contains(&local) {
            Some(stored(tensor, embd, true))
        } else if SECOND_FACTORS.contains(&local) {
            Some(stored(tensor, att, false))
        } else {
            None
        }
    };
    let any = |kind: Stored| tensors.iter().find(|tensor| how(tensor) == Some(kind));
    let (right, swapped, square) = (any(Stored::AsBlinkDl), any(Stored::Swapped), any(Stored::Square));
    if let (Some(right), Some(swapped), Some(square), false) = (right, swapped, square, always_swapped) {
        return Err(source.tensor(
            &square.name,
            "low-rank factors that are all stored one way, since this one is square",
            format!("{} one way and {} the other", right.name.escape_debug(), swapped.name.escape_debug()),
        ));
    }
    let file_swaps = always_swapped
        || match (right, swapped, square, if_all_square) {
            (None, None, Some(square), None) => {
                return Err(source.tensor(
                    &square.name,
                    "a low-rank factor that is not square, to see whether BlinkDL or web-rwkv wrote it",
                    "none in this file; --naming blinkdl or --naming web-rwkv decides",
                ));
            }
            (None, None, Some(_), Some(swapped)) => swapped,
            _ => swapped.is_some() && right.is_none(),
        };
    for tensor in tensors {
        tensor.transposed = match how(tensor) {
            Some(Stored::Swapped) => true,
            Some(Stored::Square) => file_swaps,
            _ => tensor.transposed,
        };
    }
    Ok(file_swaps)
}
