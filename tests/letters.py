"""A tokenizer that knows single letters: enough for a text model that is built on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def tokenizer(folder: Path) -> tuple[Any, int]:
    """CLIP's, made in ``folder``, for 12 tokens at most; and how many it knows, begin and end being the last two."""
    transformers = pytest.importorskip("transformers")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return transformers.CLIPTokenizer.from_pretrained(str(folder), model_max_length=12), len(words)
