"""What a gang that does not fit lacks, in numbers: "needs 2 × 8 nvidia.com/gpu; free: 5 on gpu-1, 8 on gpu-2". Pure.

The scheduler's own text counts nodes by reason; it names neither a node nor what is free there. This is no second
scheduler: where the numbers say that the gang would fit, something else holds it, and the scheduler's text stands.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_DOWN, Decimal, InvalidOperation
from typing import Any

from bigmodel.api.job import JobSpec
from bigmodel.api.names import LABEL_JOB_UID
from bigmodel.api.pod import Toleration
from bigmodel.controller.decision import Manifest

NODES_NAMED = 5
# What pods ask for and nodes are short of. Others are named after these, in their own order.
_PLAIN = ("memory", "cpu", "ephemeral-storage")
_SUFFIXES = {
    **{suffix: Decimal(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{"m": Decimal("0.001"), "u": Decimal("0.000001"), "n": Decimal("0.000000001")},
}
_NONE = Decimal(0)
Amounts = Mapping[str, Decimal]  # by resource


@dataclass(frozen=True)
class Taint:
    key: str
    value: str
    effect: str


@dataclass(frozen=True)
class NodeRoom:
    """One node: what pods may ask of it in all, and what the bound ones do. `by_job`: of that, by UID of our jobs."""

    name: str
    labels: Mapping[str, str]
    cordoned: bool
    taints: tuple[Taint, ...]
    allocatable: Amounts
    asked: Amounts = field(default_factory=dict)
    by_job: Mapping[str, Amounts] = field(default_factory=dict)

    def free(self, resource: str, job_uid: str) -> Decimal:
        """For a job whose own pods may be here already."""
        own = self.by_job.get(job_uid, {}).get(resource, _NONE)
        return max(_NONE, self.allocatable.get(resource, _NONE) - self.asked.get(resource, _NONE) + own)


class Tally:
    """Nodes and pods, taken in page by page; nothing of a pod is kept but the sums."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeRoom] = {}
        self._asked: dict[str, dict[str, Decimal]] = {}
        self._by_job: dict[str, dict[str, dict[str, Decimal]]] = {}

    def add_nodes(self, nodes: Iterable[Manifest]) -> int:
        """How many are known now."""
        for node in nodes:
            spec, name = node.get("spec") or {}, node["metadata"]["name"]
            self._nodes[name] = NodeRoom(
                name=name,
                labels=node["metadata"].get("labels") or {},
                cordoned=bool(spec.get("unschedulable")),
                taints=tuple(
                    Taint(taint["key"], taint.get("value") or "", taint["effect"]) for taint in spec.get("taints") or ()
                ),
                allocatable=_amounts((node.get("status") or {}).get("allocatable")),
            )
        return len(self._nodes)

    def add_pods(self, pods: Iterable[Manifest]) -> None:
        """Those that are bound and have not ended."""
        for pod in pods:
            node = pod["spec"].get("nodeName")
            if node not in self._nodes or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
                continue
            asked = requests(pod["spec"])
            _add(self._asked.setdefault(node, {}), asked)
            if (uid := (pod["metadata"].get("labels") or {}).get(LABEL_JOB_UID)) is not None:
                _add(self._by_job.setdefault(node, {}).setdefault(uid, {}), asked)

    def rooms(self) -> tuple[NodeRoom, ...]:
        """By name."""
        return tuple(
            replace(node, asked=self._asked.get(name, {}), by_job=self._by_job.get(name, {}))
            for name, node in sorted(self._nodes.items())
        )


def requests(pod_spec: Mapping[str, Any]) -> Amounts:
    """What the scheduler counts of a pod: its containers, or its largest init container, and the pod itself."""
    total = {"pods": Decimal(1)}
    for container in pod_spec.get("containers") or ():
        _add(total, _requests_of(container))
    for container in pod_spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            _add(total, _requests_of(container))
        else:
            total |= {name: max(amount, total.get(name, _NONE)) for name, amount in _requests_of(container).items()}
    _add(total, _amounts(pod_spec.get("overhead")))
    return total


def lack(spec: JobSpec, pods: int, job_uid: str, nodes: Sequence[NodeRoom]) -> str | None:
    """What keeps `pods` pods of this spec from fitting on the nodes; None where the numbers do not say."""
    if not nodes:
        return None
    eligible = [node for node in nodes if _obstacle(node, spec) is None]
    if not eligible:
        return _no_node(nodes, spec)
    needs = _needs(spec)
    for resource, amount in needs.items():
        free = {node.name: node.free(resource, job_uid) for node in eligible}
        if sum(int(room // amount) for room in free.values()) < pods:
            return f"needs {pods} × {_text(resource, amount)} {resource}; free: {_listed_room(resource, free)}"
    if sum(min(int(node.free(r, job_uid) // a) for r, a in needs.items()) for node in eligible) >= pods:
        return None
    wanted = ", ".join(
        f"{_text(resource, amount)} {resource}" for resource, amount in needs.items() if resource != "pods"
    )
    return (
        f"needs {pods} × ({wanted}), each on one node; enough is free of each in all, but not of all of them on the "
        "same nodes"
    )


def _needs(spec: JobSpec) -> dict[str, Decimal]:
    """What one pod asks for, what is scarcest first."""
    given = spec.resources
    limits = _amounts(given.limits if given is not None else None)
    asked = {**limits, **_amounts(given.requests if given is not None else None), "pods": Decimal(1)}

    def scarcity(name: str) -> tuple[int, str]:
        return (_PLAIN.index(name) if name in _PLAIN else -1 if "/" in name else len(_PLAIN)), name

    return {name: asked[name] for name in sorted(asked, key=scarcity) if asked[name] > 0}


def _obstacle(node: NodeRoom, spec: JobSpec) -> str | None:
    """Why no pod of this spec may go there, whatever is free."""
    if any(node.labels.get(name) != value for name, value in spec.node_selector.items()):
        return "do not match spec.nodeSelector"
    if node.cordoned:
        return "are cordoned"
    for taint in node.taints:
        if taint.effect != "PreferNoSchedule" and not any(_tolerates(t, taint) for t in spec.tolerations):
            return f"have the taint {taint.key}, which spec.tolerations does not tolerate"
    return None


def _no_node(nodes: Sequence[NodeRoom], spec: JobSpec) -> str:
    reasons = Counter(_obstacle(node, spec) for node in nodes)
    told = [f"{count} {reason}" for reason, count in reasons.most_common(3)]
    return f"no node may be used: of {len(nodes)}, {', '.join(told)}"


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect is not None and toleration.effect != taint.effect:
        return False
    if toleration.operator == "Exists":
        return toleration.key is None or toleration.key == taint.key
    return toleration.key == taint.key and (toleration.value or "") == taint.value


def _listed_room(resource: str, free: Mapping[str, Decimal]) -> str:
    """The nodes with most room, by name; 0 of it on one in the cluster is worth saying only in number."""
    some = sorted(name for name, room in free.items() if room > 0)
    if not some:
        return f"none on {len(free)} nodes" if len(free) > 1 else f"none on {next(iter(free))}"
    named = sorted(sorted(some, key=lambda name: (-free[name], name))[:NODES_NAMED])
    text = ", ".join(f"{_text(resource, free[name])} on {name}" for name in named)
    return f"{text} and {len(some) - len(named)} more" if len(some) > len(named) else text


def _requests_of(container: Mapping[str, Any]) -> Amounts:
    return _amounts((container.get("resources") or {}).get("requests"))


def _amounts(raw: Mapping[str, Any] | None) -> Amounts:
    found = {name: quantity(value) for name, value in (raw or {}).items()}
    return {name: amount for name, amount in found.items() if amount is not None}


def quantity(text: object) -> Decimal | None:
    """A Kubernetes quantity as a number; None where it is none."""
    written = str(text).strip()
    suffix = next((s for s in _SUFFIXES if written.endswith(s)), "")
    try:
        number = Decimal(written.removesuffix(suffix))
    except InvalidOperation:
        return None
    return number * _SUFFIXES.get(suffix, Decimal(1)) if number.is_finite() else None


def _text(resource: str, amount: Decimal) -> str:
    """As people write it: 8, 2.5, 64Gi."""
    if resource in ("memory", "ephemeral-storage") or resource.startswith("hugepages-"):
        for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
            if amount >= _SUFFIXES[suffix]:
                return f"{_plain(amount / _SUFFIXES[suffix])}{suffix}"
    return _plain(amount)


def _plain(amount: Decimal) -> str:
    """At most three digits behind the point, rounded down: what is free must not look like more."""
    return f"{amount.quantize(Decimal('0.001'), ROUND_DOWN):f}".rstrip("0").rstrip(".")


def _add(total: dict[str, Decimal], more: Amounts) -> None:
    for resource, amount in more.items():
        total[resource] = total.get(resource, _NONE) + amount
