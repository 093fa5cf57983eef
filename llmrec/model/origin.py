"""Origin of the weights of a base, random or pretrained, which decides what may be frozen or dropped out.

The name of a model does not say it: a directory may hold a model that was only initialised. Its weights do. Norms start
with equal weights and biases with zeros, in every architecture of transformers, and no training leaves them equal.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from llmrec.runtime.manifest import JsonObject

BASE_IS_RANDOM = "base_is_random"  # among the details of llmrec.json


def is_untrained(model: PreTrainedModel) -> bool:
    """Tell whether every vector among the weights (of norms, and biases) holds one value alone, as at the start.

    A model without such vectors is taken for trained: nobody publishes random weights.
    """
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    return bool(vectors) and all(bool((vector == vector[0]).all()) for vector in vectors)


def base_is_random(details: JsonObject) -> bool:
    """Tell whether the base of a checkpoint had random weights when `llmrec extend` read it.

    Args:
        details: Facts in its llmrec.json. Older ones do not say it, so only 'micro' is known to be random.
    """
    return bool(details.get(BASE_IS_RANDOM, details.get("base_model") == "micro"))
