"""llmrec: make a Hugging Face causal LLM recommend from a catalogue by semantic IDs.

Public names are imported on first use, so that `import llmrec` needs neither torch nor a second.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the names below, for type checkers and editors
    from llmrec.data.catalog import Catalog as Catalog
    from llmrec.decoding.beam_search import tree_beam_search as tree_beam_search
    from llmrec.decoding.decoder import SidDecoder as SidDecoder
    from llmrec.decoding.generate import sid_generate as sid_generate
    from llmrec.decoding.generate import sid_generation_config as sid_generation_config
    from llmrec.decoding.logits_processor import SidLogitsProcessor as SidLogitsProcessor
    from llmrec.decoding.sampling import tree_sample as tree_sample
    from llmrec.decoding.trie.allow_list import AllowList as AllowList
    from llmrec.decoding.trie.filter import LeafFilter as LeafFilter
    from llmrec.decoding.trie.token_trie import TokenTrie as TokenTrie
    from llmrec.decoding.trie.trie import SidTrie as SidTrie
    from llmrec.model.checkpoint import SidConfig as SidConfig
    from llmrec.recommender import Recommender as Recommender
    from llmrec.serve.batch.tables import TableRecommender as TableRecommender
    from llmrec.sid.table import SidTable as SidTable
    from llmrec.sid.vocabulary import SidVocabulary as SidVocabulary

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
    "TableRecommender": "llmrec.serve.batch.tables",
    "TokenTrie": "llmrec.decoding.trie.token_trie",
    "sid_generate": "llmrec.decoding.generate",
    "sid_generation_config": "llmrec.decoding.generate",
    "tree_beam_search": "llmrec.decoding.beam_search",
    "tree_sample": "llmrec.decoding.sampling",
}
_RENAMED = {"Binding": "SidConfig"}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> object:
    if name in _RENAMED:
        warnings.warn(f"llmrec.{name} is now llmrec.{_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name not in _PUBLIC:
        raise AttributeError(f"module 'llmrec' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)
