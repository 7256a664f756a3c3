"""Names, labels, ports and environment variables that more than one process relies on. Pure functions.

An attempt is one gang of pods; an index is a pod's place in it; a replacement is the k-th successor of a lost pod; a
generation is one life of all ranks inside an attempt; a revision is one immutable candidate of a service.
"""

import base64
import hashlib

GROUP = "bigmodel.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "bigmodel-operator"

# Labels. `app.kubernetes.io/*` stand beside them on every child.
LABEL_JOB = f"{GROUP}/job"
LABEL_JOB_UID = f"{GROUP}/job-uid"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_INDEX = f"{GROUP}/index"
LABEL_ACTIVE = f"{GROUP}/active"
LABEL_WORKLOAD = f"{GROUP}/workload"  # on pods: the Kueue Workload whose quota they use
LABEL_SERVICE = f"{GROUP}/service"
LABEL_REVISION = f"{GROUP}/revision"
ANNOTATION_HASH = f"{GROUP}/applied-hash"
ANNOTATION_POD_SET = f"{GROUP}/pod-set"  # on a Kueue Workload: fingerprint of what it asks for

# Ports of our own processes; Triton's are its defaults.
PORT_PROGRESS = 8270
PORT_VERDICT = 8271
PORT_COORDINATOR = 8272
PORT_MASTER = 29500  # MASTER_PORT of a `command` job, torch's own default; TensorFlow's workers listen on it too
PORT_TRITON_HTTP = 8000
PORT_TRITON_GRPC = 8001
PORT_TRITON_METRICS = 8002

# Environment of our own processes.
ENV_TRAINING_RUN = "BIGMODEL_RUN"  # TrainingRun as JSON
ENV_SERVING_RUN = "BIGMODEL_SERVE"  # ServingRun as JSON
ENV_TRITON_KEY = "BIGMODEL_TRITON_KEY"  # the pod's UID: opens Triton's other APIs to the verifier beside it
ENV_STORE = "BIGMODEL_STORE"  # StoreLocation as JSON, of the program that lists and collects artefacts
ENV_EVALUATION = "BIGMODEL_EVALUATE"  # EvaluationRun as JSON
ENV_INDEX = "BIGMODEL_INDEX"
ENV_INCARNATION = "BIGMODEL_INCARNATION"  # k of the k-th replacement, 0 for the first pod of an index
ENV_POD_IP = "BIGMODEL_POD_IP"
ENV_NODE = "BIGMODEL_NODE"
ENV_REPORT_SOCKET = "BIGMODEL_REPORT"  # path of the launcher's datagram socket; set by the launcher for each rank
ENV_GENERATION = "BIGMODEL_GENERATION"  # set by the launcher for each rank; goes back in every RankReport
ENV_NOTICE = "BIGMODEL_NOTICE"  # path of a file (a `Notice`) that appears when this rank is asked to save, or to leave
ENV_TERMINATION_LOG = "BIGMODEL_TERMINATION_LOG"  # where the last word goes; default below
TERMINATION_LOG = "/dev/termination-log"
SCRIPT_DIRECTORY = "/opt/bigmodel/script"  # where the files of spec.script.configMap are
DATASETS_DIRECTORY = "/opt/bigmodel/datasets"  # real data baked into the trainer image, no pickles


def short_uid(uid: str) -> str:
    """5 lower-case base32 characters of sha256(uid): tells children of a re-created object from its predecessor's."""
    return base64.b32encode(hashlib.sha256(uid.encode()).digest()).decode().lower()[:5]


def job_service(job: str, uid: str) -> str:
    """The headless Service of a job's pods. Not the job's own name: a BigModelService may carry that one."""
    return f"{job}-{short_uid(uid)}"


def pod_group(job: str, uid: str, attempt: int) -> str:
    return f"{job}-{short_uid(uid)}-a{attempt}"


def workload(job: str, uid: str, attempt: int) -> str:
    """Kueue's Workload, by the attempt that it was made for; it outlives that attempt."""
    return pod_group(job, uid, attempt)


def node_pod(job: str, uid: str, attempt: int, index: int, replacement: int = 0) -> str:
    """The pod of one node of the gang; its `replacement`-th successor has its own name: both can exist for a while."""
    successor = f"-r{replacement}" if replacement else ""
    return f"{pod_group(job, uid, attempt)}-{index}{successor}"


def pod_host_name(job: str, index: int) -> str:
    """The same for every replacement: a rank keeps its DNS name."""
    return f"{job}-{index}"


def coordinator_address(job: str, uid: str) -> str:
    return f"{pod_host_name(job, 0)}.{job_service(job, uid)}:{PORT_COORDINATOR}"


def gang_token(uid: str, attempt: int) -> str:
    """Keeps launchers of different gangs apart. Not a secret: the NetworkPolicy is the boundary."""
    return hashlib.sha256(f"{uid}/{attempt}".encode()).hexdigest()


def revision_name(service: str, revision: int) -> str:
    """The record, the Deployment and the Service of one revision."""
    return f"{service}-r{revision}"
