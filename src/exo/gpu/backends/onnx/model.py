"""Writes the smallest ONNX models there are: the product of two matrices of any size. Pure.

A model is a Protocol Buffers message of a few fields, written here by hand: so no package is needed that only makes
models. Sources: onnx.proto in https://github.com/onnx/onnx, the encoding in https://protobuf.dev/programming-guides/.
"""

from typing import Literal

Kind = Literal["float32", "float16", "int8"]

_FLOAT, _INT8, _INT32, _FLOAT16 = 1, 3, 6, 10
"""TensorProto.DataType."""
_ELEMENTS: dict[Kind, tuple[int, int]] = {
    "float32": (_FLOAT, _FLOAT),
    "float16": (_FLOAT16, _FLOAT),
    "int8": (_INT8, _INT32),
}
"""(of the factors, of the product)"""
_IR_VERSION, _OPSET_VERSION = 8, 13
_LENGTH_DELIMITED, _VARINT = 2, 0
_ATTRIBUTE_INT = 2


def product_model(kind: Kind) -> bytes:
    """Return a model with inputs `a` (rows, inner) and `b` (inner, columns), and the output `c`.

    Halves are widened to float32 before they are multiplied.
    """
    factor, product = _ELEMENTS[kind]
    if kind == "float16":
        nodes = [
            _node("Cast", ["a"], "wide_a", to=_FLOAT),
            _node("Cast", ["b"], "wide_b", to=_FLOAT),
            _node("MatMul", ["wide_a", "wide_b"], "c"),
        ]
    else:
        nodes = [_node("MatMulInteger" if kind == "int8" else "MatMul", ["a", "b"], "c")]
    graph = b"".join(_field(1, node) for node in nodes)
    graph += _field(2, b"product")
    graph += _field(11, _value("a", factor, ("rows", "inner")))
    graph += _field(11, _value("b", factor, ("inner", "columns")))
    graph += _field(12, _value("c", product, ("rows", "columns")))
    opset = _field(1, b"") + _number(2, _OPSET_VERSION)
    return _number(1, _IR_VERSION) + _field(7, graph) + _field(8, opset)


def _node(operation: str, inputs: list[str], output: str, *, to: int | None = None) -> bytes:
    content = b"".join(_field(1, name.encode()) for name in inputs)
    content += _field(2, output.encode()) + _field(4, operation.encode())
    if to is not None:
        content += _field(5, _field(1, b"to") + _number(3, to) + _number(20, _ATTRIBUTE_INT))
    return content


def _value(name: str, element: int, lengths: tuple[str, ...]) -> bytes:
    shape = b"".join(_field(1, _field(2, length.encode())) for length in lengths)
    tensor = _number(1, element) + _field(2, shape)
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
