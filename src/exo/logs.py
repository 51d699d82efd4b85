"""Where log lines go: to stderr, by loguru, the standard library's among them."""

import inspect
import logging
import sys

from loguru import logger

_LEVELS = {-1: "WARNING", 0: "INFO", 1: "DEBUG", 2: "TRACE"}


def configure_logs(verbosity: int) -> None:
    """Log to stderr: -1 warnings only, 0 what a user wants to know, 1 details, 2 everything with its place."""
    verbosity = max(-1, min(2, verbosity))
    logger.remove()
    place = " <dim>{name}:{line}</dim>" if verbosity >= 1 else ""
    logger.add(
        sys.stderr,
        level=_LEVELS[verbosity],
        format=f"<dim>{{time:HH:mm:ss.SSS}}</dim> <level>{{level: <7}}</level>{place} {{message}}",
        backtrace=verbosity >= 2,
        # Values of local variables may hold secrets: never in a log.
        diagnose=False,
    )
    logging.basicConfig(
        handlers=[_ToLoguru()], level=logging.DEBUG if verbosity >= 2 else logging.WARNING, force=True
    )
    # It warns of every interface on which nothing can be sent; that is usual, and mends itself.
    logging.getLogger("zeroconf").setLevel(logging.ERROR)


class _ToLoguru(logging.Handler):
    """Hands records of libraries that use the standard library's logging to loguru."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level: str | int = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        frame, depth = inspect.currentframe(), 0
        while frame is not None and (depth == 0 or frame.f_code.co_filename == logging.__file__):
            frame, depth = frame.f_back, depth + 1
        logger.opt(depth=depth, exception=record.exc_info).log(level, record.getMessage())
