"""Configs: one dataclass per stage with its options, their explanations, defaults and bounds.

Nothing here imports torch. `llmrec --help` builds its flags from these fields (options.py), and options that cannot
work are refused before anything is loaded.
"""

from typing import TypeAlias

from llmrec.configs.alternate import AlternateConfig
from llmrec.configs.dpo import DpoConfig
from llmrec.configs.embed import EmbedConfig
from llmrec.configs.ensemble import EnsembleConfig
from llmrec.configs.evaluate import CompareConfig, EvaluateConfig
from llmrec.configs.export import ExportConfig
from llmrec.configs.extend import ExtendConfig
from llmrec.configs.fine_tune import FineTuneConfig
from llmrec.configs.grpo import GrpoConfig
from llmrec.configs.import_ import ImportConfig
from llmrec.configs.options import Config
from llmrec.configs.prepare import PrepareConfig
from llmrec.configs.push import PushConfig
from llmrec.configs.quickstart import QuickstartConfig
from llmrec.configs.recommend import RecommendConfig
from llmrec.configs.refine import RefineConfig
from llmrec.configs.run import RunConfig
from llmrec.configs.serve import ServeConfig
from llmrec.configs.sft import SftConfig
from llmrec.configs.teach import TeachConfig
from llmrec.configs.tokenize import TokenizeConfig

__all__ = [
    "CHECKPOINTS",
    "STAGES",
    "TRAINING",
    "AlternateConfig",
    "CompareConfig",
    "DpoConfig",
    "EmbedConfig",
    "EnsembleConfig",
    "EvaluateConfig",
    "ExportConfig",
    "ExtendConfig",
    "FineTuneConfig",
    "GrpoConfig",
    "ImportConfig",
    "PreferenceConfig",
    "PrepareConfig",
    "PushConfig",
    "QuickstartConfig",
    "RecommendConfig",
    "RefineConfig",
    "RunConfig",
    "ServeConfig",
    "SftConfig",
    "TeachConfig",
    "TokenizeConfig",
]

PreferenceConfig: TypeAlias = DpoConfig | GrpoConfig

STAGES: dict[str, type[Config]] = {
    "run": RunConfig,
    "quickstart": QuickstartConfig,
    "prepare": PrepareConfig,
    "embed": EmbedConfig,
    "tokenize": TokenizeConfig,
    "extend": ExtendConfig,
    "teach": TeachConfig,
    "sft": SftConfig,
    "alternate": AlternateConfig,
    "refine": RefineConfig,
    "dpo": DpoConfig,
    "grpo": GrpoConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
    "ensemble": EnsembleConfig,
    "recommend": RecommendConfig,
    "serve": ServeConfig,
    "export": ExportConfig,
    "import": ImportConfig,
    "push": PushConfig,
}
TRAINING = ("sft", "alternate", "refine", "dpo", "grpo")  # stages that leave the trained LLM, merged
CHECKPOINTS = ("extend", *TRAINING, "import")  # stages that write a checkpoint
