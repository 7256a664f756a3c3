"""Where a job leaves its artefact: an S3 bucket or a PersistentVolumeClaim. One schema for jobs, services and the chart's default."""

from typing import Annotated

from pydantic import Field, StringConstraints

from bigmodel.api.model import DnsName, Model, Text


class S3Store(Model):
    """An S3 bucket. Requests are signed with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the Secret `secretName`."""

    bucket: Annotated[
        str,
        StringConstraints(min_length=3, max_length=63, pattern=r"^[a-z0-9][-a-z0-9.]*[a-z0-9]$"),
        Field(description="Name of the bucket."),
    ]
    prefix: Annotated[
        Text | None,
        Field(description="Path inside the bucket below which everything is kept. Default: the bucket's top."),
    ] = None
    endpoint: Annotated[
        Text | None,
        Field(description="URL of an S3-compatible server, for example http://minio.storage:9000. Default: AWS."),
    ] = None
    region: Annotated[Text | None, Field(description="Default: us-east-1.")] = None
    secret_name: Annotated[
        DnsName | None,
        Field(
            description="Secret in the same namespace with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Default: the pod's own identity."
        ),
    ] = None


class ClaimStore(Model):
    claim_name: Annotated[
        DnsName,
        Field(description="PersistentVolumeClaim in the same namespace, ReadWriteMany when several pods use it."),
    ]
    path: Annotated[
        Text | None, Field(description="Path inside the volume, without a leading slash. Default: its top.")
    ] = None


class Store(Model):
    """Exactly one of s3 and persistentVolumeClaim."""

    s3: Annotated[S3Store | None, Field(description="An S3 bucket.")] = None
    persistent_volume_claim: Annotated[ClaimStore | None, Field(description="A PersistentVolumeClaim.")] = None
