"""Everybody gets a certificate that the authority signed, and nobody else's."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.cluster.certificates import issue_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster") / "certificates"
    issue_all(folder, "https://172.30.0.1:6443", ["172.30.0.1", "kubernetes.default"], {"node-1": "172.30.0.11"})
    return folder


def certificate(folder: Path, party: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{party}.crt").read_bytes())


@pytest.mark.parametrize(
    ("party", "subject"),
    {
        "admin": "CN=admin,O=system:masters",
        "node-1": "CN=system:node:node-1,O=system:nodes",
        "kube-scheduler": "CN=system:kube-scheduler",
        "kube-proxy": "CN=system:kube-proxy",
    }.items(),
)
def test_a_party_is_signed_by_the_authority_under_its_kubernetes_name(folder: Path, party: str, subject: str) -> None:
    found = certificate(folder, party)
    found.verify_directly_issued_by(certificate(folder, "ca"))
    assert found.subject.rfc4514_string() == subject


@pytest.mark.parametrize(
    ("party", "addresses", "names"),
    [("kube-apiserver", ["172.30.0.1"], ["kubernetes.default"]), ("node-1", ["172.30.0.11"], ["node-1"])],
)
def test_a_server_is_valid_for_its_names(folder: Path, party: str, addresses: list[str], names: list[str]) -> None:
    alternatives = certificate(folder, party).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(address) for address in alternatives.get_values_for_type(x509.IPAddress)] == addresses
    assert alternatives.get_values_for_type(x509.DNSName) == names


def test_a_kubeconfig_carries_matching_certificate_and_key(folder: Path) -> None:
    config = json.loads((folder / "admin.kubeconfig").read_text())
    user = config["users"][0]["user"]
    found = x509.load_pem_x509_certificate(base64.b64decode(user["client-certificate-data"]))
    key = serialization.load_pem_private_key(base64.b64decode(user["client-key-data"]), None)
    assert found.public_key() == key.public_key()
    assert config["clusters"][0]["cluster"]["server"] == "https://172.30.0.1:6443"


def test_keys_are_for_root_only_and_are_kept(folder: Path) -> None:
    for path in (*folder.glob("*.key"), *folder.glob("*.kubeconfig")):
        assert path.stat().st_mode & 0o077 == 0, path
    before = (folder / "ca.crt").read_bytes()
    issue_all(folder, "https://172.30.0.1:6443", [], {})
    assert (folder / "ca.crt").read_bytes() == before
