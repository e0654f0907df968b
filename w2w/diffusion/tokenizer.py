"""CLIP's byte-pair tokenizer through ``transformers``, from a pipeline's tokenizer folder."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging


@dataclasses.dataclass(frozen=True)
class ClipTokenizer:
    """Maps prompts to rows of token indices: start, prompt, end, padding.

    Attributes:
      tokenizer: transformers' ``CLIPTokenizer``.
      length: tokens per prompt.
    """

    tokenizer: Any
    length: int

    def __call__(self, prompts: str | Sequence[str]) -> np.ndarray:
        """Returns int32 ``[prompts, length]``; logs a warning for each prompt that is cut."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        whole = self.tokenizer(prompts)["input_ids"]
        for prompt, row in zip(prompts, whole, strict=True):
            if len(row) > self.length:
                logging.warning(
                    "prompt %r has %d tokens, the last %d are cut",
                    prompt, len(row), len(row) - self.length,
                )
        rows = self.tokenizer(
            prompts, padding="max_length", max_length=self.length, truncation=True
        )["input_ids"]
        return np.asarray(rows, np.int32)


def load(folder: Path) -> ClipTokenizer:
    """The tokenizer of a folder with ``vocab.json`` and ``merges.txt`` (or ``tokenizer.json``).

    Raises:
      FileNotFoundError: none of these files is there.
      ImportError: ``transformers`` is not installed.
    """
    if not any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        raise FileNotFoundError(f"{folder}: no tokenizer; expected vocab.json and merges.txt")
    try:
        from transformers import CLIPTokenizer
    except ImportError as error:
        raise ImportError(
            "the tokenizer needs transformers: pip install 'manifoldry[w2w]'"
        ) from error
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    return ClipTokenizer(tokenizer, int(tokenizer.model_max_length))
