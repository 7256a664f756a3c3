"""Errands: the one-off pods of a revision, `<svc>-r<n>-inspect` and `-evaluate`, and what became of them. Pure.

An errand carries no revision label: no Service may ever select it. Exit code 0 is an answer, good or bad; any other is
the surroundings' fault, and the kubelet tries again until the errand's time is over. Then the attempt is given up, and
tried again with the attempt's own back-off.
"""

import hashlib
import json
from typing import Any

from bigmodel.api.evaluation import EvaluationRun
from bigmodel.controller.service import messages
from bigmodel.controller.service.diagnosis import Trouble, not_started, unplaced
from bigmodel.controller.service.messages import Reason
from bigmodel.controller.service.observe import ObservedErrand
from bigmodel.controller.service.revision import Record

INSPECT, EVALUATE = "inspect", "evaluate"
SECONDS = {INSPECT: 300, EVALUATE: 900}  # what the kubelet gives each


def question_hash(question: EvaluationRun | None) -> str:
    """Tells an answer to this question from one to an earlier one; of `inspect`, which has only one, a word."""
    return hashlib.sha256(question.model_dump_json().encode()).hexdigest()[:12] if question is not None else "manifest"


def answer(errand: ObservedErrand | None) -> str | None:
    """What it found; None while it is at it, or failed."""
    if errand is None or errand.deleting or not errand.container.done or errand.container.ended is None:
        return None
    return errand.container.ended.message


def trouble(record: Record, errand: ObservedErrand | None, namespace: str) -> Trouble | None:
    """What holds it up, or ended it without an answer."""
    if errand is None or errand.deleting or errand.container.done:
        return None
    ended = errand.container.ended
    said = messages.quote(_said(ended.message)) if ended is not None else ""
    if errand.over:
        text = said or messages.quote(errand.message)
        return Trouble(Reason.ERRAND_FAILED, messages.errand_failed(errand.name, errand.task, text), "Aborted")
    found = unplaced(record, errand.name, errand.unschedulable)
    found = found or not_started(record, errand.name, (errand.container,), namespace)
    if found is not None or ended is None:
        return found
    return Trouble(Reason.ERRAND_FAILED, messages.errand_held_up(errand.name, errand.task, said))


def _said(text: str) -> str:
    """What one of our own programs says in its termination message; else the end of its log, as it is."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text


def pod(record: Record, task: str, metadata: dict[str, Any], env: dict[str, str], claim: str | None) -> dict[str, Any]:
    """The manifest, from the record's own pod template: the same images, login and identity, whatever the chart says
    now.

    `metadata`: of the pod; `env`: added; `claim`: a PersistentVolumeClaim to mount at /data, None for none. It asks for
    no GPU and may run on any node that the template tolerates.
    """
    template = record.data.pod_template["spec"]
    fetch = template["initContainers"][0]
    mounts = [mount for mount in fetch["volumeMounts"] if mount["name"] != "model"]
    volumes = [volume for volume in template["volumes"] if volume["name"] in {mount["name"] for mount in mounts}]
    if claim is not None:
        mounts.append({"name": "data", "mountPath": "/data", "readOnly": True})
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
    container = {
        **fetch,
        "name": task,
        "command": ["python", "-m", f"bigmodel.server.{task}"],
        "env": [*fetch["env"], *({"name": name, "value": value} for name, value in env.items())],
        "volumeMounts": mounts,
    }
    kept = ("automountServiceAccountToken", "enableServiceLinks", "serviceAccountName", "securityContext")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            **{name: template[name] for name in (*kept, "imagePullSecrets", "tolerations") if name in template},
            "restartPolicy": "OnFailure",
            "activeDeadlineSeconds": SECONDS[task],
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": volumes,
        },
    }
