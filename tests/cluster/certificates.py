"""The cluster's own certificate authority, one certificate for each party, and the kubeconfigs that carry them."""

from __future__ import annotations

import datetime
import ipaddress
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

LIFETIME = datetime.timedelta(days=3650)


def issue_all(folder: Path, server: str, server_names: Sequence[str], nodes: dict[str, str]) -> None:
    """Make `folder` with the authority, all keys, certificates and kubeconfigs, unless it is there already.

    Args:
        folder: gets `ca.crt`, `service-account.{key,pub}`, `<party>.{crt,key,kubeconfig}`. Appears all at once or not
        at all.
        server: URL of the API server, for the kubeconfigs.
        server_names: host names and addresses under which the API server is called.
        nodes: name -> address of each node; empty for a control plane without nodes.
    """
    if folder.exists():
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, mode=0o700)
    authority = _Authority(partial)
    authority.issue("kube-apiserver", names=server_names)
    authority.issue("kube-apiserver-client", organisation="system:masters")  # towards the kubelets: logs, exec
    parties = {
        "admin": ("admin", "system:masters"),
        "kube-controller-manager": ("system:kube-controller-manager", None),
        "kube-scheduler": ("system:kube-scheduler", None),
        "kube-proxy": ("system:kube-proxy", None),
        "coredns": ("bigmodel:coredns", None),
    }
    for party, (user, organisation) in parties.items():
        authority.issue(party, user, organisation)
        authority.kubeconfig(party, server)
    for node, address in nodes.items():
        # The same certificate for both directions: the node towards the API server, and its kubelet as a server.
        authority.issue(node, f"system:node:{node}", "system:nodes", names=[node, address])
        authority.kubeconfig(node, server)
    authority.key_pair("service-account")
    partial.rename(folder)


class _Authority:
    def __init__(self, folder: Path) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec  # here: the other commands work without the package

        self._folder = folder
        self._now = datetime.datetime.now(datetime.UTC)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = self._subject("bigmodel-cluster", None)
        self._write("ca", self._sign(self._name, self._key.public_key(), None))

    @staticmethod
    def _subject(user: str, organisation: str | None):  # type: ignore[no-untyped-def]
        from cryptography import x509
        from cryptography.x509.oid import NameOID

        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, user)]
        if organisation:
            attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
        return x509.Name(attributes)

    def _sign(self, subject, public_key, names: Sequence[str] | None):  # type: ignore[no-untyped-def]
        """A certificate in PEM; `names` None makes the authority's own."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - datetime.timedelta(hours=1)).not_valid_after(self._now + LIFETIME)
            .add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
        )  # fmt: skip
        if names is not None:
            builder = builder.add_extension(
                x509.ExtendedKeyUsage([Usage.CLIENT_AUTH, Usage.SERVER_AUTH]), critical=False
            )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def issue(
        self, party: str, user: str | None = None, organisation: str | None = None, names: Sequence[str] = ()
    ) -> None:
        """`<party>.crt` and `<party>.key`, for a user of an organisation (Kubernetes: a group), good as client and as
        server."""
        public_key = self.key_pair(party)
        self._write(party, self._sign(self._subject(user or party, organisation), public_key, names))

    def key_pair(self, party: str):  # type: ignore[no-untyped-def]
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        path = self._folder / f"{party}.key"
        path.touch(mode=0o600)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
            )
        )
        public = key.public_key()
        (self._folder / f"{party}.pub").write_bytes(
            public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        return public

    def kubeconfig(self, party: str, server: str) -> None:
        """`<party>.kubeconfig`, with everything inside, so that it can be copied."""
        text = kubeconfig(
            server, *((self._folder / name).read_bytes() for name in ("ca.crt", f"{party}.crt", f"{party}.key"))
        )
        path = self._folder / f"{party}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(text)

    def _write(self, party: str, certificate: bytes) -> None:
        (self._folder / f"{party}.crt").write_bytes(certificate)


def _alternative(name: str):  # type: ignore[no-untyped-def]
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def kubeconfig(server: str, authority: bytes, certificate: bytes, key: bytes) -> str:
    """A kubeconfig of one cluster and one user (JSON, which is YAML), certificates and key in PEM."""
    from base64 import b64encode

    def data(content: bytes) -> str:
        return b64encode(content).decode()

    cluster = {"server": server, "certificate-authority-data": data(authority)}
    user = {"client-certificate-data": data(certificate), "client-key-data": data(key)}
    return json.dumps(
        {
            "apiVersion": "v1", "kind": "Config", "current-context": "bigmodel",
            "clusters": [{"name": "bigmodel", "cluster": cluster}],
            "users": [{"name": "bigmodel", "user": user}],
            "contexts": [{"name": "bigmodel", "context": {"cluster": "bigmodel", "user": "bigmodel"}}],
        },
        indent=1,
    )  # fmt: skip
