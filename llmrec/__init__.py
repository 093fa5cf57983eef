"""llmrec: make a Hugging Face causal LLM recommend from a catalogue by semantic IDs.

Public names are imported on first use, so that `import llmrec` needs neither torch nor a second.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "AllowList": "llmrec.leaf_filter",
    "Binding": "llmrec.checkpoint",
    "Catalog": "llmrec.catalog",
    "LeafFilter": "llmrec.leaf_filter",
    "Recommender": "llmrec.recommender",
    "SidDecoder": "llmrec.decoder",
    "SidLogitsProcessor": "llmrec.logits_processor",
    "SidTable": "llmrec.sid",
    "SidTrie": "llmrec.trie",
    "SidVocabulary": "llmrec.vocab",
    "sid_generate": "llmrec.decoding",
    "sid_generation_config": "llmrec.decoding",
    "tree_beam_search": "llmrec.beam_search",
    "tree_sample": "llmrec.sampling",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'llmrec' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)
