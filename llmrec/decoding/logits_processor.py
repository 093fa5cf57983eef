"""SidLogitsProcessor: the trie inside somebody else's loop, `generate()` in any of its modes.

There are two grammars. In the strict one an answer is one SID, then end-of-sequence. With `free_text`, text and SIDs
alternate freely, and every SID that begins is one of the trie.

A call derives everything from the tokens that it is given. It costs one fill of a tensor as large as the scores and, on
an accelerator, one synchronisation, to find out if a row has left the grammar or its scores are NaN. The scores are not
masked in place, since `generate` may hand out that very tensor as `output_logits`. `llmrec.sid.normalization` defines
the choices of `normalize_over`.

Shapes: R rows (beams included), V tokens of the vocabulary, T tokens of a row, L levels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import LogitsProcessor

from llmrec.decoding.grammar import NO_TOKEN, check_prompt_end, child_of, last_sid
from llmrec.decoding.trie.lookups import ROOT
from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.answer_head import refuse_head
from llmrec.sid.normalization import NormalizeOver, check_normalize_over, normalize_codes
from llmrec.sid.vocabulary import SidVocabulary


class SidLogitsProcessor(LogitsProcessor):
    """Restrict any `generate()` loop (greedy, sampling, beams) to the SIDs of a trie.

    It keeps no state: each call walks the tokens after the prompt, so reordered beams and reused instances are safe.
    Only end-of-sequence, at score 0, may follow a complete SID or a row that has ended.

    With `free_text` the answer begins in text. In text every ordinary token is allowed, end-of-sequence included, and
    every code that begins a SID; text or the next SID may follow a complete SID. The position follows from the last
    tokens alone, so a call costs the same after a thousand words as after one.

    Args:
        trie: Legal SIDs, on the model's device.
        vocabulary: Tokens of their codes.
        prompt_length: Number of tokens of the (padded) prompt, `input_ids.shape[1]`.
        normalize_over: Tokens that scores are normalised over; `vocabulary` leaves them as `generate` made them.
        free_text: Allow ordinary tokens outside SIDs.

    Raises:
        ValueError: If the vocabulary lacks codes of the trie or has a head, or `free_text` is combined with words,
            pieces or another `normalize_over` than `vocabulary`.

    Source: constrained decoding by a prefix trie as in GENRE (arXiv:2010.00904).

    Examples:
        `model`, `tokenizer`, `table` and `sid_config` belong to a checkpoint; see `SidConfig.load`.

        >>> from llmrec import SidLogitsProcessor, SidTrie, sid_generation_config
        >>> vocabulary = sid_config.vocabulary
        >>> input_ids, _ = sid_config.encode([[0, 1]], table, tokenizer)
        >>> processor = SidLogitsProcessor(SidTrie(table), vocabulary, prompt_length=input_ids.shape[1])
        >>> config = sid_generation_config(vocabulary, num_beams=3, num_return_sequences=3)
        >>> output = model.generate(input_ids, logits_processor=[processor], generation_config=config)
        >>> answers = output.sequences[:, input_ids.shape[1] :]
        >>> sids = [tokenizer.decode(row, skip_special_tokens=True) for row in answers]
        >>> known = {vocabulary.text(table.codes([row])) for row in range(table.num_items)}
        >>> {sid.replace(" ", "") for sid in sids} <= known
        True
    """

    def __init__(
        self,
        trie: SidTrie,
        vocabulary: SidVocabulary,
        prompt_length: int,
        normalize_over: NormalizeOver = "vocabulary",
        free_text: bool = False,
    ):
        vocabulary.check_table(trie)
        refuse_head(vocabulary.head, "SidLogitsProcessor")
        check_normalize_over(normalize_over)
        if free_text and not vocabulary.tells_level:
            raise ValueError(
                "free_text tells codes from text by their tokens, but here codes are words or pieces; leave it out."
            )
        if free_text and normalize_over != "vocabulary":
            raise ValueError(
                f"normalize_over is '{normalize_over}', but with free_text codes compete with words; only 'vocabulary' "
                "is allowed."
            )
        self.trie, self.vocabulary, self.prompt_length = trie, vocabulary, prompt_length
        self.normalize_over, self.free_text = normalize_over, free_text

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask the scores of tokens that may not come next, and normalise the others.

        Args:
            input_ids: (R, T) int64 tokens of each row, T at least `prompt_length`.
            scores: (R, V) log-probabilities or logits of the next token.

        Returns:
            (R, V) scores, -inf where the grammar does not allow a token.

        Raises:
            ValueError: If the rows are shorter than the prompt, a prompt ends inside a SID, the tokens after a prompt
                break the grammar, the scores lack the SID tokens, or that of a legal token is NaN.

        Examples:
            `table` and `sid_config` belong to a checkpoint; see `SidConfig.load`.

            >>> import torch
            >>> from llmrec import SidLogitsProcessor, SidTrie
            >>> vocabulary = sid_config.vocabulary
            >>> processor = SidLogitsProcessor(SidTrie(table), vocabulary, prompt_length=1)
            >>> masked = processor(torch.tensor([[5]]), torch.zeros(1, vocabulary.token_range.stop))
            >>> allowed = masked[0].isfinite().nonzero().flatten() - vocabulary.starts[0]
            >>> allowed.tolist() == sorted(set(table.all_codes[:, 0].tolist()))  # first codes of the table
            True
        """
        if input_ids.shape[1] < self.prompt_length:
            raise ValueError(f"prompt_length is {self.prompt_length} but the rows have {input_ids.shape[1]} tokens.")
        end = self.vocabulary.token_range.stop if self.vocabulary.words is None else self.vocabulary.num_rows
        if scores.shape[1] < end:
            raise ValueError(
                f"The model scores {scores.shape[1]} tokens but the last SID token is {end - 1}; run `llmrec extend` "
                "on it, or load the checkpoint it wrote."
            )
        if input_ids.shape[1] == self.prompt_length:
            check_prompt_end(input_ids, self.trie, self.vocabulary)
        generated = input_ids[:, self.prompt_length :]
        return self._mask_text(generated, scores) if self.free_text else self._mask_sids(generated, scores)

    def _mask_sids(self, generated: Tensor, scores: Tensor) -> Tensor:
        """Mask by the strict grammar."""
        nodes, complete, stray = self._walk(generated)
        masked = torch.full_like(scores, -torch.inf)
        level, stuck = generated.shape[1], torch.zeros_like(complete)
        if level < self.trie.num_levels:
            rows, legal = self.vocabulary.rows(level, scores.device), self.trie.allowed(nodes, level)
            normalized = normalize_codes(scores[:, rows], legal, self.normalize_over)
            if isinstance(rows, slice):  # the table may use fewer codes than the vocabulary has
                rows = slice(rows.start, rows.start + legal.shape[1])
            masked[:, rows] = normalized
            stuck = ~complete & _without_finite(normalized)
        eos = self.vocabulary.eos_token_id
        fault = f"neither the beginning of a SID of the trie nor one and end-of-sequence ({eos})"
        self._check(stray, stuck, scores, generated, fault)
        masked[:, eos].masked_fill_(complete, 0)
        return masked

    def _walk(self, generated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Follow the tokens of each row.

        Returns:
            (R,) node that it has reached, -1 beyond a complete SID; (R,) bool, whether it has a complete SID; (R,)
            bool, whether it has left the grammar.
        """
        nodes = torch.full((len(generated),), ROOT, device=generated.device)
        complete = torch.zeros_like(nodes, dtype=torch.bool)
        stray = torch.zeros_like(complete)
        answer = generated[:, : self.trie.num_levels + 1]  # what follows end-of-sequence is `generate`'s padding
        for level in range(min(answer.shape[1], self.trie.num_levels)):
            nodes = child_of(nodes, answer[:, level], level, self.trie, self.vocabulary)
            stray |= ~complete & (nodes < 0)
            is_leaf = self.trie.is_leaf(nodes, level + 1)
            if level + 1 < answer.shape[1]:
                stray |= is_leaf & (answer[:, level + 1] != self.vocabulary.eos_token_id)
            complete |= is_leaf
        return nodes, complete, stray

    def _mask_text(self, generated: Tensor, scores: Tensor) -> Tensor:
        """Mask by the grammar of text and SIDs."""
        level, nodes, stray = self._place(generated)
        masked = scores.masked_fill((level > 0).unsqueeze(1), -torch.inf)
        tokens = self.vocabulary.added_range  # an item's own token is read, and never written
        masked[:, tokens.start : tokens.stop] = -torch.inf
        for at in range(self.trie.num_levels):
            legal = self.trie.allowed(nodes.masked_fill(level != at, -1), at)
            codes = slice(self.vocabulary.starts[at], self.vocabulary.starts[at] + legal.shape[1])
            masked[:, codes] = scores[:, codes].masked_fill(~legal, -torch.inf)
        fault = "where the last token breaks a SID, or starts a SID that is not in the trie"
        self._check(stray, _without_finite(masked), scores, generated, fault)
        return masked

    def _place(self, generated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find where each row stands.

        Only the last token is checked against the ones before it, which were last tokens of earlier calls.

        Returns:
            (R,) level of the code that would come next, 0 in text; (R,) node that it would extend; (R,) bool, rows that
            have left the grammar.
        """
        size = self.trie.num_levels + 1
        window = generated[:, -size:]
        window = pad(window, (size - window.shape[1], 0), value=NO_TOKEN)
        both = torch.cat([window[:, 1:], window[:, :-1]])
        levels, nodes, is_leaf = (part.chunk(2) for part in last_sid(both, self.trie, self.vocabulary))
        leaves_sid = levels[0] <= 0  # an ordinary token, or an item's first code
        was_inside = (levels[1] >= 0) & ~is_leaf[1]
        stray = (leaves_sid & was_inside) | ((levels[0] >= 0) & (nodes[0] < 0))
        is_inside = (levels[0] >= 0) & ~is_leaf[0]
        return (levels[0] + 1).masked_fill(~is_inside, 0), nodes[0].masked_fill(~is_inside, ROOT), stray

    def _check(self, stray: Tensor, stuck: Tensor, scores: Tensor, generated: Tensor, fault: str) -> None:
        """Raise if a row has left the grammar, or has no legal token with a finite score: one synchronisation for both.

        Args:
            stray: (R,) bool, rows that have left the grammar.
            stuck: (R,) bool, rows whose best legal token has no finite score.
            scores: (R, V) scores as they came.
            generated: (R, t) tokens after the prompt.
            fault: What is wrong with a stray row, for the message.
        """
        wrong = stray | stuck
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            tokens = generated[row, -self.trie.num_levels - 1 :].tolist()
            if bool(stray[row]):
                cause = self._cause(generated[row])
                raise ValueError(f"The answer of row {row} has the tokens {tokens}, {fault}. {cause}")
            if bool((scores[row].isnan() | scores[row].isposinf()).any()):
                raise ValueError(
                    f"The model scores legal tokens of row {row} with NaN or infinity: it overflows, or some of its "
                    "weights are not finite. Use the model in float32, or weights from before they broke."
                )
            raise ValueError(
                f"No token may follow the answer {tokens} of row {row}: another logits processor, or an option of "
                "`generate` such as bad_words_ids, gives -inf to all that the trie allows there. Lift that constraint, "
                "or take the items that it bars out of the trie (`SidTrie.remove`)."
            )

    def _cause(self, tokens: Tensor) -> str:
        """Tell why the answer of a row, (t,) tokens, has left the grammar.

        Under the processor only the last token can be wrong: one that it barred, if no other was left. A prompt that is
        taken for an answer is wrong from its beginning.
        """
        length = (
            f"Check that prompt_length {self.prompt_length} is the length of the padded prompt, and that the processor "
            "belongs to the model's SID table."
        )
        barred = (
            "If a logits processor behind this one bars what the trie allows, put it before this one; sampling with "
            "beams also draws such tokens if there are fewer legal continuations than beams, so lower num_beams then."
        )
        before = tokens[None, :-1]
        was_stray = self._place(before)[2] if self.free_text else self._walk(before)[2]
        if bool(was_stray.any()):
            return length
        return barred if len(tokens) > 1 else f"{length} {barred}"


def _without_finite(scores: Tensor) -> Tensor:
    """(R,) bool, rows whose best score is no number; the maximum hands NaN on, and reads 20 times as fast as isnan."""
    return ~scores.amax(dim=1).isfinite()
