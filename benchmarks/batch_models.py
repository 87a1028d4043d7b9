"""The model that batch benchmarks load: a Llama of some 200 MB with random weights.

    python -m benchmarks.batch_models FOLDER

Large enough to be seen in a process's memory, small enough to compute on one core. No hub is needed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.workers import ROOT, BenchmarkError

NAME = "llama-50m"
"""Its folder below the models folder, which is what requests call it too."""


def models_folder(base: Path) -> Path:
    """A models folder below ``base`` with the model in it; built when it is not there yet."""
    folder = base / "models"
    if not (folder / NAME).exists():
        folder.mkdir(parents=True, exist_ok=True)
        # In another process, because torch and transformers are imported for it.
        command = [sys.executable, "-m", "benchmarks.batch_models", str(folder / NAME)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            raise BenchmarkError(f"{NAME} cannot be built: {done.stderr.strip()[-800:]}")
    return folder


def weights_of(folder: Path) -> list[Path]:
    """The files of its weights."""
    return sorted((folder / NAME).glob("*.safetensors"))


def build(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from headrace.models.tiny import fill
    from headrace.models.tiny_text import chat_tokenizer

    tokenizer = chat_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=15,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        fill(LlamaForCausalLM(config), NAME).save_pretrained(work)
        tokenizer.save_pretrained(work)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
