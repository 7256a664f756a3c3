"""The parts of a pod that a user may set: a bounded subset of core/v1, never a raw PodSpec and never a hostPath."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from bigmodel.api.model import (
    AbsolutePath,
    DataKey,
    DnsLabel,
    DnsName,
    EnvName,
    LabelValue,
    LongText,
    Model,
    ResourceKey,
    Text,
)
from bigmodel.api.store import RelativePath

# What resource.Quantity takes: 8, "500m", "64Gi".
Quantity = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[str, StringConstraints(min_length=1, max_length=32)],
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
]
NodeSelector = dict[ResourceKey, LabelValue]


class Resources(Model):
    """Compute resources of a container. GPUs are asked for under limits, as `nvidia.com/gpu`."""

    limits: Annotated[
        dict[ResourceKey, Quantity] | None,
        Field(max_length=16, description="Upper bounds, for example {cpu: 8, memory: 64Gi, nvidia.com/gpu: 8}."),
    ] = None
    requests: Annotated[
        dict[ResourceKey, Quantity] | None,
        Field(max_length=16, description="What the scheduler reserves, for example {cpu: 4}. Default: the limits."),
    ] = None


class KeySelector(Model):
    name: Annotated[DnsName, Field(description="Name of the object in the same namespace.")]
    key: Annotated[DataKey, Field(description="Key inside it.")]
    optional: Annotated[
        bool | None, Field(description="Start the pod even if the object or key is missing. Default: false.")
    ] = None


class FieldSelector(Model):
    field_path: Annotated[Text, Field(description="Field of the pod, for example metadata.name or status.podIP.")]


class EnvVarSource(Model):
    """Exactly one of the three."""

    secret_key_ref: Annotated[
        KeySelector | None, Field(description="A key of a Secret. The kubelet reads it; the operator never does.")
    ] = None
    config_map_key_ref: Annotated[KeySelector | None, Field(description="A key of a ConfigMap.")] = None
    field_ref: Annotated[FieldSelector | None, Field(description="A field of the pod.")] = None


class EnvVar(Model):
    """Exactly one of value and valueFrom."""

    name: Annotated[
        EnvName,
        Field(description="Name of the variable. Those the operator sets (RANK, MASTER_ADDR, BIGMODEL_…) are refused."),
    ]
    value: Annotated[
        str | None, Field(max_length=32768, description="Its value. Exactly one of value and valueFrom.")
    ] = None
    value_from: Annotated[EnvVarSource | None, Field(description="Where its value comes from.")] = None


class ObjectName(Model):
    name: Annotated[DnsName, Field(description="Name of the object in the same namespace.")]
    optional: Annotated[
        bool | None, Field(description="Start the pod even if the object is missing. Default: false.")
    ] = None


class EnvFromSource(Model):
    """Exactly one of secretRef and configMapRef."""

    prefix: Annotated[EnvName | None, Field(description="Put before every name, for example AWS_.")] = None
    secret_ref: Annotated[ObjectName | None, Field(description="All keys of a Secret.")] = None
    config_map_ref: Annotated[ObjectName | None, Field(description="All keys of a ConfigMap.")] = None


class ConfigMapVolume(Model):
    name: Annotated[DnsName, Field(description="Name of the ConfigMap in the same namespace.")]


class SecretVolume(Model):
    secret_name: Annotated[
        DnsName,
        Field(
            description="Name of the Secret in the same namespace. The kubelet mounts it; the operator never reads it."
        ),
    ]


class ClaimVolume(Model):
    claim_name: Annotated[DnsName, Field(description="Name of the PersistentVolumeClaim in the same namespace.")]
    read_only: Annotated[bool | None, Field(description="Mount it read-only. Default: false.")] = None


class EmptyDirVolume(Model):
    medium: Annotated[Literal["Memory"] | None, Field(description="Memory for a tmpfs. Default: the node's disk.")] = (
        None
    )
    size_limit: Annotated[Quantity | None, Field(description="Upper bound, for example 10Gi. Default: none.")] = None


class Volume(Model):
    """Exactly one kind. hostPath is not offered."""

    name: Annotated[
        DnsLabel, Field(description="Name that volumeMounts refer to. Names that begin with bigmodel are ours.")
    ]
    config_map: Annotated[ConfigMapVolume | None, Field(description="Files from a ConfigMap.")] = None
    secret: Annotated[SecretVolume | None, Field(description="Files from a Secret.")] = None
    persistent_volume_claim: Annotated[
        ClaimVolume | None,
        Field(description="A PersistentVolumeClaim; ReadWriteMany or ReadOnlyMany when more than one pod mounts it."),
    ] = None
    empty_dir: Annotated[EmptyDirVolume | None, Field(description="Scratch space that goes with the pod.")] = None


class VolumeMount(Model):
    name: Annotated[DnsLabel, Field(description="Name of the volume.")]
    mount_path: Annotated[AbsolutePath, Field(description="Where the container sees it, for example /data.")]
    sub_path: Annotated[
        RelativePath | None, Field(description="Only this path inside the volume. Default: all of it.")
    ] = None
    read_only: Annotated[bool | None, Field(description="Mount it read-only. Default: false.")] = None


class Toleration(Model):
    key: Annotated[Text | None, Field(description="Taint key. Left out, with operator Exists: every taint.")] = None
    operator: Annotated[Literal["Exists", "Equal"] | None, Field(description="How it is compared. Default: Equal.")] = (
        None
    )
    value: Annotated[Text | None, Field(description="Taint value, with operator Equal.")] = None
    effect: Annotated[
        Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None,
        Field(description="Taint effect. Default: every effect."),
    ] = None
    toleration_seconds: Annotated[
        int | None, Field(ge=0, description="Seconds a NoExecute taint is tolerated. Default: for ever.")
    ] = None


class PodMetadata(Model):
    labels: Annotated[
        dict[ResourceKey, LabelValue] | None,
        Field(
            max_length=32,
            description="Further labels of every pod, for example {team: vision}. "
            "Keys of bigmodel.io, app.kubernetes.io and kueue.x-k8s.io are refused.",
        ),
    ] = None
    annotations: Annotated[
        dict[ResourceKey, LongText] | None,
        Field(max_length=32, description="Further annotations of every pod. Keys of bigmodel.io are refused."),
    ] = None


class LocalObject(Model):
    name: Annotated[DnsName, Field(description="Name of the Secret in the same namespace.")]
