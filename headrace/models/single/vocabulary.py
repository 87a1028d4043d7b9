"""CLIP's tokenizer, which checkpoints of one file leave out: written from the merges beside this module."""

from __future__ import annotations

import lzma
from pathlib import Path

_MERGES = Path(__file__).with_name("clip_merges.txt.xz")
START, END = "<|startoftext|>", "<|endoftext|>"
SIZE = 49408
"""Tokens: 256 bytes, the same at the end of a word, the merges, start and end."""


def merges() -> list[str]:
    """``left right``, in the order in which they are applied."""
    return lzma.decompress(_MERGES.read_bytes()).decode().split("\n")


def vocabulary(lines: list[str]) -> dict[str, int]:
    """The number of each token. Bytes that print come first, then the rest, as in GPT-2's."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = [chr(byte) for byte in plain] + [chr(0x100 + number) for number in range(256 - len(plain))]
    words = [*characters, *(f"{character}</w>" for character in characters)]
    words += [line.replace(" ", "") for line in lines]
    return {word: number for number, word in enumerate([*words, START, END])}


def write_tokenizer(folder: Path, *, pad: str = END, length: int = 77) -> None:
    """CLIP's tokenizer in the files of transformers. ``pad``: ``!`` (token 0) for SDXL's second encoder."""
    from transformers import CLIPTokenizer

    lines = merges()
    CLIPTokenizer(
        vocab=vocabulary(lines),
        merges=[tuple(line.split(" ")) for line in lines],
        pad_token=pad,
        model_max_length=length,
    ).save_pretrained(folder)
