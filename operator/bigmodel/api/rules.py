"""What a pattern or a bound cannot say: CEL rules the API server checks; messages name value, rule and way out.

`OF_MODEL` holds rules of a model wherever it stands, `at_root` those that see the whole object and its past, `not_yet`
is turned into rules by path. `crd` puts them into the schema. Every string and list they read is bounded, which keeps
their cost legal.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from bigmodel.api import job, pod, service, store
from bigmodel.api.model import Model
from bigmodel.api.not_yet import NotYet

# Set by the launcher or the controller in every training process.
RESERVED_ENVIRONMENT = (
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "ROLE_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
    "MASTER_ADDR",
    "MASTER_PORT",
    "HOME",
    "TF_CONFIG",
)
RESERVED_ENVIRONMENT_PREFIXES = ("PET_", "TORCHELASTIC_", "BIGMODEL_")
USERS_OWN_ENVIRONMENT = ("BIGMODEL_PRELOAD",)  # the one switch of ours that is meant for users

# Mounted by the operator, or needed by every process.
RESERVED_MOUNT_PATHS = (
    *("/", "/dev", "/dev/shm", "/etc", "/proc", "/sys", "/tmp", "/usr"),  # noqa: S108
    *("/opt/bigmodel", "/opt/bigmodel/datasets", "/opt/bigmodel/script", "/opt/venv", "/store"),
)
RESERVED_VOLUME_PREFIX = "bigmodel"
RESERVED_LABEL_DOMAINS = ("bigmodel.io", "app.kubernetes.io", "kueue.x-k8s.io")

# JobSpec, by when a field may change. Every field stands in exactly one of the five.
WORK = ("framework", "recipe", "script", "command", "args", "store", "output")  # never after the first start
PLACEMENT = (  # only while nothing runs
    "image",
    "imagePullPolicy",
    "imagePullSecrets",
    "workingDir",
    "processesPerNode",
    "resources",
    "parallelism",
    "env",
    "envFrom",
    "volumes",
    "volumeMounts",
    "nodeSelector",
    "tolerations",
    "priorityClassName",
    "schedulerName",
    "serviceAccountName",
    "sharedMemory",
    "terminationGracePeriodSeconds",
    "runAsUser",
    "fsGroup",
    "podMetadata",
    "scheduling",
    "checkpoint",
)
UNTIL_FINISHED = ("nodes", "suspend", "activeDeadlineSeconds", "failurePolicy")
ALWAYS = ("ttlSecondsAfterFinished",)
NEVER = ("managedBy",)


@dataclass(frozen=True)
class Rule:
    """One entry of x-kubernetes-validations.

    `holds` is CEL over `self`. `asked` says what is asked and the way out. `found` is CEL for the offending value as a
    string: by itself the API server shows only a scalar that the rule stands on. Its estimated length must be bounded:
    no string(), no join(). `field` is the path below the node that the error names, `.name`.
    """

    holds: str
    asked: str
    found: str | None = None
    field: str | None = None
    reason: Literal["FieldValueInvalid", "FieldValueForbidden"] = "FieldValueInvalid"

    def schema(self) -> dict[str, Any]:
        entry = {"rule": self.holds}
        if self.found:
            entry["messageExpression"] = f"{self.found} + {_literal(': ' + self.asked)}"
        else:
            entry["message"] = self.asked
        if self.field:
            entry["fieldPath"] = self.field
        if self.reason != "FieldValueInvalid":
            entry["reason"] = self.reason
        return entry


def _literal(value: object) -> str:
    """A CEL literal. JSON's are CEL's."""
    return json.dumps(value, ensure_ascii=False)


def _quoted(expression: str) -> str:
    return f'"\'" + {expression} + "\'"'


def _present(*fields: str) -> str:
    """CEL: which of the fields are there, as `[a, b]`."""
    return "'[' + " + " + ".join(f"(has(self.{field}) ? ' {field}' : '')" for field in fields) + " + ' ]'"


def _exactly_one(*fields: str, way_out: str) -> Rule:
    have = ", ".join(f"has(self.{field})" for field in fields)
    return Rule(
        f"[{have}].exists_one(h, h)", f"exactly one of {', '.join(fields)} is wanted; {way_out}", _present(*fields)
    )


def _at_most_one(*fields: str, way_out: str) -> Rule:
    have = ", ".join(f"has(self.{field})" for field in fields)
    return Rule(
        f"[{have}].filter(h, h).size() <= 1",
        f"at most one of {', '.join(fields)} is wanted; {way_out}",
        _present(*fields),
    )


def _none(items: str, variable: str, bad: str, shown: str = "") -> tuple[str, str]:
    """CEL of `no item is bad` and of the first bad one, quoted. `shown` is what of it to show, `.name`."""
    return f"!{items}.exists({variable}, {bad})", _quoted(f"{items}.filter({variable}, {bad})[0]{shown}")


def _keys_are_qualified_names(field: str) -> Rule:
    holds, found = _none(f"self.{field}", "k", "format.qualifiedName().validate(k).hasValue()")
    return Rule(
        f"!has(self.{field}) || {holds}",
        "no valid key; use letters, digits, -, _ and ., as in example.com/name",
        found,
        f".{field}",
    )


def _keys_outside(field: str, domains: tuple[str, ...]) -> Rule:
    pattern = f"^([-a-z0-9.]+[.])?({'|'.join(domain.replace('.', '[.]') for domain in domains)})/"
    holds, found = _none(f"self.{field}", "k", f"k.matches('{pattern}')")
    return Rule(
        f"!has(self.{field}) || {holds}",
        f"keys of {', '.join(domains)} are the operator's; use a domain of your own",
        found,
        f".{field}",
    )


# 2, 500m, 64Gi.
QUANTITY = Rule(
    "isQuantity(string(self)) && sign(quantity(string(self))) >= 0",
    "a quantity of at least 0 is wanted, such as 2, 500m or 64Gi",
)


def count(least: int, most: int) -> Rule:
    """A whole number, or `auto`."""
    return Rule(
        f"type(self) == int ? self >= {least} && self <= {most} : self == 'auto'",
        f"a number from {least} to {most} without quotes is wanted, or auto",
    )


_reserved = "|".join([*RESERVED_ENVIRONMENT, *(f"{prefix}.*" for prefix in RESERVED_ENVIRONMENT_PREFIXES)])
_GPUS = "self.resources.limits['nvidia.com/gpu']"
_OTHERS = "self.parallelism.shard * self.parallelism.tensor * self.parallelism.pipeline"
# Ranks in each pod, 0 where only the cluster can tell.
_PROCESSES = (
    "type(self.processesPerNode) == int ? int(self.processesPerNode) : "
    "!has(self.resources) || !has(self.resources.limits) || !('nvidia.com/gpu' in self.resources.limits) ? 1 : "
    f"type({_GPUS}) == int ? int({_GPUS}) : string({_GPUS}).matches('^[0-9]{{1,4}}$') ? int(string({_GPUS})) : 0"
)
# A bounded optional field that did not change. Not `self.?x == oldSelf.?x`: the API server cannot estimate its cost.
_SAME = "has(self.{0}) == has(oldSelf.{0}) && (!has(self.{0}) || self.{0} == oldSelf.{0})"

# The API server checks a default of {} before it fills in the defaults below it: rules of such a parent ask has().
OF_MODEL: dict[type[Model], tuple[Rule, ...]] = {
    store.Store: (_exactly_one("s3", "persistentVolumeClaim", way_out="or leave the store out for the chart's"),),
    pod.Resources: (
        _keys_are_qualified_names("limits"),
        _keys_are_qualified_names("requests"),
        Rule(
            "!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits) || "
            "!isQuantity(string(self.requests[k])) || !isQuantity(string(self.limits[k])) || "
            "quantity(string(self.requests[k])).compareTo(quantity(string(self.limits[k]))) <= 0)",
            "a request above its limit cannot be met; lower it or raise the limit",
            field=".requests",
        ),
    ),
    pod.EnvVarSource: (
        _exactly_one("secretKeyRef", "configMapKeyRef", "fieldRef", way_out="say where the value comes from"),
    ),
    pod.EnvVar: (
        Rule(
            f"!self.name.matches('^({_reserved})$') || self.name in {_literal(USERS_OWN_ENVIRONMENT)}",
            "the operator sets this variable in every process; choose another name",
            _quoted("self.name"),
            ".name",
        ),
        _exactly_one("value", "valueFrom", way_out='an empty value is value: ""'),
    ),
    pod.EnvFromSource: (_exactly_one("secretRef", "configMapRef", way_out="make one entry for each"),),
    pod.Volume: (
        _exactly_one(
            "configMap",
            "secret",
            "persistentVolumeClaim",
            "emptyDir",
            way_out="make one volume for each; no other kinds",
        ),
        Rule(
            f"!self.name.startsWith('{RESERVED_VOLUME_PREFIX}')",
            f"names that begin with {RESERVED_VOLUME_PREFIX} are the operator's; choose another",
            _quoted("self.name"),
            ".name",
        ),
    ),
    pod.VolumeMount: (
        Rule(
            f"!(self.mountPath in {_literal(RESERVED_MOUNT_PATHS)}) && "
            "!self.mountPath.split('/').exists(p, p in ['.', '..'])",
            "the image or the operator uses this path; mount below a path of your own, such as /data",
            _quoted("self.mountPath"),
            ".mountPath",
        ),
    ),
    pod.Toleration: (
        Rule(
            "!has(self.value) || !has(self.operator) || self.operator == 'Equal'",
            "operator Exists takes no value; remove it or use operator Equal",
            _quoted("self.value"),
            ".value",
        ),
        Rule(
            "has(self.key) || has(self.operator) && self.operator == 'Exists'",
            "without a key only operator: Exists is possible; add the key of the taint",
        ),
        Rule(
            "!has(self.tolerationSeconds) || has(self.effect) && self.effect == 'NoExecute'",
            "only effect: NoExecute has tolerationSeconds; set it or remove the seconds",
            None,
            ".tolerationSeconds",
        ),
    ),
    pod.PodMetadata: (
        _keys_are_qualified_names("labels"),
        _keys_outside("labels", RESERVED_LABEL_DOMAINS),
        _keys_are_qualified_names("annotations"),
        _keys_outside("annotations", RESERVED_LABEL_DOMAINS[:1]),
    ),
    job.Target: (_exactly_one("atMost", "atLeast", way_out="atMost for errors, atLeast for accuracies"),),
    job.Recipe: (_at_most_one("steps", "epochs", way_out="remove one"),),
    job.Script: (_exactly_one("configMap", "path", way_out="configMap for a few files, path for code in the image"),),
    job.Checkpoint: (_at_most_one("everySeconds", "everySteps", "auto", way_out="remove the others"),),
    job.Teacher: (
        Rule(
            "has(self.artifactUri) == has(self.digest)",
            "artifactUri and digest go together; add the other, or leave both out for the job's own model",
            _present("artifactUri", "digest"),
        ),
    ),
    job.Variant: (
        _exactly_one("quantize", "distill", way_out="make one variant for each"),
        Rule("self.name != 'default'", "default is the model as trained; choose another name", field=".name"),
    ),
    job.Output: (
        Rule(
            "!has(self.serve) || self.serve == 'default' || "
            "has(self.optimize) && self.optimize.exists(v, v.name == self.serve)",
            "default or the name of a variant in optimize is wanted",
            _quoted("self.serve"),
            ".serve",
        ),
    ),
    job.JobSpec: (
        _exactly_one("recipe", "script", "command", way_out="the smallest is recipe: {name: mlp}"),
        Rule(
            "!has(self.recipe) || !has(self.framework) || self.framework == 'pytorch'",
            "recipes train with pytorch; remove it, or use script or command",
            field=".framework",
            reason="FieldValueForbidden",
        ),
        *(
            Rule(
                f"!has(self.{field}) || has(self.script) || has(self.command)",
                f"only script and command take {field}; {way_out}",
                field=f".{field}",
                reason="FieldValueForbidden",
            )
            for field, way_out in (("args", "a recipe takes recipe.parameters"), ("workingDir", "remove it"))
        ),
        Rule(
            "!has(self.volumeMounts) || "
            "self.volumeMounts.all(m, has(self.volumes) && self.volumes.exists(v, v.name == m.name))",
            "each volumeMount must name one of volumes; add the volume or correct the name",
            field=".volumeMounts",
        ),
        Rule(
            f"[{_PROCESSES}].all(p, p == 0 || (type(self.parallelism.data) == int"
            f" ? int(self.parallelism.data) * {_OTHERS} == self.nodes * p : self.nodes * p % ({_OTHERS}) == 0))",
            "data × shard × tensor × pipeline must be nodes × processesPerNode; data: auto takes what the others leave",
            field=".parallelism",
        ),
        _keys_are_qualified_names("nodeSelector"),
        Rule(
            _SAME.format("managedBy"),
            "managedBy never changes; make a new job",
            reason="FieldValueForbidden",
        ),
    ),
    service.LabelSelector: (_keys_are_qualified_names("matchLabels"),),
    service.FromJobs: (
        Rule(
            "(self.pick == 'best') == has(self.best)",
            "pick: best and best: {metric: …, goal: …} go together; add the other or remove both",
            _quoted("self.pick"),
            ".pick",
        ),
    ),
    service.ArtifactSource: (
        Rule("!self.uri.split('/').exists(p, p == '..')", "a path without .. is wanted", _quoted("self.uri"), ".uri"),
    ),
    service.ModelSource: (
        _exactly_one("fromJob", "fromJobs", "artifact", way_out="the smallest is fromJob: {name: my-job}"),
        Rule(
            _SAME.format("name"),
            "clients call the model by its name, it never changes; make a new service",
            reason="FieldValueForbidden",
        ),
    ),
    service.Server: (_keys_are_qualified_names("nodeSelector"),),
    service.EvaluationData: (
        Rule(
            "!self.uri.startsWith('dataset://')",
            "the pod that evaluates has no data sets of the trainer image; put the samples at s3:// or pvc://",
            _quoted("self.uri"),
            ".uri",
        ),
    ),
    service.AccuracyGate: (
        Rule(
            "has(self.atMost) || has(self.atLeast) || has(self.maxRelativeDrop)",
            "a limit is wanted: add atMost, atLeast or maxRelativeDrop",
            _quoted("self.metric"),
        ),
    ),
    service.Route: (
        Rule(
            "!has(self.grpcHostnames) || !self.grpcHostnames.exists(h, h in self.hostnames)",
            "hostnames carry gRPC already; remove it from one of the two lists",
            _quoted("self.grpcHostnames.filter(h, h in self.hostnames)[0]"),
            ".grpcHostnames",
        ),
    ),
    service.Rollout: (
        Rule(
            "!has(self.steps) || self.steps.isSorted() && self.steps.all(s, self.steps.exists_one(t, t == s))",
            "rising shares are wanted, such as [5, 25, 50]",
            None,
            ".steps",
        ),
        Rule(
            "!has(self.steps) || self.steps.size() * self.intervalSeconds <= self.deadlineSeconds",
            "all steps of intervalSeconds take longer than this; raise it or shorten them",
            None,
            ".deadlineSeconds",
        ),
    ),
    service.ServiceSpec: (
        Rule(
            "!has(self.rollout) || !has(self.rollout.strategy) || self.rollout.strategy != 'canary' || has(self.route)",
            "canary needs a route that splits traffic; add spec.route or use blueGreen",
            field=".rollout.strategy",
        ),
        Rule(
            "!has(self.rollout) || !has(self.rollout.strategy) || self.rollout.strategy != 'recreate' || "
            "!has(self.gates) || (!has(self.gates.evaluation) && !has(self.gates.change))",
            "recreate stops stable first, so no candidate can be asked beside it; remove gates.evaluation and "
            "gates.change, or use blueGreen",
            field=".rollout.strategy",
        ),
    ),
}

_NAME = Rule(
    "self.metadata.name.size() <= 50 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    "metadata.name must have at most 50 of a-z, 0-9 and -, begin with a letter and end with a letter or digit; "
    "choose another name",
    _quoted("self.metadata.name"),
)
_NO_REVISION_NAME = Rule(
    "!self.metadata.name.matches('-r[0-9]+$')",
    "metadata.name must not end in -r and a number, revisions are named so; choose another name",
    _quoted("self.metadata.name"),
)
_STARTED = "oldSelf.?status.?startTime.hasValue()"
_FINISHED = "oldSelf.?status.?finished.hasValue()"
_SUSPENDED = "oldSelf.spec.?suspend.orValue(false)"


def at_root(kind: type[Model]) -> tuple[Rule, ...]:
    """Rules of the whole object: they see its name, and in `oldSelf.status` its past."""
    return (_NAME, *_frozen()) if kind is job.JobSpec else (_NAME, _NO_REVISION_NAME)


def _frozen() -> Iterator[Rule]:
    """When a field of a job may change. On /scale too, since root rules run there as well."""
    yield _unchanged(WORK, f"!({_STARTED} || {_FINISHED})", "frozen once the job has started; make a new job")
    yield _unchanged(
        PLACEMENT,
        f"!{_FINISHED} && (!{_STARTED} || {_SUSPENDED})",
        "frozen while the job runs; set spec.suspend: true first, or make a new job",
    )
    yield _unchanged(UNTIL_FINISHED, f"!{_FINISHED}", "frozen once the job has finished; make a new job")


def _unchanged(fields: tuple[str, ...], free: str, asked: str) -> Rule:
    """One rule for many fields, and not one for each with its own path: that would take a tenth of the CRD's size."""

    def same(*fields: str) -> str:
        # dyn in lists: the API server cannot estimate what comparing two optional fields costs, it refuses such a rule.
        new, old = ([f"dyn({spec}.?{field})" for field in fields] for spec in ("self.spec", "oldSelf.spec"))
        return f"[{', '.join(new)}] == [{', '.join(old)}]"

    changed = " + ".join(f"({same(field)} ? '' : ' {field}')" for field in fields)
    return Rule(f"{free} || {same(*fields)}", asked, f"'[' + {changed} + ' ]'", ".spec", "FieldValueForbidden")


def not_served(row: NotYet, value_type: str) -> Rule:
    """The rule of one row of `not_yet`, on the field itself. `value_type` is its type in the schema."""
    if not row.served:
        empty = "self.size() == 0" if value_type == "array" else "false"
        return Rule(empty, row.message(), reason="FieldValueForbidden")
    if value_type == "array":
        return Rule(f"self == {_literal(row.served[0])}", row.message())
    return Rule(f"self in {_literal(row.served)}", row.message())
