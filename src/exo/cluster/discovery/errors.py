"""What can go wrong while other nodes are looked for."""


class StatusError(Exception):
    """Raised when Tailscale is here and its status cannot be read; the message says why."""
