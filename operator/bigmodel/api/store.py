"""Where a job leaves its artefact: an S3 bucket or a PersistentVolumeClaim. The same in jobs, services, chart."""

from typing import Annotated

from pydantic import Field, StringConstraints

from bigmodel.api.model import DnsName, Model, Text

# Relative, without empty parts, `.` or `..`: `a/b`, never `/a` or `a/../b`. No part begins with a dot: Go's patterns,
# which the API server uses, cannot say "not ..".
RelativePath = Annotated[
    str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^/.\s][^/\s]*(/[^/.\s][^/\s]*)*$")
]

EndpointUrl = Annotated[str, StringConstraints(min_length=8, max_length=256, pattern=r"^https?://[^\s/]+/?$")]


class S3Store(Model):
    """An S3 bucket. Requests are signed with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the Secret `secretName`."""

    bucket: Annotated[
        str,
        StringConstraints(min_length=3, max_length=63, pattern=r"^[a-z0-9][-a-z0-9.]*[a-z0-9]$"),
        Field(description="Name of the bucket. It must exist."),
    ]
    prefix: Annotated[
        RelativePath | None,
        Field(
            description="Path in the bucket below which everything is kept, such as team-a/models. Default: its top."
        ),
    ] = None
    endpoint: Annotated[
        EndpointUrl | None,
        Field(description="URL of an S3-compatible server, for example http://minio.storage:9000. Default: AWS."),
    ] = None
    region: Annotated[Text | None, Field(description="Region requests are signed for. Default: us-east-1.")] = None
    secret_name: Annotated[
        DnsName | None,
        Field(
            description="Secret in the same namespace with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; "
            "only the pods read it. Default: the pod's own identity."
        ),
    ] = None


class ClaimStore(Model):
    claim_name: Annotated[
        DnsName,
        Field(description="PersistentVolumeClaim in the same namespace; ReadWriteMany when more than one pod uses it."),
    ]
    path: Annotated[
        RelativePath | None, Field(description="Path in the volume, for example models/mlp. Default: its top.")
    ] = None


class Store(Model):
    """Exactly one of s3 and persistentVolumeClaim."""

    s3: Annotated[S3Store | None, Field(description="An S3 bucket.")] = None
    persistent_volume_claim: Annotated[ClaimStore | None, Field(description="A volume shared by all pods.")] = None
