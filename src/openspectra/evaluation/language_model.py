"""lm-eval's Hugging Face model, faster and going on where it stopped, with a readable error for a text that does not fit.

Contexts that requests share are read once, and the head is applied only where a token is predicted: the same numbers as
lm-eval's but for the order of sums in the last digits.

Imports torch, transformers and lm-eval (some seconds): import this module where a model is needed, not at the top.
Legend: B rows, T tokens of the longest row, S predicted tokens, H hidden size, V entries of the vocabulary.
"""

from functools import cached_property, lru_cache
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

import openspectra.model.spectra_llama  # noqa: F401  registers the families that transformers does not know
from openspectra.data.round_trip import RoundTrip
from openspectra.errors import OpenSpectraError
from openspectra.evaluation.answers import Answers, key_of
from openspectra.evaluation.batches import Row, batches_of, rows_of

LOGITS = 2**24
"""Logits held at a time, 64 MB in float32."""
KEPT_TEXTS = 64
"""Texts whose tokens are remembered: the requests of an item follow each other and share their context."""


class LanguageModel(HFLM):
    """Scores as `lm_eval --model hf` does."""

    answers = Answers()
    """What was answered before; kept nowhere unless one with a file is set."""

    @cached_property
    def round_trip(self) -> RoundTrip:
        """What tells whether the tokens of a text decode to it."""
        return RoundTrip(self.tokenizer.backend_tokenizer)

    @cached_property
    def _encoded(self):
        return lru_cache(KEPT_TEXTS)(
            lambda text, settings: super(LanguageModel, self).tok_encode(text, **dict(settings))
        )

    def tok_encode(self, string, **settings):
        if isinstance(string, str):
            return list(self._encoded(string, tuple(sorted(settings.items()))))
        return super().tok_encode(string, **settings)

    def loglikelihood(self, requests, disable_tqdm=True):
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests, disable_tqdm=True):
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    @property
    def max_gen_toks(self) -> int:
        """Tokens generated where a task names no bound: lm-eval's, or half of a context too short for question and answer."""
        return min(super().max_gen_toks, self.max_length // 2)

    def generate_until(self, requests, disable_tqdm=True):
        """Answer in lm-eval's batches, each asked once."""
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(place)
        texts = [""] * len(requests)
        for places in groups.values():
            places.sort(key=lambda place: (-len(self.tok_encode(requests[place].args[0])), requests[place].args[0]))
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                key = key_of("generate", [requests[place].args for place in batch])
                found = self.answers.get(key)
                if found is None:
                    found = super().generate_until([requests[place] for place in batch], disable_tqdm=True)
                    self.answers.put(key, found)
                for place, text in zip(batch, found, strict=True):
                    texts[place] = text
        return texts

    def _loglikelihood_tokens(self, requests, disable_tqdm=True, override_bs=None):
        for texts, _, continuation_ids in requests:
            if texts and not continuation_ids:
                raise OpenSpectraError(
                    f"{self.pretrained}: its tokenizer has no token for {texts[1][:40]!r}, so there is nothing to score; train "
                    "with a tokenizer that writes this text, or leave the task out."
                )
        longest = max(len(continuation) for _, _, continuation in requests)
        if longest > self.max_length:
            raise OpenSpectraError(
                f"{self.pretrained}: reads at most {self.max_length} tokens, and an item asks for the likelihood of {longest}; "
                "take a shorter item, or a model with more `max_position_embeddings`."
            )
        asked = [(list(context), list(continuation)) for _, context, continuation in requests]
        answers: list[Any] = [None] * len(asked)
        for batch in batches_of(rows_of(asked, self.max_length), self.batch_size):
            places = [place for row in batch for place in row.places]
            key = key_of("likelihood", [[row.context, row.continuations] for row in batch])
            found = self.answers.get(key)
            if found is None:
                found = self._score(batch)
                self.answers.put(key, found)
            for place, (log_likelihood, is_greedy) in zip(places, found, strict=True):
                answers[place] = (log_likelihood, is_greedy)
        return answers

    @torch.inference_mode()
    def _score(self, rows: list[Row]) -> list[tuple[float, bool]]:
        """Return by continuation its log-likelihood in nats, and whether each of its tokens is the likeliest."""
        hidden_BTH = self._read(rows)
        places = [(number, place) for number, row in enumerate(rows) for each in row.scored for place in each]
        targets = [token for row in rows for each in row.continuations for token in each]
        rows_S, places_S = torch.tensor(places, device=self.device).T
        hidden_SH, targets_S = hidden_BTH[rows_S, places_S], torch.tensor(targets, device=self.device)
        head = self.model.get_output_embeddings()
        step = max(1, LOGITS // head.weight.shape[0])
        log_likelihoods, hits = [], []
        for start in range(0, len(targets), step):
            logits_SV = head(hidden_SH[start : start + step])
            chosen_S = targets_S[start : start + step]
            logs_SV = torch.log_softmax(logits_SV, dim=-1, dtype=self.softmax_dtype)
            log_likelihoods.append(logs_SV.gather(1, chosen_S[:, None])[:, 0])
            hits.append(logs_SV.argmax(-1) == chosen_S)
        lengths = [len(each) for row in rows for each in row.continuations]
        sums = torch.stack([part.sum() for part in torch.cat(log_likelihoods).split(lengths)])
        greedy = torch.stack([part.all() for part in torch.cat(hits).split(lengths)])
        return list(zip(sums.float().tolist(), greedy.tolist(), strict=True))

    def _read(self, rows: list[Row]) -> Tensor:
        """Return the hidden states [B, T, H] of rows padded on the right."""
        length = max(row.length for row in rows)
        tokens_BT = _padded([row.tokens for row in rows], length, 0, self.device)
        if all(len(row.continuations) == 1 for row in rows):
            return self.model.base_model(tokens_BT, use_cache=False).last_hidden_state
        branches_BT = _padded([row.branches for row in rows], length, -1, self.device)
        positions_BT = _padded([row.positions for row in rows], length, 0, self.device)
        before_TT = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        same_BTT = branches_BT[:, :, None] == branches_BT[:, None, :]
        seen_BTT = before_TT & (same_BTT | (branches_BT == 0)[:, None, :])
        dtype = self.model.dtype
        mask_B1TT = torch.zeros(seen_BTT.shape, dtype=dtype, device=self.device)
        mask_B1TT = mask_B1TT.masked_fill(~seen_BTT, torch.finfo(dtype).min)[:, None]
        read = self.model.base_model(tokens_BT, attention_mask=mask_B1TT, position_ids=positions_BT, use_cache=False)
        return read.last_hidden_state


def _padded(lists: list[list[int]], length: int, filler: int, device) -> Tensor:
    return torch.tensor([each + [filler] * (length - len(each)) for each in lists], device=device)
