"""What a reconciler decides and the engine executes: plain values; deciding needs no cluster, executing needs no rule.

The engine executes a Decision in this order: relabel, create, apply, delete, what it says in the status of children;
then one status write if it differs; then the events. A decision that raises a counter (attempt, restarts, replacements)
carries no acts: the counter is written first, and the next pass, which starts at once, acts on what it finds written. A
crash between the two loses nothing and counts nothing twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

Manifest = dict[str, Any]  # one Kubernetes object as JSON


@dataclass(frozen=True)
class ResourceKind:
    """A kind of the API server. `plural` and `api_version` make its path."""

    kind: str
    api_version: str
    plural: str
    namespaced: bool = True


POD = ResourceKind("Pod", "v1", "pods")
SERVICE = ResourceKind("Service", "v1", "services")
ENDPOINT_SLICE = ResourceKind("EndpointSlice", "discovery.k8s.io/v1", "endpointslices")
POD_GROUP = ResourceKind("PodGroup", "scheduling.k8s.io/v1beta1", "podgroups")
DEPLOYMENT = ResourceKind("Deployment", "apps/v1", "deployments")
NETWORK_POLICY = ResourceKind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies")
POD_DISRUPTION_BUDGET = ResourceKind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets")
CONTROLLER_REVISION = ResourceKind("ControllerRevision", "apps/v1", "controllerrevisions")
HTTP_ROUTE = ResourceKind("HTTPRoute", "gateway.networking.k8s.io/v1", "httproutes")
GRPC_ROUTE = ResourceKind("GRPCRoute", "gateway.networking.k8s.io/v1", "grpcroutes")
NODE = ResourceKind("Node", "v1", "nodes", namespaced=False)
# Of Kueue, in the newest version we know; discovery says which one is served.
WORKLOAD = ResourceKind("Workload", "kueue.x-k8s.io/v1beta2", "workloads")
RESOURCE_FLAVOR = ResourceKind("ResourceFlavor", "kueue.x-k8s.io/v1beta2", "resourceflavors", namespaced=False)
WORKLOAD_PRIORITY_CLASS = ResourceKind(
    "WorkloadPriorityClass", "kueue.x-k8s.io/v1beta2", "workloadpriorityclasses", namespaced=False
)
PRIORITY_CLASS = ResourceKind("PriorityClass", "scheduling.k8s.io/v1", "priorityclasses", namespaced=False)
BIG_MODEL_JOB = ResourceKind("BigModelJob", "bigmodel.io/v1alpha1", "bigmodeljobs")
BIG_MODEL_SERVICE = ResourceKind("BigModelService", "bigmodel.io/v1alpha1", "bigmodelservices")


@dataclass(frozen=True, order=True)
class Key:
    """One object that is reconciled."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True)
class Deletion:
    """A child to delete, by UID: the engine reads it live first and sends the UID as a precondition.

    With the reconciled object's own UID that object goes, and its children with it: the end of its time to live.
    """

    kind: ResourceKind
    name: str
    uid: str
    grace_seconds: int | None = None  # None: the object's own


@dataclass(frozen=True)
class Relabel:
    """Labels and annotations to set on a child, by UID; an annotation that is None goes."""

    kind: ResourceKind
    name: str
    uid: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class StatusApply:
    """Our own part of the status of a child that another controller runs: server-side apply under our name."""

    kind: ResourceKind
    name: str
    status: Manifest


@dataclass(frozen=True)
class StatusPatch:
    """A change of what another controller wrote into a child's status: a merge patch of exactly this version of it."""

    kind: ResourceKind
    name: str
    uid: str
    version: str  # resourceVersion
    status: Manifest


@dataclass(frozen=True)
class Event:
    """One line of the object's story, sent once for each transition. `about` makes its name deterministic."""

    type: Literal["Normal", "Warning"]
    reason: str
    note: str  # at most 1024 bytes; the recorder cuts
    about: str  # what this transition is, e.g. "a1-started": the same text is the same event
    action: str = "Reconcile"


@dataclass(frozen=True)
class Decision:
    """`status` is the complete wanted status (camelCase JSON), None to leave it as it is."""

    relabel: tuple[Relabel, ...] = ()
    # By deterministic name; an existing one of ours is success, a foreign one comes back as a Rejection (409). In this
    # order: neighbours of one kind are created together, the next kind only when all before it exist. The engine adds
    # the hash annotation.
    create: tuple[Manifest, ...] = ()
    # Changes of existing children, as whole manifests: server-side apply, skipped when the hash annotation matches.
    apply: tuple[Manifest, ...] = ()
    delete: tuple[Deletion, ...] = ()
    child_status: tuple[StatusApply | StatusPatch, ...] = ()
    status: Manifest | None = None
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None  # seconds; None: only when something changes
    again: bool = False  # reconcile at once after the status write: a counter was raised


@dataclass(frozen=True)
class Rejection:
    """What the API server refused, for the user to read: 400, 403 (quota too), 404 (no such kind or namespace), 422.

    409 is a name that an object of somebody else has; such an object is never adopted. A refused child is tried
    again with back-off for as long as it is decided on.
    """

    manifest_kind: str
    name: str
    code: int
    message: str
    at: datetime


@dataclass(frozen=True)
class Children:
    """What exists of the reconciled object, by kind name, as last seen. Read only: the objects are the cache itself.

    `by_kind`: the reconciled object is their controller owner. `related_by_kind`: they name it by label
    (bigmodel.io/service, bigmodel.io/job) and another object controls them: pods of its Deployment, slices of its
    Service. Labels can be forged: a rule that trusts one checks who controls it. Of a pod's containers only name and
    image are kept, its volumes, tolerations and affinity are not; managedFields of nothing.
    """

    by_kind: Mapping[str, tuple[Manifest, ...]] = field(default_factory=dict)
    related_by_kind: Mapping[str, tuple[Manifest, ...]] = field(default_factory=dict)

    def of(self, kind: ResourceKind) -> tuple[Manifest, ...]:
        return self.by_kind.get(kind.kind, ())

    def related(self, kind: ResourceKind) -> tuple[Manifest, ...]:
        return self.related_by_kind.get(kind.kind, ())


class Reconciler(Protocol):
    """One resource's rules, as the engine calls them."""

    kind: ResourceKind
    # Each of these kinds gets a reflector; a change queues the reconciled object.
    children: tuple[ResourceKind, ...]  # it is their controller owner
    related: tuple[ResourceKind, ...]  # other controllers make them, they carry its label

    async def observe(self, owner: Manifest, children: Children, rejections: tuple[Rejection, ...]) -> Any:
        """Collect facts into an immutable snapshot. May read caches and other objects; never writes.

        `rejections` are the children of this object that the API server refused in the last pass.
        """

    def decide(self, snapshot: Any, now: datetime) -> Decision:
        """Pure: same snapshot and time, same decision. Raises nothing for bad user input: that is a condition."""
