"""What Prometheus reads. Labels are kinds, verbs and outcomes, never names of objects."""

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody reads

RECONCILES = Counter(
    "bigmodel_reconciles",
    "Passes over one object, by how they ended: ok, refused, conflict, error.",
    ["kind", "outcome"],
)
RECONCILE_SECONDS = Histogram(
    "bigmodel_reconcile_seconds",
    "How long one pass took.",
    ["kind"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
QUEUE_DEPTH = Gauge("bigmodel_queue_depth", "Objects that wait for a worker.")
QUEUE_OLDEST_SECONDS = Gauge("bigmodel_queue_oldest_seconds", "How long the first of them has waited.")
API_REQUESTS = Counter("bigmodel_api_requests", "Requests to the API server; code 0 is no answer.", ["verb", "code"])
LEADER = Gauge("bigmodel_leader", "1 in the replica that acts.")
WATCHED_OBJECTS = Gauge("bigmodel_watched_objects", "Objects in memory.", ["kind"])
WATCH_AGE_SECONDS = Gauge(
    "bigmodel_watch_age_seconds", "Since the API server was last heard of about a kind.", ["kind"]
)
RELISTS = Gauge("bigmodel_relists", "Lists made because a watch fell too far behind.", ["kind"])
KOPF_RESTARTS = Counter("bigmodel_trigger_restarts", "Times the watch of the two custom kinds was started anew.")
