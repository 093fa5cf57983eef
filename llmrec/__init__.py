"""llmrec: make a Hugging Face causal LLM recommend from a catalogue by semantic IDs.

Public names are imported on first use, so that `import llmrec` needs neither torch nor a second.
"""

import warnings
from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "AllowList": "llmrec.decoding.trie.allow_list",
    "SidConfig": "llmrec.model.checkpoint",
    "Catalog": "llmrec.data.catalog",
    "LeafFilter": "llmrec.decoding.trie.filter",
    "Recommender": "llmrec.recommender",
    "SidDecoder": "llmrec.decoding.decoder",
    "SidLogitsProcessor": "llmrec.decoding.logits_processor",
    "SidTable": "llmrec.sid.table",
    "SidTrie": "llmrec.decoding.trie.trie",
    "SidVocabulary": "llmrec.sid.vocabulary",
    "sid_generate": "llmrec.decoding.generate",
    "sid_generation_config": "llmrec.decoding.generate",
    "tree_beam_search": "llmrec.decoding.beam_search",
    "tree_sample": "llmrec.decoding.sampling",
}
_RENAMED = {"Binding": "SidConfig"}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _RENAMED:
        warnings.warn(f"llmrec.{name} is now llmrec.{_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name not in _PUBLIC:
        raise AttributeError(f"module 'llmrec' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)
