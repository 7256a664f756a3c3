"""What the `evaluate` pod is told, and what it says: its candidate beside stable, on the same inputs.

Read by the controller from a termination message: bounded, numbers as text.
"""

from typing import Annotated

from pydantic import Field

from bigmodel.api.model import LongText, MetricName, Model, Text


class Contender(Model):
    """One revision, where it answers."""

    revision: int
    address: Text  # host:port of Triton's HTTP


class EvaluationRun(Model):
    """`data` and `metric` None: no targets, only the share of changed answers, on the artefact's golden inputs."""

    candidate: Contender
    stable: Contender
    data: LongText | None = None  # s3://… or pvc://…
    metric: MetricName | None = None  # mse | mae | accuracy
    absolute: float | None = None  # an answer differs beyond absolute + relative·|b|; None: by the variant's precision
    relative: float | None = None
    max_batch_size: Annotated[int, Field(ge=1)]


class Scores(Model):
    candidate: Text
    stable: Text


class Change(Model):
    changed: Annotated[int, Field(ge=0)]
    largest: Text | None = None  # the largest shift, for people


class EvaluateResult(Model):
    """`reason` is one of the service's reasons; None where both were asked everything."""

    ok: bool
    reason: Text | None = None
    message: LongText
    samples: Annotated[int, Field(ge=0)] = 0
    scores: Scores | None = None
    change: Change | None = None
