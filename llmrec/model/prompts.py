"""The one prompt of llmrec: an instruction, then the history, then the answer.

Nothing stands between history and answer (no chat header, separator or marker), so the answer continues the history
and every item of a history is trained in the place where it will be asked for. A chat template may wrap the
instruction only. Checkpoints of other projects keep their own prompt, which `llmrec.sid.item_layout` describes.

Every prompt is put together here and in `llmrec.model.history`: `Prompt` makes the tokens before a history, a
HistoryEncoder adds the history. Training, evaluation and serving call these two, so a change of the prompt is a change
of one of these files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from llmrec.configs.sft import DEFAULT_INSTRUCTION
from llmrec.sid.vocabulary import SidVocabulary


@dataclass(frozen=True)
class Prompt:
    """The part of a prompt that precedes the history.

    Args:
        instruction: Text of the instruction.
        chat_template: Render it as a user turn of the tokenizer's chat template; the history opens the answer turn.
    """

    instruction: str = DEFAULT_INSTRUCTION
    chat_template: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.instruction, str) or not isinstance(self.chat_template, bool):
            raise TypeError(f"prompt: {self} needs a text and true or false")

    def prefix(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """List the token ids before the history; they are the same for every user.

        Raises:
            ValueError: If a chat template is asked for and absent, or the prefix is empty.
        """
        ids = self._opening(self._rendered(tokenizer), tokenizer)
        if not ids:
            raise ValueError("The instruction gives no tokens; the first item of a history needs something before it.")
        return ids

    def around(self, slot: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
        """List the token ids before and after a slot in the instruction, for a question about the text in the slot.

        Args:
            slot: Text that occurs once in the instruction.
            tokenizer: Tokenizer of the extended model.
        """
        before, after = self._rendered(tokenizer).split(slot)
        opening = self._opening(before.rstrip(" "), tokenizer)
        return opening, tokenizer.encode(after, add_special_tokens=False)

    def _rendered(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Put the instruction into the chat template, if it is asked for."""
        if not self.chat_template:
            return self.instruction
        if not tokenizer.chat_template:
            raise ValueError("chat_template is true but the tokenizer has none; set it to false.")
        turns = [{"role": "user", "content": self.instruction}]
        return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))

    def _opening(self, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Encode the first text of a prompt; a chat template has written its special tokens already."""
        ids = tokenizer.encode(text, add_special_tokens=not self.chat_template)
        ends = not self.chat_template and ids and ids[-1] == tokenizer.eos_token_id
        return ids[:-1] if ends else ids

    def to_dict(self) -> dict[str, str | bool]:
        """Convert the prompt to the arguments that make it, for llmrec.json."""
        return dataclasses.asdict(self)


def most_prompt_tokens(prefix: Sequence[int], num_items: int, vocabulary: SidVocabulary) -> int:
    """Bound the number of tokens of a prompt of `num_items` items."""
    suffix = () if vocabulary.layout is None else vocabulary.layout.suffix
    return len(prefix) + len(suffix) + num_items * vocabulary.tokens_per_item
