"""What can go wrong between a node and etcd."""

from exo.shared.errors import ExoError


class EtcdError(ExoError):
    """Raised when etcd did not do what it was asked."""


class EtcdUnreachableError(EtcdError):
    """Raised when no endpoint answered, or etcd has no majority. Whether a change was made is unknown."""


class EtcdRefusedError(EtcdError):
    """Raised when etcd will not, and would not if asked again: certificates, rights, what kind it is, its limits."""

    exit_code = 2


class EtcdFullError(EtcdError):
    """Raised when etcd's database has reached its quota, so that it takes no more."""


class EtcdCompactedError(EtcdError):
    """Raised when the revision that was asked for is no longer in etcd's history."""


class EtcdLeaseGoneError(EtcdError):
    """Raised when a lease has ended, and with it every key that it held."""


class EtcdHistoryError(EtcdError):
    """Raised when etcd lacks decisions that it had: an older backup was restored, or keys were deleted."""


class DeposedError(ExoError):
    """Raised when a master wants to commit and etcd says that it is no longer the master. Nothing was written."""


class LogGapError(ExoError):
    """Raised when decisions do not follow the newest one folded here: those between are only in a snapshot by now."""
