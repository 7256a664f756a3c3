"""Is this a spec we can make a gang of? Asked until the first start; the API server asked the same by CEL. Pure."""

from dataclasses import dataclass

from bigmodel.api.job import JobSpec
from bigmodel.api.not_yet import refused
from bigmodel.api.store import Store
from bigmodel.controller.job import messages
from bigmodel.controller.job.messages import Reason
from bigmodel.controller.job.observe import ObservedJob
from bigmodel.controller.settings import Settings

GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class Problem:
    reason: Reason
    message: str


def problem(job: ObservedJob, settings: Settings) -> Problem | None:
    """What is wrong with the spec, with field, value, rule and way out; None: nothing."""
    if job.spec is None:
        return Problem(Reason.INVALID_SPEC, messages.invalid_spec(job.problems))
    found = [text for text in (_work(job.spec), _framework(job.spec), _parallelism(job.spec)) if text]
    if found:
        return Problem(Reason.INVALID_SPEC, messages.invalid_spec(found))
    if later := refused(job.raw_spec):
        return Problem(Reason.NOT_SERVED, messages.invalid_spec(later))
    if job.spec.command is None and chosen_store(job.spec, settings) is None:
        return Problem(Reason.STORE_NOT_SET, messages.store_not_set())
    return None


def chosen_store(spec: JobSpec, settings: Settings) -> Store | None:
    """None: there is none, or it is not wanted: a command publishes nothing, it gets a store where it names one."""
    return spec.store or (settings.store if spec.command is None else None)


def processes_per_node(spec: JobSpec) -> int | None:
    """Ranks in each pod; None where only the cluster can tell."""
    if isinstance(spec.processes_per_node, int):
        return spec.processes_per_node
    limits = (spec.resources.limits or {}) if spec.resources is not None else {}
    gpus = str(limits.get(GPU, "1"))
    return max(1, int(gpus)) if gpus.isdecimal() else None


def _work(spec: JobSpec) -> str | None:
    given = [name for name in ("recipe", "script", "command") if getattr(spec, name) is not None]
    if len(given) == 1:
        return None
    return (
        f"spec: exactly one of recipe, script, command is wanted, found {', '.join(given) or 'none'}; the smallest "
        "is "
        "recipe: {name: mlp}"
    )


def _framework(spec: JobSpec) -> str | None:
    if spec.recipe is None or spec.framework == "pytorch":
        return None
    return f"spec.framework: {spec.framework}: recipes train with pytorch; remove it, or use script or command"


def _parallelism(spec: JobSpec) -> str | None:
    """data × shard × tensor × pipeline = world size."""
    processes = processes_per_node(spec)
    if processes is None:
        return None
    mesh = spec.parallelism
    world, fixed = spec.nodes * processes, mesh.shard * mesh.tensor * mesh.pipeline
    if (world % fixed == 0) if mesh.data == "auto" else (mesh.data * fixed == world):
        return None
    return (
        f"spec.parallelism: {mesh.data} × {mesh.shard} × {mesh.tensor} × {mesh.pipeline} for {spec.nodes} × "
        f"{processes}: data × shard × tensor × pipeline must be nodes × processesPerNode; data: auto takes what the "
        "others leave"
    )
