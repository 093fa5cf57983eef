"""From the options of `llmrec teach` to those of a ranker."""

from __future__ import annotations

import dataclasses

from llmrec.baselines.counted import COUNTED_BASELINES
from llmrec.baselines.mixture import Mixture
from llmrec.baselines.networks import TAUGHT_NETWORKS
from llmrec.baselines.scores import Scores
from llmrec.configs.file import load_config
from llmrec.configs.options import Config, suggestion
from llmrec.configs.teach import RANKERS, TeachConfig

OPTIONS = "options"  # field of TeachConfig that holds the options of the ranker
OPTION_CLASSES: dict[str, type[Config]] = {
    **{name: kind.options for name, kind in COUNTED_BASELINES.items()},
    **{name: kind.options for name, kind in TAUGHT_NETWORKS.items()},
    **{kind.name: kind.options for kind in (Mixture, Scores)},
}


def option_blocks(ranker: str | None = None) -> dict[str, type[Config]]:
    """Argument `blocks` of `load_config` for `llmrec teach`: the field, and the class that knows its options.

    Args:
        ranker: Name of the ranker; without one there are no options.

    Raises:
        ValueError: If there is no such ranker.
    """
    if ranker is not None and ranker not in OPTION_CLASSES:
        raise ValueError(f"unknown ranker '{ranker}'; {suggestion(ranker, RANKERS)}")
    return {OPTIONS: OPTION_CLASSES[ranker] if ranker else Config}


def with_defaults(config: TeachConfig) -> TeachConfig:
    """The same config with every option of its ranker, defaults included, so that they are part of a run's identity.

    With `search`, the default of counted rankers, the options stay as they are: valid chooses what is not given.

    Raises:
        ValueError: With every problem of the options at once.
    """
    chosen = load_config(OPTION_CLASSES[config.ranker], overrides=config.options)
    search = config.ranker in COUNTED_BASELINES if config.search is None else config.search
    options = config.options if search else dataclasses.asdict(chosen)
    return dataclasses.replace(config, search=search, options=options)
