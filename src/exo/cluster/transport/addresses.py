"""The addresses of `exo.shared.addresses`, under the name by which the cluster's rooms know them."""

from exo.shared.addresses import is_loopback, plain_address

__all__ = ["is_loopback", "plain_address"]
