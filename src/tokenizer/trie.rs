//! A trie in breadth-first order, for the longest match.

use super::section::{MAX_NODES, NONE, Reader, U32s, malformed};
use crate::error::Result;

/// Node 0 is the root. The children of a node are neighbours, sorted by label, and come after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trie<'a> {
    /// `[n_nodes + 1]`: the children of node i are `first_child[i]..first_child[i + 1]`.
    first_child: U32s<'a>,
    /// `[n_nodes]`: the token that ends here, or `NONE`.
    token: U32s<'a>,
    /// `[n_nodes]`: the byte that leads here.
    label: &'a [u8],
}

impl<'a> Trie<'a> {
    pub(super) fn read(reader: &mut Reader<'a>, n_tokens: usize, max_depth: usize) -> Result<Self> {
        let n_nodes = reader.len()?;
        if n_nodes > MAX_NODES {
            return Err(malformed("trie: too many nodes"));
        }
        let trie = Self {
            first_child: reader.u32s(n_nodes + 1)?,
            token: reader.u32s(n_nodes)?,
            label: reader.bytes(n_nodes)?,
        };
        if !reader.checks() {
            return Ok(trie);
        }
        trie.check_tree(max_depth)?;
        trie.check_labels()?;
        let mut tokens = trie.token.iter();
        if tokens.next() != Some(NONE) || tokens.any(|id| id != NONE && id as usize >= n_tokens) {
            return Err(malformed("trie: token outside the vocabulary"));
        }
        Ok(trie)
    }

    /// Checks the tree: children begin at 1, follow each other, come after their parent and end
    /// with the last node. Then every node is reached, and levels are ranges of nodes.
    fn check_tree(&self, max_depth: usize) -> Result<()> {
        let n_nodes = self.label.len();
        let children = || self.first_child.iter().map(|child| child as usize);
        let in_order =
            children().is_sorted() && children().take(n_nodes).zip(1..).all(|(child, next)| child >= next);
        if children().next() != Some(1) || children().last() != Some(n_nodes) || !in_order {
            return Err(malformed("trie: nodes are not in breadth-first order"));
        }
        let (mut level_end, mut depth) = (1, 0);
        while level_end < n_nodes {
            level_end = self.first_child.get(level_end).map_or(n_nodes, |child| child as usize);
            depth += 1;
        }
        if depth > max_depth {
            return Err(malformed("trie: deeper than the longest token"));
        }
        Ok(())
    }

    fn check_labels(&self) -> Result<()> {
        let rise = |node| self.children(node).is_some_and(|(_, labels)| labels.is_sorted_by(|a, b| a < b));
        if (0..self.label.len()).all(rise) { Ok(()) } else { Err(malformed("trie: labels do not rise")) }
    }

    /// The first child of a node, and the labels of all its children.
    #[inline]
    fn children(&self, node: usize) -> Option<(usize, &'a [u8])> {
        let (first, end) = self.first_child.pair(node)?;
        Some((first, self.label.get(first..end)?))
    }

    #[inline]
    fn child(&self, node: usize, byte: u8) -> Option<usize> {
        let (first, labels) = self.children(node)?;
        if labels.len() == 256 {
            return Some(first + usize::from(byte));
        }
        labels.binary_search(&byte).ok().map(|i| first + i)
    }

    /// The longest token at the beginning of `text`, and its length, which is not 0.
    #[inline]
    pub(super) fn longest_match(&self, text: &[u8]) -> Option<(u32, usize)> {
        let mut node = 0;
        let mut found = None;
        for (i, &byte) in text.iter().enumerate() {
            let Some(child) = self.child(node, byte) else { break };
            node = child;
            if let Some(id) = self.token.get(node).filter(|id| *id != NONE) {
                found = Some((id, i + 1));
            }
        }
        found
    }
}
