"""What ends placement's steps from within."""


class StoppedError(Exception):
    """Raised when the caller's clock, or a limit of work, ends a step before it is done. Never leaves placement.

    `lower_bound_ns` is what no plan can beat, as far as that was known by then; 0: nothing was.
    """

    def __init__(self, lower_bound_ns: int = 0) -> None:
        super().__init__()
        self.lower_bound_ns = lower_bound_ns
