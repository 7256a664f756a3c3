"""BigModelService: one stable address whose models change behind it, each gated by the model itself."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from bigmodel.api.condition import MAP_BY_TYPE, Condition
from bigmodel.api.job import MAP_BY_NAME, DataUri
from bigmodel.api.model import (
    Digest,
    DnsName,
    ImageReference,
    LabelValue,
    LongText,
    MetricName,
    Model,
    PositiveSeconds,
    ResourceKey,
    ResourceName,
    Seconds,
    Text,
    VariantName,
)
from bigmodel.api.pod import LocalObject, NodeSelector, Resources, Toleration
from bigmodel.api.store import Store

ModelName = Annotated[
    str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
]
Share = Annotated[float, Field(ge=0, le=1)]


class FromJob(Model):
    name: Annotated[
        ResourceName,
        Field(
            description="BigModelJob in the same namespace; its published artefact is followed, also that of a job "
            "made anew under this name."
        ),
    ]


class LabelSelector(Model):
    match_labels: Annotated[
        dict[ResourceKey, LabelValue],
        Field(min_length=1, max_length=16, description="Labels a job must have, for example {model: mlp}."),
    ]


class Best(Model):
    metric: Annotated[MetricName, Field(description="Metric to compare, measured on the same validation data.")]
    goal: Annotated[Literal["minimize", "maximize"], Field(description="Which way is better.")]
    min_improvement: Annotated[float, Field(ge=0, description="Smallest improvement worth a rollout.")] = 0.0


class FromJobs(Model):
    selector: Annotated[LabelSelector, Field(description="Which jobs of the namespace are followed.")]
    pick: Annotated[Literal["newest", "best"], Field(description="Which of their artefacts is taken.")] = "newest"
    best: Annotated[Best | None, Field(description="Required with pick best.")] = None
    min_interval_seconds: Annotated[Seconds, Field(description="Seconds between two rollouts.")] = 3600


class ArtifactSource(Model):
    uri: Annotated[
        LongText, Field(description="Directory of the artefact, as status.artifact.uri of its job shows it.")
    ]
    digest: Annotated[Digest, Field(description="Digest of its manifest.")]
    store: Annotated[Store | None, Field(description="Store it lies in. Default: the chart's.")] = None


class ModelSource(Model):
    name: Annotated[
        ModelName | None, Field(description="What clients call. Default: the service's name. Immutable.")
    ] = None
    variant: Annotated[
        VariantName | None, Field(description="Which variant of it, for example int8. Default: the job's output.serve.")
    ] = None
    from_job: Annotated[
        FromJob | None, Field(description="Follow one job by name. Exactly one of fromJob, fromJobs and artifact.")
    ] = None
    from_jobs: Annotated[FromJobs | None, Field(description="Follow every job with given labels.")] = None
    artifact: Annotated[ArtifactSource | None, Field(description="One artefact by digest.")] = None


class Server(Model):
    image: Annotated[ImageReference | None, Field(description="Triton image. Default: the chart's.")] = None
    image_pull_secrets: Annotated[
        list[LocalObject],
        Field(
            max_length=16,
            description="Secrets with registry logins, for example [{name: registry-login}].",
            json_schema_extra=MAP_BY_NAME,
        ),
    ] = Field(default_factory=list)
    backend: Annotated[
        Literal["auto", "python", "onnxruntime", "aoti"],
        Field(description="Triton backend. auto: what artefact and image offer."),
    ] = "auto"
    replicas: Annotated[int, Field(ge=0, le=1000, description="Pods of the stable revision.")] = 1
    resources: Annotated[Resources | None, Field(description="Compute resources of the Triton container.")] = None
    node_selector: Annotated[
        NodeSelector, Field(max_length=32, description="Labels a node must have. Default: any node.")
    ] = Field(default_factory=dict)
    tolerations: Annotated[
        list[Toleration], Field(max_length=32, description="Taints of nodes that the pods tolerate.")
    ] = Field(default_factory=list)
    service_account_name: Annotated[
        DnsName | None, Field(description="Identity of the pods; its token is not mounted. Default: default.")
    ] = None
    startup_deadline_seconds: Annotated[
        PositiveSeconds, Field(description="Seconds from a pod's start to its verified model.")
    ] = 1800
    max_request_seconds: Annotated[
        int, Field(ge=1, le=3600, description="Longest request that a stopping pod still finishes.")
    ] = 20


class Batching(Model):
    max_batch_size: Annotated[int, Field(ge=1, le=65536, description="Largest batch given to the model at once.")] = 64
    max_queue_delay_microseconds: Annotated[
        int, Field(ge=0, le=10_000_000, description="Longest wait for a batch to fill.")
    ] = 500
    instances: Annotated[int, Field(ge=1, le=64, description="Copies of the model in each pod.")] = 1


class ParentRef(Model):
    name: Annotated[DnsName, Field(description="Gateway.")]
    namespace: Annotated[
        DnsName | None,
        Field(description="Its namespace. Default: the service's own; the Gateway's allowedRoutes decide."),
    ] = None
    section_name: Annotated[DnsName | None, Field(description="One listener of it. Default: all.")] = None


class Route(Model):
    parent_refs: Annotated[
        list[ParentRef],
        Field(
            min_length=1, max_length=8, description="Gateways that carry the traffic, for example [{name: gateway}]."
        ),
    ]
    hostnames: Annotated[
        list[DnsName],
        Field(
            min_length=1,
            max_length=16,
            description="Hosts of HTTP and gRPC, for example [mlp.example.com].",
            json_schema_extra={"x-kubernetes-list-type": "set"},
        ),
    ]
    grpc_hostnames: Annotated[
        list[DnsName],
        Field(
            max_length=16,
            description="Further hosts for gRPC alone, disjoint from hostnames. Default: none.",
            json_schema_extra={"x-kubernetes-list-type": "set"},
        ),
    ] = Field(default_factory=list)


class ParityGate(Model):
    """A golden answer passes when |a - b| ≤ absolute + relative·|b|."""

    absolute: Annotated[
        float | None, Field(ge=0, description="Default: by the precision of the variant, 0.0001 for fp32.")
    ] = None
    relative: Annotated[
        float | None, Field(ge=0, description="Default: by the precision of the variant, 0.001 for fp32.")
    ] = None


class AccuracyGate(Model):
    metric: Annotated[MetricName, Field(description="A metric of the artefact.")]
    goal: Annotated[Literal["minimize", "maximize"], Field(description="Which way is better.")]
    at_most: Annotated[float | None, Field(description="Largest allowed value.")] = None
    at_least: Annotated[float | None, Field(description="Smallest allowed value.")] = None
    max_relative_drop: Annotated[
        Share | None,
        Field(description="Largest loss against stable, as a share; compared only on the same validation data."),
    ] = None


class EvaluationData(Model):
    uri: Annotated[DataUri, Field(description="Own evaluation data.")]


class EvaluationGate(Model):
    data: Annotated[EvaluationData, Field(description="Run against the dark candidate and beside stable.")]
    metric: Annotated[Literal["mse", "mae", "accuracy"], Field(description="What is measured.")]
    goal: Annotated[Literal["minimize", "maximize"], Field(description="Which way is better.")]
    max_relative_drop: Annotated[Share, Field(description="Largest loss against stable, as a share.")]


class ChangeGate(Model):
    max_changed_share: Annotated[
        Share, Field(description="Largest share of answers that differ from stable's on the same inputs.")
    ]


class OnlineGate(Model):
    max_error_ratio: Annotated[
        Share, Field(description="Share of failed requests that a candidate must stay below.")
    ] = 0.01
    max_error_increase: Annotated[Share, Field(description="Allowed increase over stable's own share.")] = 0.01
    p99_milliseconds: Annotated[
        float | None, Field(gt=0, description="99 of 100 requests must be faster, for example 50. Default: no limit.")
    ] = None


class Gates(Model):
    contract: Annotated[
        Literal["strict", "ignore"], Field(description="strict: the candidate takes every request that stable takes.")
    ] = "strict"
    parity: Annotated[ParityGate, Field(description="Golden answers of the artefact against those of the server.")] = (
        ParityGate()
    )
    accuracy: Annotated[
        list[AccuracyGate],
        Field(
            max_length=8,
            description="Limits on the artefact's metrics, such as {metric: val_mse, goal: minimize, atMost: 3000}.",
        ),
    ] = Field(default_factory=list)
    evaluation: Annotated[
        EvaluationGate | None, Field(description="Limits on own data, measured at the real endpoint. Default: none.")
    ] = None
    change: Annotated[
        ChangeGate | None, Field(description="Limit on changed answers, for example {maxChangedShare: 0.05}.")
    ] = None
    online: Annotated[OnlineGate, Field(description="Limits under real traffic.")] = OnlineGate()


class Pin(Model):
    revision: Annotated[int, Field(ge=1, description="Revision to serve and stay at.")]


class Rollout(Model):
    strategy: Annotated[
        Literal["canary", "blueGreen", "recreate"] | None,
        Field(
            description="canary moves shares of traffic, blueGreen all at once, recreate stops stable first. "
            "Default: canary with a route, else blueGreen."
        ),
    ] = None
    steps: Annotated[
        list[Annotated[int, Field(ge=1, le=99)]],
        Field(max_length=16, description="Shares of traffic in percent, rising, before the candidate takes all of it."),
    ] = Field(default=[5, 25, 50])
    interval_seconds: Annotated[PositiveSeconds, Field(description="Seconds at each step, at least.")] = 60
    deadline_seconds: Annotated[PositiveSeconds, Field(description="Seconds a rollout may take.")] = 3600
    on_deadline: Annotated[
        Literal["rollback", "promote", "hold"], Field(description="What to do then without a verdict.")
    ] = "rollback"
    on_quiet: Annotated[
        Literal["promote", "hold"], Field(description="What to do when only golden requests arrive.")
    ] = "promote"
    rollback_window_seconds: Annotated[
        Seconds, Field(description="Seconds the previous revision is kept warm after promotion.")
    ] = 300
    paused: Annotated[bool, Field(description="Hold the weight; a failing gate still rolls back.")] = False
    pin: Annotated[
        Pin | None, Field(description="Roll back to a revision and stay there, for example {revision: 6}.")
    ] = None


class ServiceSpec(Model):
    model: Annotated[ModelSource, Field(description="What to serve.")]
    server: Annotated[Server, Field(description="Where it runs.")] = Server()
    batching: Annotated[Batching, Field(description="How requests are joined.")] = Batching()
    route: Annotated[Route | None, Field(description="Gateway API route. Default: in-cluster Service only.")] = None
    gates: Annotated[Gates, Field(description="What a candidate must pass.")] = Gates()
    rollout: Annotated[Rollout, Field(description="How traffic moves.")] = Rollout()


class ReplicaCounts(Model):
    desired: Annotated[int, Field(ge=0, description="Pods wanted.")]
    ready: Annotated[int, Field(ge=0, description="Verified pods.")]
    summary: Annotated[Text, Field(description="ready/desired.")]


class Timings(Model):
    schedule_seconds: Annotated[int | None, Field(description="Pod created to bound.")] = None
    pull_seconds: Annotated[int | None, Field(description="Pulling images.")] = None
    download_seconds: Annotated[int | None, Field(description="Fetching and verifying the artefact.")] = None
    load_seconds: Annotated[int | None, Field(description="Loading the model.")] = None
    warmup_seconds: Annotated[int | None, Field(description="Warm-up requests.")] = None


class StableRevision(Model):
    revision: Annotated[int, Field(ge=1, description="Number of the revision.")]
    digest: Annotated[Digest, Field(description="Its artefact.")]
    short_digest: Annotated[Text, Field(description="First 12 hexadecimal digits, for the printer column.")]
    weight: Annotated[int, Field(ge=0, le=100, description="Its share of traffic in percent.")]
    job: Annotated[Text | None, Field(description="Job it came from.")] = None
    variant: Annotated[VariantName, Field(description="Its variant.")]
    backend: Annotated[Text | None, Field(description="Triton backend in use.")] = None
    timings: Annotated[Timings | None, Field(description="Where its start-up time went, when it was promoted.")] = None
    summary: Annotated[Text, Field(description="For people, for example r6.")]


class StepState(Model):
    index: Annotated[int, Field(ge=0, description="Which step.")]
    weight: Annotated[int, Field(ge=0, le=100, description="Its weight in percent.")]
    started_at: Annotated[datetime, Field(description="When it began.")]


class CandidateRevision(Model):
    revision: Annotated[int, Field(ge=1, description="Number of the revision.")]
    digest: Annotated[Digest, Field(description="Its artefact.")]
    weight: Annotated[int, Field(ge=0, le=100, description="Its share of traffic in percent.")]
    stage: Annotated[
        Literal["Preparing", "Loading", "Verifying", "Stepping", "Promoting", "Cooling", "RollingBack"],
        Field(description="How far it is."),
    ]
    step: Annotated[StepState | None, Field(description="Current step.")] = None
    timings: Annotated[Timings | None, Field(description="Where its start-up time went.")] = None


class GateResult(Model):
    name: Annotated[Text, Field(description="Gate.")]
    value: Annotated[Text, Field(description="What was seen.")]
    limit: Annotated[Text, Field(description="What passes.")]
    verdict: Annotated[Literal["Pass", "Fail", "Pending"], Field(description="Pass, Fail or Pending.")]
    at: Annotated[datetime, Field(description="When it was seen.")]


class RevisionResult(Model):
    revision: Annotated[int, Field(ge=1, description="Number of the revision.")]
    digest: Annotated[Digest, Field(description="Its artefact.")]
    result: Annotated[Literal["Promoted", "Rejected", "Aborted"], Field(description="How it ended.")]
    gate: Annotated[Text | None, Field(description="Gate that decided.")] = None
    message: Annotated[LongText | None, Field(description="What happened.")] = None
    at: Annotated[datetime, Field(description="When it was seen.")]


class ServedModel(Model):
    name: Annotated[ModelName, Field(description="What clients call.")]


class Traffic(Model):
    """What stable's clients saw in the last window; strings with a unit, for the printer columns."""

    p99: Annotated[Text | None, Field(description="99 of 100 requests were faster, for example 12.5ms.")] = None
    errors: Annotated[Text | None, Field(description="Share of failed requests, for example 0.25%.")] = None


class ServiceStatus(Model):
    observed_generation: Annotated[
        int, Field(ge=0, description="The metadata.generation this status was decided from.")
    ] = 0
    phase: Annotated[
        Literal["Waiting", "Preparing", "Serving", "RollingOut", "RollingBack", "Degraded", "ScaledToZero", "Failed"]
        | None,
        Field(description="For people; derived from the conditions, never an input."),
    ] = None
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16,
            description="What is true of the service, each with reason and advice.",
            json_schema_extra=MAP_BY_TYPE,
        ),
    ] = Field(default_factory=list)
    message: Annotated[LongText | None, Field(description="One sentence: what is happening, and what to do.")] = None
    url: Annotated[Text | None, Field(description="HTTP address of Triton's v2 protocol.")] = None
    grpc_url: Annotated[Text | None, Field(description="gRPC address of Triton's v2 protocol.")] = None
    model: Annotated[ServedModel | None, Field(description="What clients call.")] = None
    replicas: Annotated[ReplicaCounts | None, Field(description="Pods of the stable revision.")] = None
    stable: Annotated[StableRevision | None, Field(description="The revision that serves.")] = None
    candidate: Annotated[CandidateRevision | None, Field(description="The revision on its way.")] = None
    traffic: Annotated[Traffic | None, Field(description="What stable's clients saw in the last window.")] = None
    rollout: Annotated[Text | None, Field(description="For people, for example r7 5% (1/3).")] = None
    selector: Annotated[
        Text | None, Field(description="Label selector of stable's pods, for the scale subresource.")
    ] = None
    gates: Annotated[list[GateResult], Field(max_length=16, description="Verdicts of the current rollout.")] = Field(
        default_factory=list
    )
    history: Annotated[list[RevisionResult], Field(max_length=5, description="The last five outcomes.")] = Field(
        default_factory=list
    )


class Service(Model):
    """A BigModelService as the controller reads it."""

    metadata: dict[str, Any]
    spec: ServiceSpec
    status: ServiceStatus = ServiceStatus()
