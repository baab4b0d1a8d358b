"""lm-eval's Hugging Face model without progress bars, and with a readable error for a text that does not fit.

Imports torch, transformers and lm-eval (some seconds): import this module where a model is needed, not at the top.
"""

from functools import cached_property

from lm_eval.models.huggingface import HFLM

import openspectra.model.spectra_llama  # noqa: F401  registers the families that transformers does not know
from openspectra.data.round_trip import RoundTrip
from openspectra.errors import OpenSpectraError


class LanguageModel(HFLM):
    """Scores as `lm_eval --model hf` does."""

    @cached_property
    def round_trip(self) -> RoundTrip:
        """What tells whether the tokens of a text decode to it."""
        return RoundTrip(self.tokenizer.backend_tokenizer)

    def loglikelihood(self, requests, disable_tqdm=True):
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests, disable_tqdm=True):
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    @property
    def max_gen_toks(self) -> int:
        """Tokens generated where a task names no bound: lm-eval's, or half of a context too short for question and answer."""
        return min(super().max_gen_toks, self.max_length // 2)

    def generate_until(self, requests, disable_tqdm=True):
        return super().generate_until(requests, disable_tqdm=True)

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
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
