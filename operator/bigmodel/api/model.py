"""The base of every model of this room, and the bounded types they are made of."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """Frozen; camelCase on the wire, snake_case in Python; unknown fields are ignored.

    Ignored, not refused: the API server prunes what the CRD doesn't know, and an older process must be able to read
    what a newer one wrote.
    """

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore", allow_inf_nan=False
    )

    def wire(self) -> dict[str, Any]:
        """The JSON-ready form: camelCase, without fields that are None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


# Every string and list of the API is bounded: unbounded ones make CEL rules too costly for the API server and status
# too big for etcd.
Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]
LongText = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
DnsLabel = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
DnsName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
# The name of a BigModelJob or BigModelService: short, because pods and Services carry it with a suffix.
ResourceName = Annotated[str, StringConstraints(min_length=1, max_length=50, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")]
# Key of a label, an annotation or a resource, for example nvidia.com/gpu. A CRD cannot bound keys, pydantic can.
ResourceKey = Annotated[str, StringConstraints(min_length=1, max_length=317)]
LabelKey = Annotated[
    str, StringConstraints(min_length=1, max_length=317, pattern=r"^([-a-z0-9.]+/)?[A-Za-z0-9][-A-Za-z0-9_.]*$")
]
EnvName = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
DataKey = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
AbsolutePath = Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=r"^/([^:/]+(/[^:/]+)*)?$")]
ImageReference = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^\S+$")]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)]
VariantName = Annotated[str, StringConstraints(min_length=1, max_length=40, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
MetricName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z][a-z0-9_]*$")]
Seconds = Annotated[int, Field(ge=0, le=31_536_000)]
PositiveSeconds = Annotated[int, Field(ge=1, le=31_536_000)]


class Metric(Model):
    """One measured number, as a string with a fixed number of digits: Kubernetes objects change floats."""

    name: Annotated[MetricName, Field(description="Name, for example val_mse.")]
    value: Annotated[
        str, StringConstraints(min_length=1, max_length=32), Field(description="Value, for example 2871.4.")
    ]
