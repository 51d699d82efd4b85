"""Reads an mlx-lm model from its directory without touching weights that are not needed, or says what is wrong."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from exo.engines.errors import EngineUnavailableError, ModelFilesError, UnsupportedModelError
from exo.engines.mlx.library import (
    Module,
    device_information,
    evaluate,
    load_model,
    model_classes,
    named_parameters,
    parameters_of,
    raise_wired_limit,
)
from exo.engines.model_files import WeightFiles, check_weights, read_config

_WEIGHTS_NAMED_MAX = 3


class LoadedModel:
    """A model whose weights are known but, as MLX reads lazily, not in memory yet.

    Args:
        model_dir: The model's directory.

    Raises:
        ModelFilesError: A file is missing, truncated or damaged.
        UnsupportedModelError: mlx-lm does not know the family.
    """

    def __init__(self, model_dir: Path) -> None:
        self._model_dir = model_dir
        self.config = read_config(model_dir)
        self._files: WeightFiles = check_weights(model_dir)
        self._given: dict[str, tuple[int, ...]] = {}
        self._wanted: dict[str, tuple[int, ...]] = {}
        self.model = self._read()

    def _read(self) -> Module:
        family = self.config.get("model_type")
        if not isinstance(family, str):
            raise ModelFilesError(
                f"{self._model_dir / 'config.json'} names no model_type; fetch the model again"
            )
        try:
            model, self.config = load_model(
                self._model_dir, lazy=True, strict=False, get_model_classes=self._recording_classes
            )
        except UnsupportedModelError:
            raise
        except Exception as error:  # What mlx-lm raises for a config it cannot use is not specified.
            raise ModelFilesError(
                f"{self._model_dir} cannot be read as a model of the family {family}: {error}"
            ) from error
        return cast(Module, model)

    def _recording_classes(self, config: dict[str, Any]) -> tuple[type[Module], type]:
        """Return the family's classes, the model's such that it remembers which weights it was given.

        mlx-lm leaves random numbers where a weight is missing unless all are there; a stage needs only its own.
        """
        try:
            model_class, arguments_class = model_classes(config=config)
        except ValueError as error:
            raise UnsupportedModelError(
                f"MLX does not know models of the family {config['model_type']}; update it with: uv sync --upgrade"
            ) from error
        record = self

        def load_weights(
            self: Module, weights: Iterable[tuple[str, mx.array]], strict: bool = True
        ) -> Module:
            weights = list(weights)
            record._given = {name: tuple(value.shape) for name, value in weights}
            record._wanted = {name: tuple(value.shape) for name, value in named_parameters(self)}
            return Module.load_weights(self, weights, strict=strict)

        recording = type(model_class.__name__, (model_class,), {"load_weights": load_weights})
        recording.__module__ = model_class.__module__
        return recording, arguments_class

    def require(self, is_needed: Callable[[str], bool]) -> None:
        """Make sure that every weight with a needed name was in the files, in the right shape.

        Raises:
            ModelFilesError: One was not; the message names it, and the file where that is known.
        """
        needed = [name for name in self._wanted if is_needed(name)]
        missing = [name for name in needed if name not in self._given]
        if missing:
            files = sorted({str(self._files.absent[name]) for name in missing if name in self._files.absent})
            if not files:
                files = sorted({str(file) for file in self._files.absent.values()})
            where = f"{', '.join(files)} is missing" if files else f"not in the files of {self._model_dir}"
            raise ModelFilesError(f"the model lacks {_some(missing)}: {where}; fetch the model again")
        for name in needed:
            if self._given[name] != self._wanted[name]:
                raise ModelFilesError(
                    f"{name} in {self._model_dir} has the shape {self._given[name]}, but config.json asks for "
                    f"{self._wanted[name]}; fetch the model again"
                )

    def materialise(self, module: Module) -> None:
        """Read a part's weights into memory.

        Raises:
            ModelFilesError: A file changed under us, or cannot be read.
        """
        try:
            evaluate(parameters_of(module))
        except RuntimeError as error:
            raise ModelFilesError(f"the weights in {self._model_dir} cannot be read: {error}") from error


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_WEIGHTS_NAMED_MAX])
    return (
        shown if len(names) <= _WEIGHTS_NAMED_MAX else f"{shown} and {len(names) - _WEIGHTS_NAMED_MAX} more"
    )


def use_device(alias: str) -> str:
    """Make a device MLX's default and return it in words, such as `MLX CPU backend, AMD EPYC`.

    Raises:
        EngineUnavailableError: The installed MLX cannot use it.
    """
    backend, _, index = alias.partition(":")
    if backend == "cpu":
        mx.set_default_device(mx.Device(mx.DeviceType.cpu))
        return _description("CPU")
    if backend not in ("metal", "cuda"):
        raise EngineUnavailableError(f"MLX cannot use the device {alias}; it runs on metal, cuda and cpu")
    device = mx.Device(mx.DeviceType.gpu, int(index or 0))
    if not mx.is_available(device):
        hint = "uv run --no-group cpu --extra cuda exo" if backend == "cuda" else "uv sync --reinstall"
        raise EngineUnavailableError(f"the installed MLX has no support for {alias}; install it with: {hint}")
    mx.set_default_device(device)
    raise_wired_limit()  # Lets a Mac keep the weights in memory; without effect elsewhere.
    return _description("Metal" if backend == "metal" else "CUDA")


def _description(backend: str) -> str:
    name = str(device_information().get("device_name", "")).strip()
    return f"MLX {backend} backend" + (f", {name}" if name else "")
