"""Captions and segmentation in miniature."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    Sam2Config,
    Sam2Model,
)

from headrace.models.tiny import fill

_WORDS = (
    "a an the of with in on and picture photo man woman dog cat tree sky house street light red green blue"
)


def blip(folder: Path) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    known = _WORDS.split()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [
        *special,
        *known,
        *(w for w in letters if w not in known),
        *(f"##{letter}" for letter in letters),
    ]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    text = {
        "vocab_size": len(words), "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64, "projection_dim": 32,
        "bos_token_id": words.index("[DEC]"), "eos_token_id": words.index("[SEP]"),
        "sep_token_id": words.index("[SEP]"), "pad_token_id": words.index("[PAD]"),
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 64, "patch_size": 16, "projection_dim": 32,
    }  # fmt: skip
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=32, image_text_hidden_size=32)
    fill(BlipForConditionalGeneration(config), "blip").save_pretrained(folder)
    pictures = BlipImageProcessor(size={"height": 64, "width": 64})
    BlipProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)


def sam2(folder: Path) -> None:
    """No processor is written: that of the library needs torchvision."""
    config = Sam2Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 8,
                "num_attention_heads": 1,
                "image_size": [1024, 1024],
                "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 2, 4, 8],
                "window_size_per_stage": [8, 4, 14, 7],
                "global_attention_blocks": [3],
                "window_positional_embedding_background_size": [7, 7],
            },
            "backbone_channel_list": [64, 32, 16, 8],
            "fpn_hidden_size": 32,
        },
        prompt_encoder_config={"hidden_size": 32},
        mask_decoder_config={
            "hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": 32,
        },
    )  # fmt: skip
    fill(Sam2Model(config), "sam2").save_pretrained(folder)
