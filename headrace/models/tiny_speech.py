"""Speech to text and text to speech in miniature."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import (
    GenerationConfig,
    VitsConfig,
    VitsModel,
    VitsTokenizer,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from headrace.models.tiny import fill
from headrace.models.tiny_text import byte_characters

_LANGUAGES = ("en", "de", "fr", "es")
_TASKS = ("translate", "transcribe")
_TIMES = 1501
"""0 to 30 seconds in steps of 20 ms."""


def whisper(folder: Path) -> None:
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{name}|>" for name in (*_LANGUAGES, *_TASKS))]
    special += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    times = [f"<|{step * 0.02:.2f}|>" for step in range(_TIMES)]
    words = [*byte_characters(), *special, *times]
    number = {word: index for index, word in enumerate(words)}
    tokenizer = WhisperTokenizer(
        vocab=number, merges=[], unk_token="<|endoftext|>", bos_token="<|endoftext|>",
        eos_token="<|endoftext|>", pad_token="<|endoftext|>", extra_special_tokens=special[1:],
    )  # fmt: skip
    end, start = number["<|endoftext|>"], number["<|startoftranscript|>"]
    config = WhisperConfig(
        vocab_size=len(words), num_mel_bins=80, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
        max_source_positions=1500, max_target_positions=64, pad_token_id=end, bos_token_id=end,
        eos_token_id=end, decoder_start_token_id=start, begin_suppress_tokens=None, suppress_tokens=None,
    )  # fmt: skip
    model = fill(WhisperForConditionalGeneration(config), "whisper")
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
        bos_token_id=end,
        max_length=64,
        is_multilingual=True,
        lang_to_id={f"<|{name}|>": number[f"<|{name}|>"] for name in _LANGUAGES},
        task_to_id={name: number[f"<|{name}|>"] for name in _TASKS},
        no_timestamps_token_id=number["<|notimestamps|>"],
        prev_sot_token_id=number["<|startofprev|>"],
        max_initial_timestamp_index=50,
        return_timestamps=False,
        alignment_heads=[[0, 0], [1, 1]],
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)


def vits(folder: Path) -> None:
    letters = ["<pad>", "<unk>", *" '-abcdefghijklmnopqrstuvwxyz"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({letter: index for index, letter in enumerate(letters)}))
    tokenizer = VitsTokenizer(
        str(vocabulary), language="eng", add_blank=True, normalize=True, phonemize=False
    )
    config = VitsConfig(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32,
        flow_size=16, spectrogram_bins=17, upsample_initial_channel=32, upsample_rates=[8, 8, 2, 2],
        upsample_kernel_sizes=[16, 16, 4, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
        prior_encoder_num_flows=2, prior_encoder_num_wavenet_layers=2, posterior_encoder_num_wavenet_layers=2,
        depth_separable_num_layers=2, duration_predictor_num_flows=2, wavenet_dilation_rate=1,
        sampling_rate=16000,
    )  # fmt: skip
    fill(VitsModel(config), "vits").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
