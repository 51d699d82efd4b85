"""Memory and products through the real ONNX Runtime, and what is said where its provider is missing."""

import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

from exo.gpu.backends.onnx.arrays import OnnxArrays
from exo.gpu.backends.onnx.model import Kind, product_model
from exo.gpu.driver import MatrixShape
from exo.gpu.errors import (
    BackendUnavailableError,
    DeviceLostError,
    NotComputingError,
    OutOfDeviceMemoryError,
)
from support.onnx_stand_in import on_the_processor

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

ONE = MatrixShape(rows=1, inner=1, columns=1)


def directml() -> OnnxArrays:
    return OnnxArrays(
        "DmlExecutionProvider",
        lambda ordinal: {"device_id": str(ordinal)},
        memory="dml",
        package="onnxruntime-directml",
    )


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_the_models_are_valid(kind: Kind) -> None:
    onnx = pytest.importorskip("onnx", reason="the package onnx, which checks models, is not installed")
    model = onnx.load_from_string(product_model(kind))
    onnx.checker.check_model(model, full_check=True)
    assert [one.name for one in model.graph.input] == ["a", "b"]


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_onnx_runtime_computes_them(kind: Kind) -> None:
    session = onnxruntime.InferenceSession(product_model(kind), providers=["CPUExecutionProvider"])
    assert session.get_providers() == ["CPUExecutionProvider"]
    left = numpy.array([[1, 2, 3], [4, 5, 6]], dtype=kind)
    right = numpy.array([[1], [0], [-1]], dtype=kind)
    (product,) = session.run(None, {"a": left, "b": right})
    assert product.tolist() == [[-2], [-2]]
    assert product.dtype == (numpy.int32 if kind == "int8" else numpy.float32)


class TestMissing:
    def test_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(BackendUnavailableError, match="not installed") as raised:
            directml().open(0)
        assert raised.value.install_command == "uv pip install onnxruntime-directml"

    def test_a_library_that_breaks(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "onnxruntime.py").write_text("raise ImportError('DLL load failed')")
        monkeypatch.delitem(sys.modules, "onnxruntime")
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(BackendUnavailableError, match="DLL load failed"):
            directml().open(0)

    def test_the_provider(self) -> None:
        if "DmlExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this ONNX Runtime has DirectML")
        with pytest.raises(BackendUnavailableError, match="has no DmlExecutionProvider") as raised:
            directml().open(0)
        assert "onnxruntime-directml" in raised.value.install_command

    def test_a_provider_that_gives_way_to_the_processor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """ONNX Runtime only warns: the session says what it really uses."""
        monkeypatch.setattr(
            onnxruntime, "get_available_providers", lambda: ["DmlExecutionProvider", "CPUExecutionProvider"]
        )
        arrays = directml()
        with pytest.warns(UserWarning, match="DmlExecutionProvider"), pytest.raises(BackendUnavailableError):
            arrays.open(0)
        with pytest.raises(DeviceLostError, match="closed"):
            arrays.allocate(0, 1, None)

    def test_a_provider_that_does_not_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*arguments: Any, **more: Any) -> None:
            raise RuntimeError("887A0004: this adapter is not supported")

        monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
        with pytest.raises(BackendUnavailableError, match="887A0004"):
            on_the_processor().open(0)


class TestFailing:
    @pytest.fixture
    def arrays(self) -> OnnxArrays:
        made = on_the_processor()
        made.open(0)
        return made

    def test_too_little_memory(self, arrays: OnnxArrays) -> None:
        with pytest.raises(OutOfDeviceMemoryError, match="1 fewer"):
            arrays.allocate(0, 11, 10)

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("DXGI error 887A0005: The GPU device instance has been suspended", DeviceLostError),
            ("Failed to allocate memory for requested buffer of size 99", OutOfDeviceMemoryError),
            ("something else", ValueError),
        ],
    )
    def test_what_its_errors_mean(
        self, arrays: OnnxArrays, monkeypatch: pytest.MonkeyPatch, text: str, error: type[Exception]
    ) -> None:
        class Failing:
            def numpy(self) -> None:
                raise ValueError(text)

        buffer = arrays.allocate(0, 8, None)
        buffer.value = Failing()
        with pytest.raises(error):
            arrays.fetch(buffer, 0, 8)

    def test_a_precision_that_the_provider_does_not_take(
        self, arrays: OnnxArrays, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: Any, **more: Any) -> None:
            raise RuntimeError("MatMulInteger is not implemented")

        monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
        buffer = arrays.allocate(0, 8, None)
        with pytest.raises(NotComputingError, match="int8"):
            arrays.multiply(buffer, buffer, ONE, "int8")
