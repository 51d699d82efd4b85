"""The models this node has: folders with a config.json below the models folders, and the one that ships with exo."""

from collections.abc import Sequence
from pathlib import Path

from loguru import logger

from exo.shared.types.ids import ModelId
from exo.shared.types.models import ModelCard
from exo.worker.models.card import ModelUnreadableError, is_file, read_card

BUNDLED_DIR = Path(__file__).parent / "bundled"
_DEPTH_MAX = 3
_Stamp = tuple[tuple[str, int, int], ...]
"""(name, size, modification time) of every file of a directory."""


class ModelStore:
    """Finds model directories and describes them; remembers a card until a file of its directory changes."""

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
            for directory in _model_directories(folder, _DEPTH_MAX):
                model_id = ModelId(directory.relative_to(folder).as_posix())
                if model_id in found:
                    continue
                card = self._card(model_id, directory)
                if isinstance(card, str):
                    self.unreadable.setdefault(model_id, card)
                elif card is not None:
                    found[model_id] = (directory, card)
        self._directories = {model_id: directory for model_id, (directory, _) in found.items()}
        return tuple(card for _, (_, card) in sorted(found.items()))

    def directory(self, model_id: ModelId) -> Path | None:
        """Where a model of the last scan is, or None."""
        return self._directories.get(model_id)

    def _card(self, model_id: ModelId, directory: Path) -> ModelCard | str | None:
        """The card, why there is none, or None where the directory has just gone."""
        try:
            stamp = tuple(
                (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns)
                for entry in sorted(directory.iterdir())
                if entry.is_file()
            )
        except OSError:
            return None
        remembered = self._cards.get(directory)
        if remembered is not None and remembered[0] == stamp:
            return remembered[1]
        try:
            card = read_card(model_id, directory)
        except ModelUnreadableError as error:
            logger.warning("model {} is left out: {}", model_id, error.message)
            card = error.message
        if isinstance(card, ModelCard) and card.problem is not None:
            logger.warning("model {} cannot be used: {}", model_id, card.problem)
        self._cards[directory] = (stamp, card)
        return card


def _model_directories(folder: Path, depth: int) -> list[Path]:
    """Directories below `folder` that have a config.json, sorted; does not look inside a model."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.is_dir() and _is_text(entry.name))
    except OSError:
        return []
    found: list[Path] = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if is_file(entry / "config.json") or _has_weights(entry):
            found.append(entry)
        elif depth > 1:
            found.extend(_model_directories(entry, depth - 1))
    return found


def _has_weights(directory: Path) -> bool:
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
