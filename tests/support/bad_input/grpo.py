"""grpo: rewards, roll-outs and their options."""

from __future__ import annotations

from . import Case
from .damage import folder, text

OWN = "grpo --rewards @own.py:mine"


def own(body: str) -> dict:
    return {"own.py": text(f"def mine(history, item_ids, target):\n    return {body}\n")}


CASES = {
    "start that was not fine-tuned": Case("grpo --model @base", ("was written by `llmrec extend`", "llmrec sft")),
    "start that is an adapter": Case("grpo --model @adapter", ("adapter' is an adapter, not a merged model",),
                                     {"adapter": folder("adapter_config.json")}),
    "start of another catalogue": Case("grpo --catalog @other", ("was extended for another catalogue",)),
    "unknown reward": Case("grpo --rewards ruel", ("unknown reward 'ruel'", "did you mean 'rule'", "module:function")),
    "no reward": Case("grpo --rewards", ("rewards is empty; name at least one, such as rule",)),
    "reward twice": Case("grpo --rewards rule rule", ("rewards repeats a name",)),
    "weights of other rewards": Case("grpo --reward-weights 1", ("reward_weights has 1 numbers for 2 rewards",)),
    "weight of nothing": Case("grpo --reward-weights 0 1", ("a reward of weight 0 has no effect: leave it out",)),
    "reward in no file": Case(OWN, ("own.py:mine' cannot be loaded", "FileNotFoundError")),
    "reward that is no Python": Case(OWN, ("own.py:mine' cannot be loaded", "SyntaxError"),
                                     {"own.py": text("def mine(")}),
    "reward of another name": Case("grpo --rewards @own.py:yours", ("own.py' has no callable 'yours'",), own("[]")),
    "reward that is not a number": Case(OWN, ("own.py:mine' is nan for the item 'item-",),
                                        own("[float('nan')] * len(item_ids)")),
    "reward of a wrong length": Case(OWN, ("own.py:mine' returned 1 numbers for a group of 16 items",), own("[1.0]")),
    "reward that returns nothing": Case(OWN, ("own.py:mine' returned None for a group of 16 items",), own("None")),
    "reward that fails": Case(OWN, ("own.py:mine' failed on the history", "KeyError: 'price'"), own("{}['price']")),
    "group of one": Case("grpo --num-generations 1", ("num_generations is 1; at least 2 is needed",)),
    "more roll-outs than items": Case("grpo --num-generations 999",
                                      ("num_generations is 999, but the catalogue has", "use rollouts 'sampled'")),
    "more beams than items": Case("grpo --num-generations 999 --rollouts beams", ("rollouts 'beams' draws each once",)),
    "unknown loss": Case("grpo --loss ppo", ("loss is 'ppo'; choose from grpo, dr_grpo",)),
    "loss that was removed": Case("grpo --loss gspo", ("loss is 'gspo'; removed:", "use grpo or dr_grpo")),
    "clipping that was removed": Case("grpo --epsilon-high 0.1", ("epsilon_high", "removed:", "one optimiser step")),
    "replacement of idle groups": Case("grpo --idle refill", ("idle", "removed:", "inject_target")),
    "another normalisation": Case("grpo --normalize-over level", ("normalize_over", "removed:")),
    "too few prompts": Case("grpo --batch-size 1000 --micro-batch-size 8",
                            ("prompts to train on, fewer than batch_size 1000",)),
}  # fmt: skip
