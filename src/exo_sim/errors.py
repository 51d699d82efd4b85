"""What can go wrong in a simulated cluster."""


class BrokenPromiseError(AssertionError):
    """Raised when a cluster does what it has promised never to do, or does not do what it has promised."""


class ScenarioError(ValueError):
    """Raised when a scenario file says something that cannot be carried out; the message names the line."""
