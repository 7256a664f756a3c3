"""What the chart gives a cluster: rights, pods, settings, the store for trials."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigmodel.api.store import Store
from bigmodel.controller.decision import NODE, ResourceKind
from bigmodel.controller.job.reconciler import QUEUED_CHILDREN, QUEUED_READS, JobReconciler
from bigmodel.controller.kube.events import EVENT
from bigmodel.controller.kube.lease import LEASE
from bigmodel.controller.main import LEASE_NAME
from bigmodel.controller.service.reconciler import ServiceReconciler
from bigmodel.controller.settings import Settings, read_settings
from tests.unit.chart.conftest import CHART, NAMESPACE, HelmRefused, Object, Render

EMBEDDED = "store: {embedded: {enabled: true}, secretNamespaces: [demo, ml]}"
NO_NODES = "clusterReads: false"
WATCHED = "watchNamespaces: [ml, demo]"
EVERYTHING = """
registry: registry.example.com/team/
tag: "7"
images: {trainer: "registry.example.com/trainer@sha256:00"}
imagePullPolicy: Always
imagePullSecrets: [login]
replicas: 3
nodeSelector: {disk: ssd}
tolerations: [{key: a, operator: Exists}]
priorityClassName: high
watchNamespaces: [ml]
clusterReads: false
clusterDomain: cluster.example.com
leaderElection: {leaseSeconds: 15, renewSeconds: 2}
triton: {minimumVersion: "24.10"}
kueue: {enabled: true}
store:
  embedded: {enabled: true, persistence: {enabled: true, size: 5Gi, storageClassName: fast}}
  secretNamespaces: [ml]
metrics: {fromNamespaces: {monitoring: "yes"}}
crds: {install: false}
"""
VALUES = {"default": "", "embedded store": EMBEDDED, "watched namespaces": WATCHED, "everything": EVERYTHING}
ALL_VALUES = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [item for item in objects if item["kind"] in kinds]


def named(objects: list[Object], kind: str, name: str, namespace: str | None = NAMESPACE) -> Object:
    (found,) = (
        item
        for item in of_kind(objects, kind)
        if item["metadata"]["name"] == name and item["metadata"].get("namespace") == namespace
    )
    return found


def operator_rights(objects: list[Object]) -> Iterator[tuple[str | None, Object]]:
    """Every rule bound to the operator, with the namespace it holds in, None for all."""
    for binding in of_kind(objects, "ClusterRoleBinding", "RoleBinding"):
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "bigmodel-operator", "namespace": NAMESPACE}]
        namespace = binding["metadata"].get("namespace")
        role = named(objects, binding["roleRef"]["kind"], binding["roleRef"]["name"], namespace)
        for rule in role["rules"]:
            yield namespace, rule


def right(kind: ResourceKind) -> tuple[str, str]:
    """API group and resource, as a rule names them."""
    return kind.api_version.rpartition("/")[0], kind.plural


def test_lint_has_nothing_to_say(helm: Callable[..., str]) -> None:
    assert "1 chart(s) linted, 0 chart(s) failed" in helm("lint", "--strict", str(CHART))


class TestRights:
    @ALL_VALUES
    def test_nothing_on_secrets_exec_rights_or_webhooks_and_no_wildcard(self, render: Render, values: str) -> None:
        for role in of_kind(render(values), "ClusterRole", "Role"):
            for rule in role["rules"]:
                assert not set(rule["apiGroups"]) & {"*", "rbac.authorization.k8s.io", "admissionregistration.k8s.io"}
                assert not set(rule["verbs"]) & {"*", "escalate", "bind", "impersonate"}
                for resource in rule["resources"]:
                    assert "*" not in resource
                    assert resource not in ("secrets", "configmaps", "serviceaccounts", "serviceaccounts/token")
                    assert resource.partition("/")[2] in ("", "status", "finalizers", "scale")

    def test_without_watch_namespaces_the_rights_hold_everywhere_but_the_lease(self, render: Render) -> None:
        rights = list(operator_rights(render("")))
        assert {resource for namespace, rule in rights if namespace for resource in rule["resources"]} == {"leases"}
        assert {namespace for namespace, _ in rights} == {None, NAMESPACE}

    def test_with_watch_namespaces_nothing_holds_everywhere(self, render: Render) -> None:
        assert {namespace for namespace, _ in operator_rights(render(WATCHED))} == {NAMESPACE, "ml", "demo"}

    def test_each_watched_namespace_has_the_rights_that_hold_everywhere_otherwise(self, render: Render) -> None:
        everywhere = [rule for namespace, rule in operator_rights(render(NO_NODES)) if namespace is None]
        assert [rule for namespace, rule in operator_rights(render(WATCHED)) if namespace == "ml"] == everywhere

    def test_the_operator_may_do_what_its_rules_need_and_nothing_else(self, render: Render) -> None:
        granted: dict[tuple[str, str], set[str]] = {}
        for namespace, rule in operator_rights(render("")):
            for group, resource in product(rule["apiGroups"], rule["resources"]):
                if namespace is None:
                    granted.setdefault((group, resource), set()).update(rule["verbs"])
        follow, act = {"list", "watch"}, {"get", "create", "patch", "delete"}
        needed: dict[tuple[str, str], set[str]] = {
            (EVENT.api_version.partition("/")[0], EVENT.plural): {"create", "list"},
            right(NODE): {"list"},
        }
        for reconciler in (JobReconciler, ServiceReconciler):
            for kind in reconciler.children:
                needed.setdefault(right(kind), set()).update(follow | act)
            for kind in reconciler.related:
                needed.setdefault(right(kind), set()).update(follow)
            group, resource = right(reconciler.kind)
            needed[group, resource] = follow | {"get"} | ({"delete"} if reconciler is JobReconciler else set())
            needed[group, f"{resource}/status"] = {"patch", "update"}
            needed[group, f"{resource}/finalizers"] = {"update"}  # the children's blockOwnerDeletion
        assert granted == needed

    def test_with_kueue_it_may_queue_jobs_and_read_what_a_queue_gives_to_pods(self, render: Render) -> None:
        """A32: rights for the queue label, and none without the switch."""

        def granted(values: str) -> dict[tuple[str | None, str, str], list[str]]:
            return {
                (namespace, group, resource): rule["verbs"]
                for namespace, rule in operator_rights(render(values))
                for group, resource in product(rule["apiGroups"], rule["resources"])
            }

        for watched, namespace in (("watchNamespaces: []", None), ("watchNamespaces: [ml]", "ml")):
            before, after = granted(watched), granted(f"{watched}\nkueue: {{enabled: true}}")
            assert {key: verbs for key, verbs in after.items() if key not in before} == {
                **{
                    (namespace, *right(kind)): ["get", "list", "watch", "create", "patch", "delete"]
                    for kind in QUEUED_CHILDREN
                },
                (namespace, "kueue.x-k8s.io", "workloads/status"): ["patch"],
                **{(None, *right(kind)): ["get"] for kind in QUEUED_READS},
            }

    def test_nodes_are_read_only_where_the_administrator_lets(self, render: Render) -> None:
        for values in (NO_NODES, WATCHED):
            rights = operator_rights(render(values))
            assert [rule for _, rule in rights if NODE.plural in rule["resources"]] == []

    def test_the_lease_the_controller_writes_is_the_one_it_may_write(self, render: Render) -> None:
        rules = [rule for _, rule in operator_rights(render("")) if rule["resources"] == [LEASE.plural]]
        assert [(rule.get("resourceNames"), rule["verbs"]) for rule in rules] == [
            (None, ["create"]),
            ([LEASE_NAME], ["get", "update"]),
        ]

    @pytest.mark.parametrize(
        ("role", "target", "verbs"),
        [
            ("view", ["view", "edit", "admin"], {"get", "list", "watch"}),
            (
                "edit",
                ["edit", "admin"],
                {"create", "update", "patch", "delete", "deletecollection", "get"},
            ),
        ],
    )
    def test_users_roles_learn_the_two_resources(
        self, render: Render, role: str, target: list[str], verbs: set[str]
    ) -> None:
        found = named(render(""), "ClusterRole", f"bigmodel-operator-{role}", None)
        labels = found["metadata"]["labels"]
        assert [name.rpartition("-to-")[2] for name in labels if "aggregate" in name] == target
        assert {group for rule in found["rules"] for group in rule["apiGroups"]} == {"bigmodel.io"}
        assert {verb for rule in found["rules"] for verb in rule["verbs"]} == verbs


class TestPods:
    @ALL_VALUES
    def test_every_pod_passes_pod_security_restricted_with_a_read_only_root(self, render: Render, values: str) -> None:
        for deployment in of_kind(render(values), "Deployment"):
            pod = deployment["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
            for container in pod["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }
                assert {"livenessProbe", "readinessProbe"} <= container.keys()
                assert container["resources"]["limits"]["memory"]
            assert {next(iter(volume.keys() - {"name"})) for volume in pod["volumes"]} <= {
                "configMap",
                "emptyDir",
                "persistentVolumeClaim",
            }

    @ALL_VALUES
    def test_every_selector_finds_its_pods_and_no_others(self, render: Render, values: str) -> None:
        objects = render(values)
        pods = [item["spec"]["template"]["metadata"]["labels"] for item in of_kind(objects, "Deployment")]
        selectors = [
            *(
                item["spec"]["selector"]["matchLabels"]
                for item in of_kind(objects, "Deployment", "PodDisruptionBudget")
            ),
            *(item["spec"]["selector"] for item in of_kind(objects, "Service")),
            *(item["spec"]["podSelector"]["matchLabels"] for item in of_kind(objects, "NetworkPolicy")),
        ]
        assert selectors
        for selector in selectors:
            assert len([labels for labels in pods if selector.items() <= labels.items()]) == 1

    def test_a_changed_setting_restarts_the_operator(self, render: Render) -> None:
        def annotation(values: str) -> str:
            template = named(render(values), "Deployment", "bigmodel-operator")["spec"]["template"]
            return str(template["metadata"]["annotations"]["bigmodel.io/settings"])

        assert annotation("") == annotation("replicas: 3")
        assert annotation("") != annotation("triton: {minimumVersion: '24.10'}")

    def test_only_the_named_namespaces_scrape(self, render: Render) -> None:
        policy = named(render(EVERYTHING), "NetworkPolicy", "bigmodel-operator")
        assert policy["spec"]["ingress"] == [
            {
                "ports": [{"port": "metrics"}],
                "from": [{"namespaceSelector": {"matchLabels": {"monitoring": "yes"}}}],
            }
        ]


def settings(render: Render, values: str, folder: Path) -> Settings:
    """As the operator would read them."""
    file = folder / "settings.yaml"
    file.write_text(named(render(values), "ConfigMap", "bigmodel-operator")["data"]["settings.yaml"])
    return read_settings(file)


class TestSettings:
    @ALL_VALUES
    def test_the_operator_can_read_them(self, render: Render, values: str, tmp_path: Path) -> None:
        found = settings(render, values, tmp_path)
        container = named(render(values), "Deployment", "bigmodel-operator")["spec"]["template"]["spec"]["containers"][
            0
        ]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {"metrics": found.metrics_port, "health": found.health_port}

    def test_every_setting_is_rendered(self, render: Render) -> None:
        rendered = yaml.safe_load(named(render(EMBEDDED), "ConfigMap", "bigmodel-operator")["data"]["settings.yaml"])
        assert rendered.keys() == {field.alias for field in Settings.model_fields.values()}

    def test_defaults_are_the_controllers(self, render: Render, tmp_path: Path) -> None:
        found = settings(render, "", tmp_path)
        assert found == Settings(images=found.images)
        assert found.images.trainer == "ghcr.io/bigmodel/trainer:0.1.0"

    def test_everything_an_administrator_says_arrives(self, render: Render, tmp_path: Path) -> None:
        found = settings(render, EVERYTHING, tmp_path)
        assert found.images.trainer == "registry.example.com/trainer@sha256:00"
        assert found.images.server == "registry.example.com/team/server:7"
        assert found.image_pull_policy == "Always"
        assert found.image_pull_secrets == ("login",)
        assert found.watch_namespaces == ("ml",)
        assert found.leader_election.lease_seconds == 15
        assert found.triton.minimum_version == "24.10"

    @pytest.mark.parametrize(
        "store",
        [
            {
                "s3": {
                    "bucket": "models",
                    "prefix": "a/b",
                    "endpoint": "http://s3:9000",
                    "region": "eu",
                    "secretName": "l",
                }
            },
            {"persistentVolumeClaim": {"claimName": "models", "path": "a/b"}},
        ],
        ids=["s3", "claim"],
    )
    def test_a_store_is_written_as_in_a_job(self, render: Render, tmp_path: Path, store: dict[str, Any]) -> None:
        assert settings(render, json.dumps({"store": store}), tmp_path).store == Store.model_validate(store)


class TestStore:
    def test_the_default_store_is_the_embedded_service(self, render: Render, tmp_path: Path) -> None:
        store = settings(render, EMBEDDED, tmp_path).store
        assert store is not None
        assert store.s3 is not None
        assert store.s3.endpoint == "http://bigmodel-store.bigmodel-system.svc.cluster.local:8333"
        service = named(render(EMBEDDED), "Service", "bigmodel-store")
        assert [port["port"] for port in service["spec"]["ports"]] == [8333]
        assert store.s3.secret_name == "bigmodel-store"

    def test_the_login_is_the_same_in_every_namespace_that_asks(self, render: Render) -> None:
        secrets = of_kind(render(EMBEDDED), "Secret")
        assert [secret["metadata"]["namespace"] for secret in secrets] == [NAMESPACE, "demo", "ml"]
        assert {secret["metadata"]["name"] for secret in secrets} == {"bigmodel-store"}
        (data,) = {json.dumps(secret["data"], sort_keys=True) for secret in secrets}
        login = {key: base64.b64decode(value).decode() for key, value in json.loads(data).items()}
        assert re.fullmatch("[A-Z0-9]{20}", login["AWS_ACCESS_KEY_ID"])
        assert re.fullmatch("[A-Za-z0-9]{40}", login["AWS_SECRET_ACCESS_KEY"])

    def test_only_s3_is_reachable(self, render: Render) -> None:
        """SeaweedFS's master, volume and filer have no login."""
        (container,) = named(render(EMBEDDED), "Deployment", "bigmodel-store")["spec"]["template"]["spec"]["containers"]
        assert {"-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.ip.bind=0.0.0.0"} <= set(container["args"])
        policy = named(render(EMBEDDED), "NetworkPolicy", "bigmodel-store")
        assert policy["spec"]["ingress"] == [{"ports": [{"port": "s3"}]}]

    def test_a_persistent_store_outlives_the_release(self, render: Render) -> None:
        claim = named(render(EVERYTHING), "PersistentVolumeClaim", "bigmodel-store")
        assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
        pod = named(render(EVERYTHING), "Deployment", "bigmodel-store")["spec"]["template"]["spec"]
        assert {"name": "data", "persistentVolumeClaim": {"claimName": "bigmodel-store"}} in pod["volumes"]

    def test_without_it_there_is_no_secret(self, render: Render) -> None:
        assert of_kind(render(""), "Secret") == []


class TestCrds:
    def test_they_are_the_generated_ones_and_outlive_the_release(self, render: Render) -> None:
        rendered = of_kind(render(""), "CustomResourceDefinition")
        generated = [yaml.safe_load(file.read_text()) for file in sorted(CHART.parents[1].glob("crds/*.yaml"))]
        assert sorted(rendered, key=lambda item: str(item["metadata"]["name"])) == generated
        assert all(item["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for item in rendered)

    def test_somebody_else_may_install_them(self, render: Render) -> None:
        assert of_kind(render("crds: {install: false}"), "CustomResourceDefinition") == []


MISTAKES = {
    "a key misspelt": ("replica: 2", "additional properties 'replica' not allowed"),
    "a key misspelt deep inside": ("store: {embedded: {enable: true}}", "additional properties 'enable' not allowed"),
    "no replica": ("replicas: 0", "minimum: got 0, want 1"),
    "an unknown image": ("images: {trainers: a}", "additional properties 'trainers' not allowed"),
    "a store without bucket": ("store: {s3: {prefix: a}}", "missing property 'bucket'"),
    "two stores": (
        "store: {s3: {bucket: models}, embedded: {enabled: true}}",
        "store has s3 and embedded: keep one of s3, persistentVolumeClaim and embedded.enabled",
    ),
    "a version without quotes": ("triton: {minimumVersion: 24.10}", "got number, want string"),
    "a namespace with capitals": ("watchNamespaces: [ML]", "does not match pattern"),
}


@pytest.mark.parametrize(("values", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_values_is_refused(render: Render, values: str, says: str) -> None:
    with pytest.raises(HelmRefused, match=re.escape(says)):
        render(values)


def test_every_value_is_described_in_the_schema() -> None:
    """A default nobody checks, or a key in the schema that has none, is a leftover."""
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(values: dict[str, Any], node: dict[str, Any], path: str) -> None:
        properties = node["properties"]
        assert values.keys() == properties.keys() - {"global"}, path
        assert node["additionalProperties"] is False, path
        for name, value in values.items():
            if value and isinstance(value, dict) and "properties" in properties[name]:
                compare(value, properties[name], f"{path}.{name}")

    compare(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_notes_name_the_next_command(helm: Callable[..., str], values: str) -> None:
    notes = helm(
        *("install", "bigmodel", str(CHART), "--namespace", NAMESPACE, "--dry-run=client", "--values", "-"),
        stdin=values or "{}",
    ).partition("NOTES:")[2]
    namespace = "ml" if values in (EVERYTHING, WATCHED) else "demo" if values == EMBEDDED else "default"
    assert f"kubectl apply --namespace {namespace} -f - <<'END'" in notes
