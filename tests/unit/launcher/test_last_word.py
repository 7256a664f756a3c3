import json

from hypothesis import given, settings
from hypothesis import strategies as st

from bigmodel.api.model import Metric
from bigmodel.api.progress import (
    LAST_WORD_BYTES,
    ArtifactSummary,
    ArtifactVariant,
    CheckpointSummary,
    ErrorReport,
    Incident,
    LastWord,
    Progress,
    RunPhase,
)
from bigmodel.launcher.last_word import last_word, written
from bigmodel.launcher.message import Exit

CHECKPOINT = CheckpointSummary(step=5, uri="s3://a/" + "c" * 200, digest="sha256:" + "1" * 64, saved_at=7.0)
METRICS = st.lists(
    st.builds(Metric, name=st.just("val_mse"), value=st.text("0123456789.", min_size=1, max_size=32)), max_size=8
)
LONG = st.text(min_size=1, max_size=50).map(lambda text: (text * 4096)[:4096])
VARIANTS = st.lists(
    st.builds(
        ArtifactVariant,
        name=st.just("a" * 40),
        size_bytes=st.just(10**12),
        metrics=METRICS,
        message=st.text(min_size=1, max_size=256),
    ),
    max_size=8,
)
ARTIFACTS = st.builds(
    ArtifactSummary,
    uri=st.text("abc/", min_size=1, max_size=1024),
    digest=st.just("sha256:" + "0" * 64),
    size_bytes=st.just(1),
    variant=st.just("default"),
    metrics=METRICS,
    variants=VARIANTS,
)
INCIDENTS = st.builds(
    Incident,
    at=st.just(1.0),
    generation=st.integers(1, 99),
    cause=st.just("ProgramError"),
    rank=st.just(1),
    message=LONG,
)


def progress(incidents: list[Incident]) -> Progress:
    return Progress(
        uid="u" * 36,
        attempt=1,
        generation=3,
        phase=RunPhase.TRAINING,
        step=7,
        total_steps=9,
        updated_at=1.0,
        incidents=incidents,
    )


@settings(max_examples=40, deadline=None)
@given(
    message=st.none() | LONG,
    traceback=st.none() | LONG,
    error=st.none() | LONG,
    artifact=st.none() | ARTIFACTS,
    incidents=st.lists(INCIDENTS, max_size=10),
)
def test_it_always_fits_and_always_says_how_it_ended(
    message: str | None,
    traceback: str | None,
    error: str | None,
    artifact: ArtifactSummary | None,
    incidents: list[Incident],
) -> None:
    report = ErrorReport(rank=1, index=1, exit_code=5, message=error, traceback=traceback) if error else None
    outcome = Exit(code=5, reason="CrashLoop", message=message, error=report, artifact=artifact)
    word = last_word(outcome, uid="u" * 36, attempt=1, generation=3, index=1, progress=progress(incidents))
    line = written(word)
    assert len(line) <= LAST_WORD_BYTES
    read = LastWord.model_validate_json(line)
    assert (read.exit_code, read.reason, read.step, read.index) == (5, "CrashLoop", 7, 1)
    if artifact is not None:
        assert read.artifact is not None
        assert (read.artifact.uri, read.artifact.digest) == (artifact.uri, artifact.digest)


def test_the_end_of_the_traceback_survives_longest() -> None:
    frames = [f'  File "train.py", line {n}, in step\n' for n in range(200)]
    error = ErrorReport(
        rank=1, index=1, exit_code=1, message="ValueError: nan", traceback="".join(frames)[:4000] + "END"
    )
    incidents = [Incident(at=1.0, generation=g, cause="Hang", message="x" * 900, log="y\n" * 900) for g in range(1, 11)]
    outcome = Exit(code=1, reason="CrashLoop", message="rank 1 broke", error=error)
    word = last_word(outcome, uid="u", attempt=1, generation=3, index=1, progress=progress(incidents))
    read = json.loads(written(word))
    assert read["error"]["traceback"].endswith("END")
    assert len(read["error"]["traceback"]) > 700
    assert read["message"] == "rank 1 broke"
    (incident,) = read["progress"]["incidents"]
    assert incident["generation"] == 10
    assert len(incident["log"]) > 900


def test_the_checkpoint_is_told_whatever_else_is_cut() -> None:
    """A suspended job learns from it what was saved (A29)."""
    error = ErrorReport(rank=1, index=1, exit_code=1, message="m" * 4000, traceback="t" * 4000)
    outcome = Exit(code=143, reason="Terminated", message="n" * 4000, error=error, checkpoint=CHECKPOINT)
    incidents = [Incident(at=1.0, generation=1, cause="Hang", message="x" * 2000, log="y" * 2000)]
    word = last_word(outcome, uid="u", attempt=1, generation=3, index=1, progress=progress(incidents))
    assert LastWord.model_validate_json(written(word)).checkpoint == CHECKPOINT


def test_the_checkpoint_is_told_by_whoever_knows_it() -> None:
    """Every exit: also that of a pod which nobody told the end."""
    known = progress([]).model_copy(update={"checkpoint": CHECKPOINT})
    word = last_word(Exit(code=78), uid="u", attempt=1, generation=3, index=1, progress=known)
    assert word.checkpoint == CHECKPOINT
