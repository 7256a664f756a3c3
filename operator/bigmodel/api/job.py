"""BigModelJob: one distributed training run, from pods to a verified artefact."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from bigmodel.api.condition import MAP_BY_TYPE, Condition
from bigmodel.api.model import (
    AbsolutePath,
    Digest,
    DnsName,
    ImageReference,
    LabelKey,
    LongText,
    Metric,
    MetricName,
    Model,
    PositiveSeconds,
    Seconds,
    Text,
    VariantName,
)
from bigmodel.api.pod import (
    EnvFromSource,
    EnvVar,
    LocalObject,
    NodeSelector,
    PodMetadata,
    Quantity,
    Resources,
    Toleration,
    Volume,
    VolumeMount,
)
from bigmodel.api.progress import ArtifactSummary
from bigmodel.api.store import RelativePath, Store

DataUri = Annotated[str, StringConstraints(min_length=8, max_length=1024, pattern=r"^(dataset|pvc|s3)://\S+$")]
# Free-form numbers, strings and lists whose meaning the recipe or optimizer defines; it names the key it doesn't know.
Parameters = Annotated[
    dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}, max_length=64)
]
# Server-side apply merges such a list by the name of its elements.
MAP_BY_NAME: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
# A count, or `auto` where the operator can tell.
Count = Annotated[
    Annotated[int, Field(ge=1, le=65536)] | Literal["auto"],
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
]


class Data(Model):
    uri: Annotated[
        DataUri | None,
        Field(
            description="Training data: dataset://NAME (ships with the trainer image), pvc://CLAIM/PATH "
            "or s3://BUCKET/PATH. Default: the recipe's own."
        ),
    ] = None
    on_bad_record: Annotated[
        Literal["fail", "skip"],
        Field(description="A record that cannot be used: fail names it; skip counts it and takes its neighbour."),
    ] = "fail"


class Optimizer(Model):
    name: Annotated[
        Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"],
        Field(description="Which variant of gradient descent."),
    ] = "adam"
    learning_rate: Annotated[
        float | None,
        Field(
            gt=0, le=100, description="Step size, before the schedule. Default: the recipe's own for that optimizer."
        ),
    ] = None
    parameters: Annotated[
        Parameters, Field(description="Further arguments of the torch optimizer, for example {weight_decay: 0.01}.")
    ] = Field(default_factory=dict)


class Schedule(Model):
    name: Annotated[
        Literal["constant", "cosine", "linear"],
        Field(description="How the learning rate goes on after the warm-up; cosine and linear end at 0."),
    ] = "constant"
    warmup_steps: Annotated[int, Field(ge=0, le=10**9, description="Steps of linear warm-up from 0.")] = 0


class Target(Model):
    """Early success: training ends and publishes once the metric is reached. Exactly one of atMost and atLeast."""

    metric: Annotated[MetricName, Field(description="A metric the recipe reports, for example val_mse.")]
    at_most: Annotated[float | None, Field(description="Reached at or below this value.")] = None
    at_least: Annotated[float | None, Field(description="Reached at or above this value.")] = None


class Recipe(Model):
    """Training built in, no code needed."""

    name: Annotated[
        Literal["mlp", "vision", "text", "speech", "recommender", "tensorflow-mlp"],
        Field(description="Model and task."),
    ]
    parameters: Annotated[
        Parameters, Field(description="Arguments of the recipe, for example {hidden: [2000, 4000]} for mlp.")
    ] = Field(default_factory=dict)
    data: Annotated[
        Data | None, Field(description="What to train on. Default: the recipe's own data set, diabetes for mlp.")
    ] = None
    loss: Annotated[
        Literal["mse", "mae", "huber", "cross-entropy", "bce"] | None,
        Field(description="What is minimised. Default: the recipe's own, mse for mlp."),
    ] = None
    optimizer: Annotated[Optimizer, Field(description="How the parameters move. Default: Adam.")] = Optimizer()
    schedule: Annotated[Schedule, Field(description="How the learning rate moves. Default: it does not.")] = Schedule()
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], Field(description="Number format of the forward and backward pass.")
    ] = "fp32"
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Seed of weights, shuffling and dropout.")] = 0
    gradient_accumulation: Annotated[
        int,
        Field(ge=1, le=65536, description="Micro-batches per update; batchSize stays the global batch of one update."),
    ] = 1
    clip_norm: Annotated[
        float,
        Field(ge=0, le=1e9, description="Largest L2 norm of the gradient over all parameters; 0: no clipping."),
    ] = 0.0
    activation_checkpointing: Annotated[
        bool, Field(description="Recompute activations in the backward pass to save memory.")
    ] = False
    compile: Annotated[bool, Field(description="torch.compile the model.")] = False
    batch_size: Annotated[int, Field(ge=1, le=2**31 - 1, description="Samples of one update over all ranks.")] = 256
    steps: Annotated[
        int | None,
        Field(
            ge=1, le=10**9, description="Updates to make. At most one of steps and epochs; default: the recipe's own."
        ),
    ] = None
    epochs: Annotated[
        int | None, Field(ge=1, le=10**6, description="Passes over the training data, in place of steps.")
    ] = None
    target: Annotated[
        Target | None,
        Field(description="End early, as a success, for example {metric: val_mse, atMost: 2900}. Default: never."),
    ] = None


class Script(Model):
    """Own Python, started by our launcher on every rank. Exactly one of configMap and path."""

    config_map: Annotated[
        DnsName | None,
        Field(description="ConfigMap in the same namespace whose keys are files of the working directory."),
    ] = None
    path: Annotated[
        AbsolutePath | None, Field(description="Directory in the image or on a mounted volume, for example /code.")
    ] = None
    entrypoint: Annotated[RelativePath, Field(description="Python file inside it, for example train.py.")]


class Parallelism(Model):
    """The device mesh. The product of all four is the world size, nodes × processesPerNode."""

    data: Annotated[
        Count, Field(description="Replicas of the model (DDP). auto: what the other three leave of the world size.")
    ] = "auto"
    shard: Annotated[
        int,
        Field(
            ge=1,
            le=65536,
            description="Ranks that share one copy of parameters, gradients and optimizer state (FSDP2).",
        ),
    ] = 1
    tensor: Annotated[int, Field(ge=1, le=1024, description="Ranks that share each layer (tensor parallel).")] = 1
    pipeline: Annotated[int, Field(ge=1, le=1024, description="Stages of layers (pipeline parallel).")] = 1


class Scheduling(Model):
    gang: Annotated[
        Literal["auto", "podGroup", "none"],
        Field(
            description="All pods or none. auto: a native PodGroup where the cluster serves it, else create all "
            "with a deadline."
        ),
    ] = "auto"
    start_deadline_seconds: Annotated[
        PositiveSeconds, Field(description="Seconds from all pods bound to the first step; never runs while queued.")
    ] = 900
    topology_key: Annotated[
        LabelKey | None,
        Field(
            description="Node label within whose one value all pods must be, for example "
            "topology.kubernetes.io/zone. Default: anywhere."
        ),
    ] = None


class Checkpoint(Model):
    every_seconds: Annotated[
        PositiveSeconds | None,
        Field(
            description="Save this often, in seconds. At most one of everySeconds, everySteps and auto; default: 600."
        ),
    ] = None
    every_steps: Annotated[int | None, Field(ge=1, le=10**9, description="Save every so many steps instead.")] = None
    auto: Annotated[
        bool | None,
        Field(description="Choose the interval from the measured cost of a save and the failures seen (Young/Daly)."),
    ] = None
    keep: Annotated[int, Field(ge=1, le=1000, description="Newest checkpoints kept while training.")] = 3
    keep_after_success: Annotated[
        int, Field(ge=0, le=1000, description="Newest checkpoints kept once the artefact is published.")
    ] = 1


class FailureRule(Model):
    """First match wins. A rule without onExitCodes matches every failure."""

    on_exit_codes: Annotated[
        list[Annotated[int, Field(ge=1, le=255)]] | None,
        Field(
            max_length=64,
            description="Exit codes of the first failing rank that match; 128 + N is signal N. Default: all.",
        ),
    ] = None
    action: Annotated[
        Literal["FailJob", "Restart", "RestartAndIgnore"],
        Field(description="FailJob ends the job; Restart counts against maxRestarts; RestartAndIgnore does not."),
    ]


class FailurePolicy(Model):
    max_restarts: Annotated[int, Field(ge=0, le=1000, description="Restarts after faults of the program.")] = 3
    max_infrastructure_restarts: Annotated[
        int, Field(ge=0, le=10000, description="Restarts after lost, evicted or preempted pods; counted apart.")
    ] = 20
    max_hang_restarts: Annotated[int, Field(ge=0, le=1000, description="Restarts after hangs; counted apart.")] = 3
    hang_timeout_seconds: Annotated[
        int,
        Field(
            ge=5,
            le=86400,
            description="Seconds without a step after which the gang counts as hung: evidence is taken, then it is "
            "restarted.",
        ),
    ] = 600
    rules: Annotated[
        list[FailureRule],
        Field(max_length=32, description="What to do by exit code; the first match wins. Default: restart."),
    ] = Field(default_factory=list)


class AllowedDrop(Model):
    metric: Annotated[MetricName, Field(description="A metric the recipe reports.")]
    relative: Annotated[
        float, Field(ge=0, le=1, description="Largest allowed loss as a share of the trained model's value.")
    ]


class Quantize(Model):
    method: Annotated[
        Literal["dynamic-int8", "weight-only-int8", "static-int8", "float8"],
        Field(description="How weights and activations are made smaller."),
    ]
    max_drop: Annotated[
        AllowedDrop | None, Field(description="A variant that loses more is not offered to services.")
    ] = None


class Teacher(Model):
    """Empty: the job's own model."""

    artifact_uri: Annotated[LongText | None, Field(description="Another job's artefact.")] = None
    digest: Annotated[Digest | None, Field(description="Its digest.")] = None


class Distill(Model):
    teacher: Annotated[Teacher, Field(description="Default: the job's own model.")] = Teacher()
    student: Annotated[
        Parameters, Field(description="Recipe parameters of the smaller model, for example {hidden: [256, 256]}.")
    ] = Field(default_factory=dict)
    temperature: Annotated[
        float, Field(gt=0, le=100, description="Softens the teacher's answers (Hinton et al. 2015).")
    ] = 2.0
    alpha: Annotated[float, Field(ge=0, le=1, description="Weight of the teacher's answers against the labels.")] = 0.5
    max_drop: Annotated[
        AllowedDrop | None, Field(description="A student that loses more is not offered to services.")
    ] = None


class Variant(Model):
    """Exactly one of quantize and distill."""

    name: Annotated[VariantName, Field(description="Name of the variant; `default` is the model as trained.")]
    quantize: Annotated[Quantize | None, Field(description="Smaller numbers.")] = None
    distill: Annotated[Distill | None, Field(description="A smaller model that learns from the trained one.")] = None


class Output(Model):
    optimize: Annotated[
        list[Variant],
        Field(
            max_length=8,
            description="Variants made after training, each evaluated on the validation data. Default: none.",
            json_schema_extra=MAP_BY_NAME,
        ),
    ] = Field(default_factory=list)
    golden: Annotated[
        Literal["validation", "random", "none"],
        Field(
            description="Samples kept with the model to verify every server: real validation inputs, random inputs, "
            "or none (only shape, dtype and finiteness are checked)."
        ),
    ] = "validation"
    export: Annotated[
        list[Literal["torch", "aoti", "onnx"]],
        Field(
            min_length=1,
            max_length=3,
            description="Program formats: torch.export, AOTInductor, ONNX.",
            json_schema_extra={"x-kubernetes-list-type": "set"},
        ),
    ] = Field(default=["torch"])
    serve: Annotated[
        VariantName, Field(description="The variant a service takes: `default`, or a name from optimize.")
    ] = "default"


class JobSpec(Model):
    framework: Annotated[
        Literal["pytorch", "tensorflow"], Field(description="Decides which variables the processes of a gang get.")
    ] = "pytorch"
    recipe: Annotated[
        Recipe | None, Field(description="Training built in. Exactly one of recipe, script and command.")
    ] = None
    script: Annotated[
        Script | None, Field(description="Own Python, for example {configMap: my-code, entrypoint: train.py}.")
    ] = None
    command: Annotated[
        list[LongText] | None,
        Field(
            min_length=1,
            max_length=64,
            description="Any program in any image, for example [torchrun, train.py]; it gets torchrun's variables.",
        ),
    ] = None
    args: Annotated[list[LongText], Field(max_length=256, description="Arguments of script or command.")] = Field(
        default_factory=list
    )
    image: Annotated[
        ImageReference | None, Field(description="Container image. Default: the chart's trainer image.")
    ] = None
    image_pull_policy: Annotated[
        Literal["Always", "IfNotPresent", "Never"] | None,
        Field(description="When the image is pulled. Default: Kubernetes' own rule."),
    ] = None
    image_pull_secrets: Annotated[
        list[LocalObject],
        Field(
            max_length=16,
            description="Secrets with registry logins, for example [{name: registry-login}].",
            json_schema_extra=MAP_BY_NAME,
        ),
    ] = Field(default_factory=list)
    working_dir: Annotated[
        AbsolutePath | None,
        Field(description="Directory the program starts in. Default: a script's own, else the image's."),
    ] = None
    nodes: Annotated[
        int, Field(ge=1, le=1000, description="Pods of the gang. To stop a job, suspend or delete it.")
    ] = 1
    processes_per_node: Annotated[Count, Field(description="Ranks in each pod. auto: the pod's GPUs, else 1.")] = "auto"
    resources: Annotated[
        Resources | None, Field(description="Compute resources of each pod. Default: none asked for.")
    ] = None
    parallelism: Annotated[
        Parallelism, Field(description="The device mesh. Default: data parallel over all ranks.")
    ] = Parallelism()
    env: Annotated[
        list[EnvVar],
        Field(
            max_length=256,
            description="Environment of every process, for example [{name: NCCL_DEBUG, value: INFO}].",
            json_schema_extra=MAP_BY_NAME,
        ),
    ] = Field(default_factory=list)
    env_from: Annotated[
        list[EnvFromSource],
        Field(max_length=32, description="Whole Secrets or ConfigMaps as environment; env wins over them."),
    ] = Field(default_factory=list)
    volumes: Annotated[
        list[Volume],
        Field(
            max_length=32,
            description="Volumes of each pod, for example [{name: data, persistentVolumeClaim: {claimName: data}}].",
            json_schema_extra=MAP_BY_NAME,
        ),
    ] = Field(default_factory=list)
    volume_mounts: Annotated[
        list[VolumeMount],
        Field(
            max_length=32,
            description="Where volumes are seen, for example [{name: data, mountPath: /data}].",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["mountPath"]},
        ),
    ] = Field(default_factory=list)
    node_selector: Annotated[
        NodeSelector, Field(max_length=32, description="Labels a node must have. Default: any node.")
    ] = Field(default_factory=dict)
    tolerations: Annotated[
        list[Toleration], Field(max_length=32, description="Taints of nodes that the pods tolerate.")
    ] = Field(default_factory=list)
    priority_class_name: Annotated[
        DnsName | None, Field(description="PriorityClass of the pods. Default: the cluster's.")
    ] = None
    scheduler_name: Annotated[DnsName | None, Field(description="Who places the pods. Default: default-scheduler.")] = (
        None
    )
    service_account_name: Annotated[
        DnsName | None, Field(description="Identity of the pods; its token is not mounted. Default: default.")
    ] = None
    shared_memory: Annotated[Quantity, Field(description="Size of /dev/shm in each pod.")] = "1Gi"
    termination_grace_period_seconds: Annotated[
        int, Field(ge=10, le=3600, description="Seconds a pod gets to save a checkpoint when it is stopped.")
    ] = 60
    run_as_user: Annotated[int, Field(ge=1, le=2**31 - 1, description="User id of the processes; never root.")] = 1000
    fs_group: Annotated[int, Field(ge=1, le=2**31 - 1, description="Group id that owns mounted volumes.")] = 1000
    pod_metadata: Annotated[PodMetadata | None, Field(description="Further labels and annotations of every pod.")] = (
        None
    )
    scheduling: Annotated[Scheduling, Field(description="How the gang gets its nodes.")] = Scheduling()
    checkpoint: Annotated[Checkpoint, Field(description="How often training state is saved, and how much is kept.")] = (
        Checkpoint()
    )
    store: Annotated[
        Store | None, Field(description="Where checkpoints and the artefact go. Default: the chart's store.")
    ] = None
    failure_policy: Annotated[FailurePolicy, Field(description="What a failure costs.")] = FailurePolicy()
    output: Annotated[Output, Field(description="What is published at the end.")] = Output()
    suspend: Annotated[
        bool, Field(description="true: save a checkpoint and give all pods back; false: go on from it.")
    ] = False
    active_deadline_seconds: Annotated[
        PositiveSeconds | None,
        Field(
            description="Seconds a started job may take; the clock stands while suspended and begins anew at resume. "
            "Default: no limit."
        ),
    ] = None
    ttl_seconds_after_finished: Annotated[
        Seconds | None,
        Field(description="Seconds after which a finished job and its pods are removed. Default: never."),
    ] = None
    managed_by: Annotated[
        Text | None, Field(description="Another controller's name: this operator keeps its hands off. Immutable.")
    ] = None


class Progress(Model):
    """How far training is, pulled from the pod of index 0 at most every 10 s."""

    step: Annotated[int, Field(ge=0, description="Updates made.")]
    total_steps: Annotated[int | None, Field(ge=0, description="Updates to make.")] = None
    summary: Annotated[Text, Field(description="For people, for example 62%.")]
    steps_per_second: Annotated[Text | None, Field(description="Over the last report.")] = None
    eta_seconds: Annotated[int | None, Field(ge=0, description="Seconds to the last step at this speed.")] = None
    metrics: Annotated[list[Metric], Field(max_length=8, description="Newest values, for example loss.")] = Field(
        default_factory=list
    )
    loss: Annotated[Text | None, Field(description="Newest loss, for the printer column.")] = None
    updated_at: Annotated[datetime, Field(description="When the pod was last asked.")]


class Restarts(Model):
    program: Annotated[int, Field(ge=0, description="After faults of the program.")] = 0
    infrastructure: Annotated[int, Field(ge=0, description="After lost, evicted or preempted pods.")] = 0
    hang: Annotated[int, Field(ge=0, description="After hangs.")] = 0
    total: Annotated[int, Field(ge=0, description="Sum of the three.")] = 0


class Replacement(Model):
    index: Annotated[int, Field(ge=0, description="Index of the pod.")]
    count: Annotated[
        int,
        Field(
            ge=0, description="Pods replaced at this index in this attempt; written before the successor is created."
        ),
    ]


class NodeCounts(Model):
    desired: Annotated[int, Field(ge=0, description="Pods wanted.")]
    ready: Annotated[int, Field(ge=0, description="Pods running and ready.")] = 0
    succeeded: Annotated[int, Field(ge=0, description="Pods that ended with exit code 0.")] = 0
    failed: Annotated[int, Field(ge=0, description="Pods that ended with another.")] = 0
    summary: Annotated[Text, Field(description="ready/desired.")]


class JobIncident(Model):
    at: Annotated[datetime, Field(description="When it happened.")]
    attempt: Annotated[int, Field(ge=1, description="In which attempt.")]
    cause: Annotated[Text, Field(description="One CamelCase word: ProgramError, NodeLost, Evicted, OOMKilled, Hang.")]
    rank: Annotated[int | None, Field(description="First failing rank.")] = None
    index: Annotated[int | None, Field(description="Index of its pod.")] = None
    node: Annotated[Text | None, Field(description="Node of its pod.")] = None
    exit_code: Annotated[int | None, Field(description="Its exit code; 128 + N for signal N.")] = None
    message: Annotated[LongText, Field(description="What happened, with the end of the traceback.")]
    log: Annotated[LongText | None, Field(description="Last lines the first failing rank wrote.")] = None
    step: Annotated[int | None, Field(description="Furthest step made by then.")] = None
    resumed_from_step: Annotated[int | None, Field(description="Step training went on from.")] = None
    recovery_seconds: Annotated[int | None, Field(description="Seconds until the next step.")] = None


class Reported(Model):
    """Of the current attempt: what its launchers told, moved from productive to where it belongs."""

    checkpoint_seconds: Annotated[int, Field(ge=0, description="Blocked by saves.")] = 0
    lost_seconds: Annotated[int, Field(ge=0, description="Steps made again.")] = 0
    recovering_seconds: Annotated[int, Field(ge=0, description="Healing in place.")] = 0


class Goodput(Model):
    summary: Annotated[Text, Field(description="productive / (wall - queued - suspended), for example 90.0%.")]
    queued_seconds: Annotated[int, Field(ge=0, description="Waiting for nodes or quota.")] = 0
    suspended_seconds: Annotated[int, Field(ge=0, description="Suspended by the user.")] = 0
    starting_seconds: Annotated[int, Field(ge=0, description="Pulling, importing, connecting.")] = 0
    productive_seconds: Annotated[int, Field(ge=0, description="Making steps that count.")] = 0
    checkpoint_seconds: Annotated[int, Field(ge=0, description="Blocked by saves.")] = 0
    lost_seconds: Annotated[int, Field(ge=0, description="Steps made again after a failure.")] = 0
    recovering_seconds: Annotated[int, Field(ge=0, description="From a failure to the next step.")] = 0
    publishing_seconds: Annotated[int, Field(ge=0, description="Exporting and uploading the model.")] = 0
    since: Annotated[datetime | None, Field(description="First start: with the sum of all, booked up to when.")] = None
    reported: Annotated[Reported, Field(description="Of this attempt, as told by its launchers; booked above.")] = (
        Reported()
    )


class AvoidedNode(Model):
    name: Annotated[DnsName, Field(description="Name of the node.")]
    until: Annotated[datetime, Field(description="When it is forgiven.")]


class CheckpointStatus(Model):
    step: Annotated[int, Field(ge=0, description="Step it was saved at.")]
    uri: Annotated[LongText, Field(description="Where it is.")]
    digest: Annotated[Digest | None, Field(description="Digest of its manifest.")] = None
    saved_at: Annotated[datetime, Field(description="When it was committed.")]


class Resolved(Model):
    """Chosen at the first start and pinned: a chart upgrade changes no running job."""

    image: Annotated[ImageReference, Field(description="The image in use.")]
    store: Annotated[Store | None, Field(description="The store in use.")] = None
    spec_hash: Annotated[Text, Field(description="Hash of the spec the gang was built from.")]


class ArtifactStatus(ArtifactSummary):
    """What was published."""

    short_digest: Annotated[Text, Field(description="First 12 hexadecimal digits, for the printer column.")]


class JobStatus(Model):
    observed_generation: Annotated[
        int, Field(ge=0, description="The metadata.generation this status was decided from.")
    ] = 0
    phase: Annotated[
        Literal[
            "Pending", "Queued", "Starting", "Training", "Recovering", "Suspended", "Publishing", "Complete", "Failed"
        ]
        | None,
        Field(description="For people; derived from the conditions, never an input."),
    ] = None
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16,
            description="What is true of the job, each with reason and advice.",
            json_schema_extra=MAP_BY_TYPE,
        ),
    ] = Field(default_factory=list)
    message: Annotated[LongText | None, Field(description="One sentence: what is happening, and what to do.")] = None
    attempt: Annotated[int, Field(ge=0, description="Gangs started so far.")] = 0
    restarts: Annotated[Restarts, Field(description="Restarts so far, by cause.")] = Restarts()
    replacements: Annotated[list[Replacement], Field(max_length=1000, description="Pods replaced in this attempt.")] = (
        Field(default_factory=list)
    )
    pods_created: Annotated[
        int,
        Field(
            ge=0,
            description="Pods of this attempt that were made and not replaced: one missing of these is lost.",
        ),
    ] = 0
    nodes: Annotated[NodeCounts | None, Field(description="Pods of the current attempt.")] = None
    selector: Annotated[Text | None, Field(description="Label selector of the pods, for the scale subresource.")] = None
    resolved: Annotated[Resolved | None, Field(description="Defaults as pinned at the first start.")] = None
    progress: Annotated[Progress | None, Field(description="How far training is.")] = None
    checkpoint: Annotated[CheckpointStatus | None, Field(description="Newest committed checkpoint.")] = None
    goodput: Annotated[Goodput | None, Field(description="Where the time went.")] = None
    incidents: Annotated[list[JobIncident], Field(max_length=10, description="The last ten failures.")] = Field(
        default_factory=list
    )
    avoided_nodes: Annotated[
        list[AvoidedNode], Field(max_length=8, description="Nodes that failed this job: tried last by new pods.")
    ] = Field(default_factory=list)
    artifact: Annotated[ArtifactStatus | None, Field(description="What was published.")] = None
    start_time: Annotated[
        datetime | None, Field(description="When the first gang was created, or the job was last resumed.")
    ] = None
    running_time: Annotated[datetime | None, Field(description="When all pods first ran.")] = None
    first_step_time: Annotated[datetime | None, Field(description="When the first step was made.")] = None
    completion_time: Annotated[datetime | None, Field(description="When the job became Complete or Failed.")] = None
    finished: Annotated[Literal["True"] | None, Field(description="True once the job is Complete or Failed.")] = None


class Job(Model):
    """A BigModelJob as the controller reads it."""

    metadata: dict[str, Any]
    spec: JobSpec
    status: JobStatus = JobStatus()
