"""The nodes through which a stream enters and leaves a workflow.

They hold no queues. The plan puts the frame where a `LoadTensor` is linked and takes the result from what a
`SaveTensor` is linked to, so that neither is ever called. The names and inputs are those of ComfyStream's
nodes and of the ComfyUI nodes that its rules turn into them.
"""

from __future__ import annotations

from typing import Any, ClassVar

InputTypes = dict[str, dict[str, Any]]

_TIMEOUT = ("FLOAT", {"default": 1.0, "min": 0.1, "max": 30.0, "step": 0.1})


class StreamNode:
    """Declares; is never run."""

    CATEGORY = "stream"
    FUNCTION = "execute"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()

    def execute(self, **inputs: Any) -> tuple[Any, ...]:
        raise RuntimeError(f"{type(self).__name__} stands for the stream and cannot be run by itself")


class LoadTensor(StreamNode):
    """The present frame; MASK is empty, as that of a picture without alpha."""

    DESCRIPTION = "The present frame of the stream."
    RETURN_TYPES = ("IMAGE", "MASK")

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {}, "optional": {"timeout_seconds": _TIMEOUT}}


class PrimaryInputLoadImage(StreamNode):
    """A picture chosen in the editor; on a stream, the present frame."""

    DESCRIPTION = "The present frame of the stream; in the editor, a picture."
    RETURN_TYPES = ("IMAGE", "MASK")

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"image": ("STRING", {"image_upload": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool:  # noqa: N802
        return True


class SaveTensor(StreamNode):
    """The result of the workflow."""

    DESCRIPTION = "The result: goes out as the stream's picture."
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"images": ("IMAGE",)}}


class PreviewImage(SaveTensor):
    """Shows the result in the editor; on a stream, a `SaveTensor`."""

    CATEGORY = "image"


class SaveImage(SaveTensor):
    """Saves the result in the editor; on a stream, a `SaveTensor`."""

    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})}}


class LoadAudioTensor(StreamNode):
    """The last ``buffer_size`` milliseconds of sound."""

    DESCRIPTION = "The sound of the stream."
    RETURN_TYPES = ("AUDIO",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {"buffer_size": ("FLOAT", {"default": 500.0})},
            "optional": {"timeout_seconds": _TIMEOUT},
        }


class SaveAudioTensor(StreamNode):
    """Sound that goes out."""

    DESCRIPTION = "The result: goes out as the stream's sound."
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"audio": ("AUDIO",)}}


class SaveTextTensor:
    """Text that goes out beside the pictures. The plan runs this node and takes the text that it returns."""

    CATEGORY = "stream"
    DESCRIPTION = "The result: goes out as text beside the stream."
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()
    FUNCTION = "execute"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {"data": ("STRING", {"forceInput": True})},
            "optional": {"remove_linebreaks": ("BOOLEAN", {"default": True})},
        }

    def execute(self, data: str, remove_linebreaks: bool = True) -> tuple[str]:
        text = str(data)
        return (text.replace("\n", "").replace("\r", "") if remove_linebreaks else text,)


NODE_CLASS_MAPPINGS: dict[str, Any] = {
    node_class.__name__: node_class
    for node_class in (
        LoadTensor,
        PrimaryInputLoadImage,
        SaveTensor,
        PreviewImage,
        SaveImage,
        LoadAudioTensor,
        SaveAudioTensor,
        SaveTextTensor,
    )
}
