"""Where etcd is, and how this node may use it: read from one URL."""

from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import msgspec

from exo.cluster.transport.tcp import is_loopback
from exo.shared.errors import ConfigurationError
from exo.shared.types.nodes import HostPort

ETCD_PORT = 2379
EXAMPLE = "etcds://10.0.0.1:2379,10.0.0.2:2379?ca=/etc/exo/etcd-ca.pem"
LEASE_MIN_S, LEASE_MAX_S = 1, 60


class EtcdAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Several endpoints are members of one etcd cluster: any of them will do."""

    endpoints: tuple[HostPort, ...]
    is_tls: bool = False
    prefix: str = "exo"
    """All keys begin with `/<prefix>/<namespace>/`."""
    user: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    """What signed etcd's certificates; None: the system's authorities."""
    certificate_file: Path | None = None
    key_file: Path | None = None
    lease_s: int = 3
    """How long a master that is gone without a word is waited for."""

    def url(self, endpoint: HostPort) -> str:
        return f"{'https' if self.is_tls else 'http'}://{endpoint}"


def parse_etcd_url(url: str) -> EtcdAddress:
    """Read `etcd://HOST:PORT[,HOST:PORT...]`, or `etcds://` for TLS, with options behind a question mark.

    Options: `prefix`, `lease_s`, `user` and `password_file`, `ca`, `cert` and `key` (PEM files; TLS only), and
    `insecure=true`, which allows plain text beyond this machine.

    Raises:
        ConfigurationError: It is no such URL; the message says what is wrong with it.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("etcd", "etcds"):
        raise _wrong(url, "it begins neither with etcd:// nor with etcds://")
    if "@" in parts.netloc:
        raise _wrong(url, "a password in a URL can be read by others: use ?user=NAME&password_file=PATH")
    try:
        endpoints = tuple(HostPort.parse(text, ETCD_PORT) for text in parts.netloc.split(","))
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise _wrong(url, str(error)) from error
    if parts.path not in ("", "/") or parts.fragment:
        raise _wrong(url, f"{parts.path or parts.fragment!r} has no meaning there: use ?prefix=NAME")
    options = dict(pairs)
    if len(options) < len(pairs):
        raise _wrong(url, "an option is given twice")
    address = EtcdAddress(
        endpoints=endpoints,
        is_tls=parts.scheme == "etcds",
        prefix=options.pop("prefix", "exo").strip("/"),
        user=options.pop("user", None),
        password_file=_path(options.pop("password_file", None)),
        ca_file=_path(options.pop("ca", None)),
        certificate_file=_path(options.pop("cert", None)),
        key_file=_path(options.pop("key", None)),
        lease_s=_lease_s(url, options.pop("lease_s", "3")),
    )
    is_insecure = options.pop("insecure", "false") == "true"
    if options:
        raise _wrong(url, f"there is no option {', '.join(sorted(options))}")
    _check(url, address, is_insecure=is_insecure)
    return address


def _check(url: str, address: EtcdAddress, *, is_insecure: bool) -> None:
    if not address.prefix:
        raise _wrong(url, "the prefix is empty")
    if (address.user is None) != (address.password_file is None):
        raise _wrong(url, "user and password_file go together")
    if (address.certificate_file is None) != (address.key_file is None):
        raise _wrong(url, "cert and key go together")
    if address.is_tls:
        return
    if address.ca_file or address.certificate_file:
        raise _wrong(url, "ca, cert and key are for etcds://")
    far = [endpoint for endpoint in address.endpoints if not is_loopback(endpoint.host)]
    if far and not is_insecure:
        raise _wrong(
            url,
            f"{far[0]} is another machine, and what is kept in etcd lets nodes in: use etcds://, "
            "or add insecure=true where nobody else can listen",
        )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()


def _lease_s(url: str, text: str) -> int:
    if not text.isdecimal() or not LEASE_MIN_S <= int(text) <= LEASE_MAX_S:
        raise _wrong(url, f"lease_s is a whole number of seconds from {LEASE_MIN_S} to {LEASE_MAX_S}")
    return int(text)


def _wrong(url: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{url!r} does not say where etcd is: {reason}; an example: {EXAMPLE}")
