"""What a controller must know of an artefact before it asks for a GPU: the termination message of the `inspect` pod.

Pure, because both sides read it. A termination message ends after 4096 bytes; the rest is cut by the kubelet.
"""

import hashlib
import json
from typing import Annotated, Literal

from pydantic import Field

from bigmodel.api.model import Digest, LongText, Metric, Model, Text, VariantName
from bigmodel.artifact.manifest import Manifest, Signature, Tensor

MESSAGE_BYTES = 4000


class Summary(Model):
    """One variant of an artefact, as its manifest tells it."""

    variant: VariantName
    precision: Text
    golden: Literal["validation", "random", "none"]
    deterministic: bool
    size_bytes: Annotated[int, Field(ge=0)]
    metrics: Annotated[list[Metric], Field(max_length=8)] = Field(default_factory=list)
    validation: Digest | None = None  # of the data behind the metrics
    signature: Signature | None = None  # None: too long for the message; then only its digest can be compared
    signature_digest: Digest


class InspectResult(Model):
    """`reason` is one of the service's reasons; None where all is well."""

    ok: bool
    reason: Text | None = None
    message: LongText
    summary: Summary | None = None

    def fitted(self) -> str:
        """JSON of at most MESSAGE_BYTES; a signature of many tensors is left out."""
        full = self.model_dump_json(by_alias=True, exclude_none=True)
        if len(full.encode()) <= MESSAGE_BYTES or self.summary is None:
            return full
        summary = self.summary.model_copy(update={"signature": None})
        return self.model_copy(update={"summary": summary}).model_dump_json(by_alias=True, exclude_none=True)


def summarise(manifest: Manifest, variant: str) -> Summary:
    """Raises InvalidManifest for a variant that is not there."""
    chosen = manifest.variant(variant)
    signature = _without_descriptions(manifest.signature)
    return Summary(
        variant=variant,
        precision=chosen.precision,
        golden=chosen.golden,
        deterministic=chosen.deterministic,
        size_bytes=sum(file.size_bytes for file in manifest.files_of(variant)),
        metrics=chosen.metrics,
        validation=manifest.validation.digest if manifest.validation is not None else None,
        signature=signature,
        signature_digest=signature_digest(signature),
    )


def signature_digest(signature: Signature) -> str:
    text = json.dumps(_without_descriptions(signature).wire(), sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _without_descriptions(signature: Signature) -> Signature:
    """What a client's requests depend on."""

    def bare(tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.model_copy(update={"description": None}) for tensor in tensors]

    return signature.model_copy(update={"inputs": bare(signature.inputs), "outputs": bare(signature.outputs)})
