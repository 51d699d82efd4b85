"""The models this node has: directories and GGUF files below the models folders, and the one that ships with exo."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from loguru import logger

from exo.engines.gguf_files import parts_of, split_of
from exo.shared.types.ids import ModelId
from exo.shared.types.models import ModelCard
from exo.worker.models.card import is_file, read_card
from exo.worker.models.config import ModelUnreadableError
from exo.worker.models.gguf_card import read_gguf_card

BUNDLED_DIR = Path(__file__).parent / "bundled"
_DEPTH_MAX = 3
_Stamp = tuple[tuple[str, int, int], ...]
"""(name, size, modification time) of every file of a model."""


class _Place(msgspec.Struct, frozen=True):
    """Where a model may be."""

    name: str
    """Below the models folder, as its id will be."""
    path: Path
    """A directory, or the first of its GGUF files."""
    is_gguf: bool = False


class ModelStore:
    """Finds models and describes them; remembers a card until one of its files changes."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = (*folders, BUNDLED_DIR)
        self._cards: dict[Path, tuple[_Stamp, ModelCard | str]] = {}
        self._directories: dict[ModelId, Path] = {}
        self.unreadable: dict[ModelId, str] = {}
        """Directories of the last scan that could not be described, and why."""

    def scan(self) -> tuple[ModelCard, ...]:
        """Read the folders again and return the cards by id; the first folder that has an id wins."""
        found: dict[ModelId, tuple[Path, ModelCard]] = {}
        self.unreadable = {}
        for folder in self._folders:
            for place in _places(folder, "", _DEPTH_MAX):
                model_id = ModelId(place.name)
                if model_id in found:
                    continue
                card = self._card(model_id, place)
                if isinstance(card, str):
                    self.unreadable.setdefault(model_id, card)
                elif card is not None:
                    found[model_id] = (place.path, card)
        self._directories = {model_id: directory for model_id, (directory, _) in found.items()}
        return tuple(card for _, (_, card) in sorted(found.items()))

    def directory(self, model_id: ModelId) -> Path | None:
        """Where a model of the last scan is: its directory, or the first of its GGUF files. None: nowhere."""
        return self._directories.get(model_id)

    def _card(self, model_id: ModelId, place: _Place) -> ModelCard | str | None:
        """The card, why there is none, or None where the model has just gone."""
        try:
            files = parts_of(place.path) if place.is_gguf else sorted(place.path.iterdir())
            stamp = tuple(
                (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns)
                for entry in files
                if entry.is_file()
            )
        except OSError:
            return None
        remembered = self._cards.get(place.path)
        if remembered is not None and remembered[0] == stamp:
            return remembered[1]
        read: Callable[[ModelId, Path], ModelCard] = read_gguf_card if place.is_gguf else read_card
        try:
            card = read(model_id, place.path)
        except ModelUnreadableError as error:
            logger.warning("model {} is left out (exo doctor lists such): {}", model_id, error.message)
            card = error.message
        if isinstance(card, ModelCard) and card.problem is not None:
            logger.warning("model {} cannot be used (exo doctor lists such): {}", model_id, card.problem)
        self._cards[place.path] = (stamp, card)
        return card


def _places(folder: Path, below: str, depth: int) -> list[_Place]:
    """Where models may be below `folder`, sorted; does not look inside the directory of one."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if _is_text(entry.name) and entry.name[0] != ".")
        directories = [entry for entry in entries if entry.is_dir()]
    except OSError:
        return []
    ggufs = _first_parts([entry for entry in entries if _is_gguf(entry) and entry not in directories])
    if below and len(ggufs) == 1:
        found = [_Place(below.rstrip("/"), ggufs[0], is_gguf=True)]
    else:
        found = [_Place(below + split_of(file)[0], file, is_gguf=True) for file in ggufs]
    for entry in directories if depth > 0 else ():
        name = below + entry.name
        if _has_safetensors(entry):
            found.append(_Place(name, entry))
        elif inside := _places(entry, f"{name}/", depth - 1):
            found += inside
        elif is_file(entry / "config.json"):
            found.append(_Place(name, entry))  # Not whole, and said to be so.
    return found


def _first_parts(files: Sequence[Path]) -> list[Path]:
    """Of each model in GGUF files its first one, whether it is there or not; without what models see with."""
    firsts = {parts_of(file)[0] for file in files if not file.name.lower().startswith("mmproj")}
    return sorted(firsts)


def _is_gguf(file: Path) -> bool:
    return file.suffix.lower() == ".gguf"


def _has_safetensors(directory: Path) -> bool:
    try:
        return any(directory.glob("*.safetensors"))
    except OSError:  # It may not be looked into, or has just gone.
        return False


def _is_text(name: str) -> bool:
    """Say whether a name on disk is one that can be sent to other nodes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
