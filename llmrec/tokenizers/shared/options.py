"""Options that several tokenizers have. Each has its help text and bounds here; a method gives its paper's default."""

from functools import partial
from typing import Literal

from llmrec.configs.options import option

StraightThrough = Literal["per_level", "sum"]

view_weights = partial(
    option, "Weight of each of `view_names`, applied after the vectors are scaled to unit length.", None, above=0
)
num_levels = partial(option, "Number of codes per item, before a collision suffix.", least=1)
codebook_size = partial(option, "Number of codes per level.", least=2)
kmeans_iterations = partial(option, "Number of k-means iterations, per level or per node of a tree.", least=1)

learning_rate = partial(option, "Learning rate of AdamW, which stays constant.", above=0)
weight_decay = partial(option, "Weight decay of AdamW.", least=0)
batch_size = partial(option, "Number of items of a training step.", least=1)
max_epochs = partial(
    option, "Largest number of passes over the items; 0 keeps the codebooks as they are before training.", least=0
)
patience = partial(
    option,
    "Number of readings of the held-out loss, one per 100 steps, that may bring no improvement before training ends.",
    least=1,
)

encoder_layers = partial(option, "Sizes of the hidden layers of the encoder; the decoder mirrors them.", least=1)
latent_dim = partial(option, "Dimension of the latent vectors that are quantised.", least=1)
commitment = partial(option, "Weight of the commitment loss.", least=0)
sinkhorn_epsilon = partial(
    option,
    "Entropy of the Sinkhorn assignment that spreads the last level's codes evenly in training; 0 turns it off.",
    least=0,
)

llm = partial(option, "LLM whose tokenizer writes the items, as `model` of `llmrec extend`: path, Hub id or 'micro'.")
max_tokens = partial(option, "Largest number of tokens of an item, without the end.", least=8, most=60)
