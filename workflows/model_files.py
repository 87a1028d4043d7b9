"""Inputs that choose a file, the folders that such files belong in, and the file that was probably meant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from workflows.definitions import InputDefinition
from workflows.values import nearest, show

INPUT_FOLDER = "input"
FOLDERS = "folders"
"""Option of an input whose files are on this machine: their folder by kind (``input``, ``output``, ``temp``).
Null is a folder that is not known, and of a kind without an entry there is none."""

_FOLDER_OF_INPUT = {
    "ckpt_name": "checkpoints",
    "unet_name": "diffusion_models",
    "vae_name": "vae",
    "lora_name": "loras",
    "control_net_name": "controlnet",
    "clip_name": "text_encoders",
    "clip_name1": "text_encoders",
    "clip_name2": "text_encoders",
    "clip_name3": "text_encoders",
    "clip_name4": "text_encoders",
    "style_model_name": "style_models",
    "gligen_name": "gligen",
    "hypernetwork_name": "hypernetworks",
    "photomaker_model_name": "photomaker",
    "audio_encoder_name": "audio_encoders",
}
"""Folder classes of ComfyUI, by the names that its own nodes give such inputs."""

_FOLDER_OF = {
    ("CLIPVisionLoader", "clip_name"): "clip_vision",
    ("UpscaleModelLoader", "model_name"): "upscale_models",
    ("LatentUpscaleModelLoader", "model_name"): "latent_upscale_models",
    ("ModelPatchLoader", "name"): "model_patches",
    ("DiffusersLoader", "model_path"): "diffusers",
    ("LoadLatent", "latent"): INPUT_FOLDER,
    ("LoadImage", "image"): INPUT_FOLDER,
    ("LoadImageMask", "image"): INPUT_FOLDER,
}
_ANNOTATED = re.compile(r"(.*?)\s*\[(input|output|temp)\]\s*", re.DOTALL)
_UPLOADS = ("image_upload", "video_upload", "audio_upload", "file_upload", "mesh_upload")
_SUFFIXES = frozenset(
    {".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf", ".onnx", ".engine"}
    | {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".mp4", ".webm", ".mov", ".mkv", ".avi"}
    | {".wav", ".mp3", ".flac", ".ogg", ".m4a", ".glb", ".obj", ".latent", ".yaml"}
)


def is_file_choice(class_type: str, declared: InputDefinition, value: object) -> bool:
    """Whether an input of choices chooses a file: by its name, by what it offers, or by what it is given."""
    if declared.choices is None or not isinstance(value, str):
        return False
    if folder_of(class_type, declared) is not None:
        return True
    offered = [choice for choice in declared.choices if isinstance(choice, str)]
    return _is_file(value) and (not offered or any(map(_is_file, offered)))


def folder_of(class_type: str, declared: InputDefinition) -> str | None:
    """The folder class that a file of this input belongs in, where that is known."""
    known = _FOLDER_OF.get((class_type, declared.name)) or _FOLDER_OF_INPUT.get(declared.name)
    if known is None and takes_uploads(declared):
        return INPUT_FOLDER
    return known


def is_there(declared: InputDefinition, value: object) -> bool | None:
    """Whether a file is offered, or is in the folders that an input declares (`FOLDERS`); None where these
    are not known, and for paths that may lead elsewhere."""
    folders = declared.options.get(FOLDERS)
    if not isinstance(folders, Mapping) or not isinstance(value, str):
        return None
    if value in (declared.choices or ()):
        return True
    annotated = _ANNOTATED.fullmatch(value)
    name, kind = (annotated[1], annotated[2]) if annotated else (value, INPUT_FOLDER)
    if folders.get(kind, "") is None:
        return None
    if kind in folders and file_in(Path(folders[kind]), name) is not None:
        return True
    return None if Path(name).is_absolute() else False


def file_in(folder: Path, name: str) -> Path | None:
    """The file of that name in ``folder`` or in one below it, never outside; None when there is none."""
    try:
        top = folder.resolve()
        path = (top / name.replace("\\", "/")).resolve()
        return path if path.is_relative_to(top) and path.is_file() else None
    except (OSError, ValueError):  # a name that is too long, or has a NUL in it
        return None


def takes_uploads(declared: InputDefinition) -> bool:
    """Whether the input chooses a file that a person brings, out of the input folder."""
    return any(declared.options.get(option) for option in _UPLOADS)


def may_be_there(declared: InputDefinition, value: object) -> bool:
    """Whether a file may exist that is not offered: the offered ones of an upload are those of one folder."""
    return (
        takes_uploads(declared) and isinstance(value, str) and ("/" in value or value.rstrip().endswith("]"))
    )


def missing_file(class_type: str, declared: InputDefinition, value: str) -> str:
    """What to say of a file that is not there: its folder, and the nearest that is."""
    folder = folder_of(class_type, declared)
    # Our own nodes say where on this machine the folder is.
    shown = declared.options.get("folder") or (folder and _shown_folder(folder))
    place = f" in the folder {shown}" if shown else ""
    if declared.options.get(FOLDERS) == {}:
        return f"the file {show(value)} is missing: no input folder is set"
    offered = [choice for choice in declared.choices or () if isinstance(choice, str)]
    if not offered:
        hint = "; there is no such file at all" if folder is None else "; the folder is empty"
    else:
        hint = _meant(value, offered)
    return f"the file {show(value)} is missing{place}{hint}"


def _meant(value: str, offered: list[str]) -> str:
    name = PurePosixPath(value.replace("\\", "/")).name
    same = [one for one in offered if PurePosixPath(one.replace("\\", "/")).name == name]
    return f" (did you mean {same[0]}?)" if same else nearest(value, offered)


def _shown_folder(folder: str) -> str:
    return folder if folder == INPUT_FOLDER else f"models/{folder}"


def _is_file(name: object) -> bool:
    return isinstance(name, str) and PurePosixPath(name.replace("\\", "/")).suffix.lower() in _SUFFIXES
