"""Makes ``selfie_segmentation.onnx`` from the TensorFlow Lite file of the same name.

    python -m workflows.models.convert selfie_segmentation.tflite selfie_segmentation.onnx

Needs the packages ``tflite`` and ``onnx``, which nothing else here needs. The weights stay as they are, in
half precision; only the layout changes (planes instead of interleaved channels). README.md beside this file
tells where the file comes from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_SAME = 0  # tflite.Padding
_OPSET = 17


class Converter:
    """Walks the operators of one TensorFlow Lite graph and writes each as ONNX nodes.

    Raises `ValueError` for an operator or an option that the file for which this was written does not have.
    """

    def __init__(self, data: bytes) -> None:
        import onnx.helper
        import tflite

        self._tflite, self._helper = tflite, onnx.helper
        self._model = tflite.Model.GetRootAsModel(data, 0)
        self._graph = self._model.Subgraphs(0)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._constants: dict[int, npt.NDArray[Any]] = {}
        self._writers: dict[str, Callable[[Any, list[int], str], None]] = {
            "DEQUANTIZE": self._dequantize,
            "CONV_2D": self._conv,
            "DEPTHWISE_CONV_2D": self._depthwise,
            "AVERAGE_POOL_2D": self._average,
            "RESIZE_BILINEAR": self._resize,
            "CUSTOM": self._transposed,
            "RELU": lambda _, inputs, output: self._node("Relu", inputs, output),
            "HARD_SWISH": lambda _, inputs, output: self._node("HardSwish", inputs, output),
            "LOGISTIC": lambda _, inputs, output: self._node("Sigmoid", inputs, output),
            "ADD": lambda _, inputs, output: self._node("Add", inputs, output),
            "MUL": lambda _, inputs, output: self._node("Mul", inputs, output),
        }

    def convert(self) -> bytes:
        """The ONNX file: ``image`` n x 3 x 256 x 256 in 0..1 to ``mask`` n x 1 x 256 x 256 in 0..1."""
        import onnx

        names = {code: name for name, code in vars(self._tflite.BuiltinOperator).items() if name[0] != "_"}
        for index in range(self._graph.OperatorsLength()):
            operator = self._graph.Operators(index)
            code = self._model.OperatorCodes(operator.OpcodeIndex())
            name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            if name not in self._writers:
                raise ValueError(f"operator {name} is not known here")
            (output,) = operator.OutputsAsNumpy()
            self._writers[name](operator, [int(i) for i in operator.InputsAsNumpy()], self._name(output))
        kind = onnx.TensorProto.FLOAT
        graph = self._helper.make_graph(
            self._nodes,
            "selfie_segmentation",
            [
                self._helper.make_tensor_value_info(
                    "image", kind, ["n", 3, *self._sides(self._graph.Inputs(0))]
                )
            ],
            [
                self._helper.make_tensor_value_info(
                    "mask", kind, ["n", 1, *self._sides(self._graph.Outputs(0))]
                )
            ],
            self._weights,
        )
        model = self._helper.make_model(
            graph,
            producer_name="headrace",
            opset_imports=[self._helper.make_opsetid("", _OPSET)],
            ir_version=8,
            doc_string="MediaPipe selfie segmentation (general), Apache-2.0; see README.md",
        )
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())

    # -- tensors ---------------------------------------------------------------------------------------

    def _name(self, tensor: int) -> str:
        return {self._graph.Inputs(0): "image", self._graph.Outputs(0): "mask"}.get(tensor, f"t{tensor}")

    def _sides(self, tensor: int) -> list[int]:
        return [int(side) for side in self._graph.Tensors(tensor).ShapeAsNumpy()[1:3]]

    def _constant(self, tensor: int) -> npt.NDArray[Any]:
        if tensor in self._constants:
            return self._constants[tensor]
        found = self._graph.Tensors(tensor)
        if found.Type() != self._tflite.TensorType.FLOAT16:
            raise ValueError(f"tensor {tensor} is not in half precision")
        data = self._model.Buffers(found.Buffer()).DataAsNumpy()
        return np.frombuffer(data.tobytes(), "<f2").reshape(found.ShapeAsNumpy())

    def _weight(self, tensor: int, layout: tuple[int, ...] | None = None) -> str:
        """Store a constant, its axes in another order, and widen it when the network is loaded."""
        values = self._constants[tensor]
        values = np.ascontiguousarray(values if layout is None else values.transpose(layout))
        name = f"w{tensor}"
        self._weights.append(
            self._helper.make_tensor(name, 10, values.shape, values.astype("<f2").tobytes(), raw=True)
        )
        self._nodes.append(self._helper.make_node("Cast", [name], [f"{name}f"], to=1))
        return f"{name}f"

    # -- operators -------------------------------------------------------------------------------------

    def _node(self, kind: str, inputs: list[int], output: str, **attributes: Any) -> None:
        self._named(kind, [self._name(tensor) for tensor in inputs], output, **attributes)

    def _named(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self._nodes.append(self._helper.make_node(kind, inputs, [output], name=output, **attributes))

    def _options(self, operator: Any, kind: str) -> Any:
        table = operator.BuiltinOptions()
        options = getattr(self._tflite, kind)()
        options.Init(table.Bytes, table.Pos)
        if hasattr(options, "FusedActivationFunction") and options.FusedActivationFunction():
            raise ValueError(f"a fused activation in {kind}")
        return options

    def _dequantize(self, operator: Any, inputs: list[int], output: str) -> None:
        self._constants[int(operator.OutputsAsNumpy()[0])] = self._constant(inputs[0])

    def _conv(self, operator: Any, inputs: list[int], output: str) -> None:
        options = self._options(operator, "Conv2DOptions")
        self._convolution(options, inputs, output, self._weight(inputs[1], (0, 3, 1, 2)), 1)

    def _depthwise(self, operator: Any, inputs: list[int], output: str) -> None:
        options = self._options(operator, "DepthwiseConv2DOptions")
        channels = self._constants[inputs[1]].shape[3]
        self._convolution(options, inputs, output, self._weight(inputs[1], (3, 0, 1, 2)), channels)

    def _convolution(self, options: Any, inputs: list[int], output: str, weight: str, group: int) -> None:
        if options.DilationHFactor() != 1 or options.DilationWFactor() != 1:
            raise ValueError("a dilated convolution")
        self._named(
            "Conv",
            [self._name(inputs[0]), weight, self._weight(inputs[2])],
            output,
            group=group,
            strides=[options.StrideH(), options.StrideW()],
            auto_pad="SAME_UPPER" if options.Padding() == _SAME else "VALID",
        )

    def _transposed(self, operator: Any, inputs: list[int], output: str) -> None:
        """MediaPipe's Convolution2DTransposeBias: a transposed convolution without overlap."""
        code = self._model.OperatorCodes(operator.OpcodeIndex()).CustomCode()
        _, height, width = np.frombuffer(operator.CustomOptionsAsNumpy().tobytes(), "<i4").tolist()
        if code != b"Convolution2DTransposeBias" or self._constants[inputs[1]].shape[1:3] != (height, width):
            raise ValueError(f"custom operator {code!r} with a stride of {height} x {width}")
        names = [self._name(inputs[0]), self._weight(inputs[1], (3, 0, 1, 2)), self._weight(inputs[2])]
        self._named("ConvTranspose", names, output, strides=[height, width])

    def _average(self, operator: Any, inputs: list[int], output: str) -> None:
        options = self._options(operator, "Pool2DOptions")
        if [options.FilterHeight(), options.FilterWidth()] != self._sides(inputs[0]):
            raise ValueError("an average over less than the whole picture")
        self._node("GlobalAveragePool", inputs, output)

    def _resize(self, operator: Any, inputs: list[int], output: str) -> None:
        options = self._options(operator, "ResizeBilinearOptions")
        wanted, have = self._sides(int(operator.OutputsAsNumpy()[0])), self._sides(inputs[0])
        if options.AlignCorners() or not options.HalfPixelCenters() or wanted != [2 * side for side in have]:
            raise ValueError("a resize that is not twofold with half-pixel centres")
        self._weights.append(self._helper.make_tensor(f"{output}_scales", 1, [4], [1.0, 1.0, 2.0, 2.0]))
        self._named("Resize", [self._name(inputs[0]), "", f"{output}_scales"], output, mode="linear")


if __name__ == "__main__":
    _source, _target = map(Path, sys.argv[1:])
    _target.write_bytes(Converter(_source.read_bytes()).convert())
