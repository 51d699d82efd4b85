"""A node's keys on disk: `<home>/keys/`, files that only the owner can read, written durably, whole or not at all."""

import os
import secrets
import sys
import threading
from pathlib import Path

from exo.cluster.log.files import sync_descriptor, sync_directory
from exo.cluster.trust.authority import Authority, create_key, create_request, public_key_of
from exo.cluster.trust.certificates import require_issued, to_der
from exo.cluster.trust.errors import CertificateError
from exo.cluster.trust.identity import TlsIdentity
from exo.shared.errors import ConfigurationError
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort

NODE_KEY = "node.key"
NODE_CERTIFICATE = "node.pem"
AUTHORITY_CERTIFICATE = "ca.pem"
AUTHORITY_KEY = "ca.key"
"""On nodes that may vote: they admit others."""
KNOWN_AUTHORITIES = "known_authorities"
"""Whom this node asked to be taken in, and which authority it saw there; a line `ADDRESS HASH` for each."""
_FILE_BYTES_MAX = 1024 * 1024


class KeyStore:
    """The directory. Nothing is cached: a second process (`exo join`) may write while a node runs.

    Every method raises ConfigurationError when a file is damaged, can be read by others, or the disk fails.
    """

    def __init__(self, home: Path) -> None:
        self.directory = home / "keys"
        self._changing = threading.Lock()
        """Files that belong together are changed together: the authority's key may come while the certificate does."""

    def create_request(self, node_id: NodeId) -> bytes:
        """Return a request for a certificate in DER, after making the node's key where there is none."""
        key_pem = self._read(NODE_KEY)
        if key_pem is None:
            self._write(NODE_KEY, create_key(), is_new=True)
            key_pem = self._read(NODE_KEY) or ""
        try:
            return create_request(key_pem, node_id)
        except CertificateError as error:
            raise self._damaged(NODE_KEY, error) from error

    def save_membership(self, *, certificate_pem: str, authority_pem: str) -> None:
        """Keep the certificate that a cluster gave to this node, instead of what there was."""
        with self._changing:
            if self._read(AUTHORITY_CERTIFICATE) != authority_pem:
                # Never a certificate beside the authority of another cluster: after a crash there is none.
                self._remove(NODE_CERTIFICATE)
                self._remove(AUTHORITY_KEY)
                self._write(AUTHORITY_CERTIFICATE, authority_pem)
            self._write(NODE_CERTIFICATE, certificate_pem)

    def require_own(self, node_id: NodeId, *, certificate_pem: str, authority_pem: str) -> None:
        """Check a certificate that this node was given, before it takes the place of another.

        Raises:
            CertificateError: It is for another node or key, or from another authority.
        """
        require_issued(
            to_der(certificate_pem),
            authority_der=to_der(authority_pem),
            node_id=node_id,
            public_key_der=public_key_of(self._read(NODE_KEY) or ""),
        )

    def forget_membership(self) -> None:
        """Remove the certificate, the authority's and its key; the node's own key stays."""
        with self._changing:
            for name in (NODE_CERTIFICATE, AUTHORITY_KEY, AUTHORITY_CERTIFICATE):
                self._remove(name)

    def load_identity(self, node_id: NodeId) -> TlsIdentity | None:
        """Return what this node can show, or None: it is in no cluster that spans a network. It may have expired."""
        with self._changing:
            certificate_pem = self._read(NODE_CERTIFICATE)
            authority_pem = self._read(AUTHORITY_CERTIFICATE)
            key_pem = self._read(NODE_KEY)
        if certificate_pem is None or authority_pem is None or key_pem is None:
            return None
        try:
            certificate = require_issued(
                to_der(certificate_pem),
                authority_der=to_der(authority_pem),
                node_id=node_id,
                public_key_der=public_key_of(key_pem),
            )
        except CertificateError as error:
            raise self._damaged(NODE_CERTIFICATE, error) from error
        return TlsIdentity(
            certificate=certificate,
            certificate_file=self.directory / NODE_CERTIFICATE,
            key_file=self.directory / NODE_KEY,
            authority_pem=authority_pem,
        )

    def save_authority(self, authority: Authority) -> None:
        """Keep the cluster's authority with its key. The key goes first: without it the certificate is of no use."""
        with self._changing:
            if self._read(AUTHORITY_CERTIFICATE) != authority.certificate_pem:
                self._remove(NODE_CERTIFICATE)
                self._remove(AUTHORITY_CERTIFICATE)
            self._write(AUTHORITY_KEY, authority.key_pem)
            self._write(AUTHORITY_CERTIFICATE, authority.certificate_pem)

    def load_authority(self) -> Authority | None:
        """Return the cluster's authority, or None: this node has only its certificate, or not even that."""
        with self._changing:
            key_pem = self._read(AUTHORITY_KEY)
            certificate_pem = self._read(AUTHORITY_CERTIFICATE)
        if key_pem is None or certificate_pem is None:
            return None
        authority = Authority(certificate_pem=certificate_pem, key_pem=key_pem)
        try:
            authority.require_pair()
        except CertificateError as error:
            raise self._damaged(AUTHORITY_KEY, error) from error
        return authority

    def forget_authority_key(self) -> None:
        """Remove the authority's key: this node votes no more."""
        self._remove(AUTHORITY_KEY)

    def known_authority(self, address: HostPort) -> str | None:
        """Return the hash of the authority that was seen at an address before."""
        return self._known_authorities().get(str(address))

    def remember_authority(self, address: HostPort, authority_hash: str) -> None:
        """Keep which authority was seen at an address, so that another one there is noticed."""
        known = self._known_authorities()
        if known.get(str(address)) != authority_hash:
            known[str(address)] = authority_hash
            self._write(KNOWN_AUTHORITIES, "".join(f"{key} {value}\n" for key, value in known.items()))

    def _known_authorities(self) -> dict[str, str]:
        lines = (self._read(KNOWN_AUTHORITIES) or "").splitlines()
        return {line.split()[0]: line.split()[1] for line in lines if len(line.split()) == 2}

    # --- files --------------------------------------------------------------------------------------------------

    def _read(self, name: str) -> str | None:
        path = self.directory / name
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if sys.platform != "win32" and status.st_mode & 0o077:
                    raise ConfigurationError(
                        f"others than you can read {path} (mode {status.st_mode & 0o777:03o}); "
                        f"make it yours alone: chmod 600 {path}"
                    )
                return file.read(_FILE_BYTES_MAX).decode(errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(path, error) from error

    def _write(self, name: str, text: str, *, is_new: bool = False) -> None:
        """Replace a file, or, if it `is_new`, leave the one that another process wrote meanwhile."""
        path = self.directory / name
        draft = self.directory / f".{name}.{os.getpid()}.{secrets.token_hex(4)}"
        try:
            if not self.directory.is_dir():
                self.directory.mkdir(parents=True, mode=0o700, exist_ok=True)
                sync_directory(self.directory.parent)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(text.encode())
                    file.flush()
                    sync_descriptor(file.fileno())
                if not is_new or not self._link(draft, path):
                    draft.replace(path)
                sync_directory(self.directory)
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(path, error) from error

    @staticmethod
    def _link(draft: Path, path: Path) -> bool:
        """Give a file its name if nobody has it; False where the file system cannot."""
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        except OSError:
            return path.exists()
        return True

    def _remove(self, name: str) -> None:
        path = self.directory / name
        try:
            if path.exists():
                path.unlink()
                sync_directory(self.directory)
        except OSError as error:
            raise self._unusable(path, error) from error

    def _unusable(self, path: Path, error: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"cannot keep this node's keys in {path}: {error.strerror or error}; choose another EXO_HOME"
        )

    def _damaged(self, name: str, error: CertificateError) -> ConfigurationError:
        return ConfigurationError(
            f"{self.directory / name} cannot be used: {error.message}; restore it from a copy, or delete it and "
            "join the cluster again"
        )
