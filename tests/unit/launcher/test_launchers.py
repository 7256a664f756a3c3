"""Real launchers, real rank processes, real signals, on loopback. Times are printed (pytest -s), never asserted."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bigmodel.api.names import gang_token
from bigmodel.api.progress import RunPhase
from bigmodel.launcher.message import Announcement, Hello, decode, encode
from tests.unit.launcher.gang import LoopbackGang, a_rule, a_run

MakeGang = Callable[..., LoopbackGang]


def assert_no_overlap(gang: LoopbackGang) -> None:
    """No rank of a generation wrote anything after a rank of a later one started."""
    started: dict[int, float] = {}
    for entry in gang.diary("start"):
        started[entry["generation"]] = min(entry["at"], started.get(entry["generation"], entry["at"]))
    for entry in gang.diary():
        later = [at for generation, at in started.items() if generation > entry["generation"]]
        assert not later or entry["at"] <= min(later), f"{entry} after a later generation had begun"


def assert_gone(gang: LoopbackGang) -> None:
    """Every rank that ever started is gone."""
    alive = [e["pid"] for e in gang.diary("start") if os.path.exists(f"/proc/{e['pid']}")]
    assert not alive


def test_a_gang_trains_to_the_end(gang: MakeGang) -> None:
    it = gang(a_run(processes_per_node=2, args=["--epochs", "3"]), STEPS=5)
    pods = it.start()
    assert [pod.exit_code() for pod in pods] == [0, 0]
    starts = {e["rank"]: e for e in it.diary("start")}
    assert sorted(starts) == [0, 1, 2, 3]
    for rank, entry in starts.items():
        env = entry["env"]
        assert env["RANK"] == env["ROLE_RANK"] == str(rank)
        assert env["LOCAL_RANK"] == str(rank % 2)
        assert env["GROUP_RANK"] == env["NODE_RANK"] == str(rank // 2)
        assert env["WORLD_SIZE"] == "4"
        assert env["LOCAL_WORLD_SIZE"] == "2"
        assert env["MASTER_ADDR"] == "127.0.0.2"
        assert env["TORCHELASTIC_RUN_ID"] == f"{it.run.uid}-1-1"
        assert entry["argv"][1:] == ["--epochs", "3"]
    assert len(it.diary("end")) == 4
    for pod in pods:
        word = pod.last_word
        assert (word.exit_code, word.generation, word.index, word.error) == (0, 1, pod.index, None)
    assert pods[0].last_word.step == 5
    assert_gone(it)


def test_index_0_tells_how_far_training_is(gang: MakeGang) -> None:
    it = gang(a_run(), STEPS=10_000)
    pods = it.start()
    it.wait_for_step(20, generation=1)
    progress = it.wait_for("progress", lambda: pods[0].progress if pods[0].progress.steps_per_second else None)
    assert progress.phase is RunPhase.TRAINING
    assert progress.step > 0
    assert progress.total_steps == 1000
    assert progress.metrics[0].name == "loss"
    assert progress.first_step_at is not None
    assert 0 <= progress.updated_at - progress.first_step_at < 60
    assert pods[0].get("/healthz") == "ok\n"
    assert "steps.py" in pods[1].get("/v1/stacks")
    assert "bigmodel_training_generation 1\n" in pods[1].get("/metrics")
    with pytest.raises(OSError, match="404"):
        pods[1].get("/v1/progress")
    with pytest.raises(OSError, match="405"):
        pods[1].get("/v1/checkpoint")
    pods[1].get("/v1/checkpoint", method="POST")
    it.wait_for("both ranks were asked to save", lambda: len(it.diary("notice")) == 2)
    assert [e["notice"] for e in it.diary("notice")] == [{"request": 1, "leave": False}] * 2


def test_a_killed_rank_is_healed_in_place(gang: MakeGang) -> None:
    it = gang(a_run(nodes=3), STEPS=10_000)
    pods = it.start()
    it.wait_for_step(5, generation=1)
    for generation in (2, 3):
        killed_at = it.kill_rank(generation % 3)
        print(f"kill → step of all ranks: {it.wait_for_step(1, generation) - killed_at:.3f} s")
    progress = it.wait_for(
        "recovery noted", lambda: p if (p := pods[0].progress).incidents[-1].recovery_seconds else None
    )
    assert (progress.generation, progress.program_restarts) == (3, 2)
    assert [(i.generation, i.cause, i.rank, i.exit_code) for i in progress.incidents] == [
        (1, "ProgramError", 2, 137),
        (2, "ProgramError", 0, 137),
    ]
    assert progress.incidents[0].resumed_from_step >= 4
    assert_no_overlap(it)


DEATHS = {
    "an exception": ("1:1:3:raise=boom", {}, 1, "ValueError: boom"),
    "an exit code": ("1:1:3:exit=42", {}, 42, "line 5"),
    "a signal": ("1:1:3:segfault", {}, 139, "line 5"),
    "os._exit": ("1:1:3:_exit=7", {}, 7, "line 5"),
    "a rank that was not forked": ("1:1:3:exit=42", {"BIGMODEL_PRELOAD": 0}, 42, "line 5"),
    "a program that cannot even start": ("", {"BIGMODEL_PRELOAD": 0, "ENTRYPOINT": "nowhere.py"}, 1, "nowhere.py"),
}


@pytest.mark.parametrize(("behaviour", "environment", "code", "last"), DEATHS.values(), ids=DEATHS)
def test_the_last_lines_of_the_first_rank_to_die_are_kept(
    gang: MakeGang, behaviour: str, environment: dict, code: int, last: str
) -> None:
    """A18, C29: whatever it dies of, and all of it is in the container's own output too."""
    run = a_run(budgets={"max_restarts": 0}, program=environment.pop("ENTRYPOINT", "steps.py"))
    it = gang(run, BEHAVIOUR=behaviour, STEPS=10_000, SAY="line", **environment)
    pods = it.start()
    assert [pod.exit_code() for pod in pods] == [code] * 2
    (incident,) = pods[0].last_word.progress.incidents
    assert last in incident.log
    assert len(incident.log.splitlines()) <= 20
    assert len(incident.log.encode()) <= 2048
    if behaviour:
        assert incident.rank == 1
        assert incident.step >= 2
        assert [f"line {number}" for number in range(6)] == [
            line for line in pods[1].log.splitlines() if line.startswith("line ")
        ]


def test_a_rank_that_floods_fills_no_memory_and_holds_up_nobody(gang: MakeGang) -> None:
    it = gang(a_run(nodes=1, budgets={"max_restarts": 0}), STEPS=4, FLOOD_MIB=64)
    (pod,) = it.start()
    assert pod.exit_code() == 0
    assert pod.output.stat().st_size > 64 << 20
    assert max(e["launcher_mib"] for e in it.diary("flood")) < 150


@dataclass(frozen=True)
class Ending:
    """After `tries` generations, with that exit code everywhere. `rank` None: any. `traceback` None: there is none."""

    tries: int
    code: int
    reason: str
    rank: int | None
    message: str
    traceback: str | None


FAILURES = {
    "an exception beyond the budget": (
        {"max_restarts": 1},
        "1:*:*:raise=boom",
        Ending(2, 1, "MaxRestartsExceeded", rank=1, message="ValueError: boom", traceback="steps.py"),
    ),
    "the same death three times without a step between is a crash loop": (
        {"max_restarts": 9},
        "*:*:0:raise=no data",
        Ending(3, 1, "CrashLoop", rank=None, message="ValueError: no data", traceback="misbehave"),
    ),
    "a rule ends the job at once": (
        {"rules": [a_rule("FailJob", 42)]},
        "1:*:2:exit=42",
        Ending(1, 42, "FailJob", rank=1, message="rules[0]", traceback=None),
    ),
    "a segmentation fault leaves a traceback": (
        {"max_restarts": 0},
        "1:*:2:segfault",
        Ending(1, 139, "MaxRestartsExceeded", rank=1, message="SIGSEGV", traceback="misbehave"),
    ),
}


@pytest.mark.parametrize(("budgets", "behaviour", "want"), FAILURES.values(), ids=FAILURES)
def test_a_failing_program(gang: MakeGang, budgets: dict, behaviour: str, want: Ending) -> None:
    it = gang(a_run(budgets=budgets), BEHAVIOUR=behaviour, STEPS=10_000)
    pods = it.start()
    assert [pod.exit_code() for pod in pods] == [want.code] * 2
    assert {e["generation"] for e in it.diary("start")} == set(range(1, want.tries + 1))
    for pod in pods:
        word = pod.last_word
        assert (word.exit_code, word.reason) == (want.code, want.reason)
        assert want.rank in (None, word.error.rank)
        assert word.error.index == word.error.rank
        assert word.error.exit_code == want.code
        assert want.message in word.message
        if want.traceback:
            assert want.traceback in word.error.traceback
        else:
            assert word.error.traceback is None
    assert_no_overlap(it)
    assert_gone(it)


def test_a_lost_pod_is_waited_for_and_costs_no_budget(gang: MakeGang) -> None:
    it = gang(a_run(budgets={"max_restarts": 0}), STEPS=60)
    first, second = it.start()
    it.wait_for_step(5, generation=1)
    lost_at = time.time()
    second.kill()
    (successor,) = it.start(1, incarnation=1)
    print(f"pod lost → step of all ranks: {it.wait_for_step(1, 2) - lost_at:.3f} s")
    assert [first.exit_code(), successor.exit_code()] == [0, 0]
    word = first.last_word
    assert (word.generation, word.program_restarts) == (2, 0)
    assert [(i.cause, i.rank) for i in word.progress.incidents] == [("PodLost", None)]
    assert_no_overlap(it)


def test_index_0_is_replaced_and_its_successor_knows_what_was_spent(gang: MakeGang) -> None:
    """Its name still points to the dead pod: the members must hear of the successor from itself."""
    it = gang(a_run(nodes=3), STEPS=120)
    first, *others = it.start()
    it.wait_for_step(5, generation=1)
    it.kill_rank(1)
    it.wait_for_step(1, generation=2)
    lost_at = time.time()
    first.kill()
    (successor,) = it.start(0, incarnation=1)
    print(f"index 0 lost → step of all ranks: {it.wait_for_step(1, 3) - lost_at:.3f} s")
    assert [pod.exit_code() for pod in (successor, *others)] == [0, 0, 0]
    word = successor.last_word
    assert (word.generation, word.program_restarts) == (3, 1)
    assert {e["env"]["MASTER_ADDR"] for e in it.diary("start") if e["generation"] == 3} == {"127.0.1.2"}
    assert_no_overlap(it)


def test_a_replaced_member_that_still_lives_is_fenced(gang: MakeGang) -> None:
    it = gang(a_run(), STEPS=10_000)
    _, old = it.start()
    it.wait_for_step(5, generation=1)
    it.start(1, incarnation=1)
    assert old.exit_code() == 78
    assert old.last_word.reason == "Fenced"
    it.wait_for_step(6, generation=2)
    assert_no_overlap(it)


def test_a_replaced_coordinator_that_still_lives_is_fenced(gang: MakeGang) -> None:
    it = gang(a_run(), STEPS=10_000)
    old, _ = it.start()
    it.wait_for_step(5, generation=1)
    it.start(0, incarnation=1)
    assert old.exit_code() == 78
    it.wait_for_step(6, generation=2)
    assert_no_overlap(it)


def ask(gang: LoopbackGang, address: str, *messages: bytes) -> list[str]:
    """The types of what the launcher there answers before it hangs up."""
    with socket.create_connection((address, gang.coordinator_port), timeout=10) as connection:
        for message in messages:
            connection.sendall(message)
        connection.settimeout(10)
        with connection.makefile("rb") as lines:
            return [decode(line).type for line in lines]


def a_hello(**changes: object) -> bytes:
    run = a_run()
    values = {
        "token": gang_token(run.uid, 1),
        "index": 1,
        "incarnation": 0,
        "attempt": 1,
        "generation": 0,
        "processes": 1,
    }
    return encode(Hello(**(values | changes)))


STRANGERS = {
    "another gang": (a_hello(token=gang_token("another uid", 1)), ["refused"]),
    "an earlier attempt": (a_hello(attempt=0, token=gang_token(a_run().uid, 0)), ["fenced"]),
    "an index beyond the gang": (a_hello(index=2), ["refused"]),
    "noise": (b"GET / HTTP/1.1\r\n\r\n", []),
    "a line without an end": (b"x" * 70_000, []),
    "a message before hello": (b'{"type":"leaving"}\n', []),
}


def test_strangers_are_turned_away_and_training_goes_on(gang: MakeGang) -> None:
    it = gang(a_run(), STEPS=10_000)
    pods = it.start()
    it.wait_for_step(5, generation=1)
    for name, (line, want) in STRANGERS.items():
        assert ask(it, pods[0].ip, line) == want, name
    old = Announcement(token="of another gang", attempt=1, incarnation=9, address="127.0.0.9:1")
    assert ask(it, pods[1].ip, encode(old)) == []
    it.wait_for_step(it.diary("step")[-1]["step"] + 20, generation=1)
    assert pods[0].progress.generation == 1


def test_a_later_attempt_ends_this_one(gang: MakeGang) -> None:
    it = gang(a_run(), STEPS=10_000)
    pods = it.start()
    it.wait_for_step(5, generation=1)
    ask(it, pods[0].ip, a_hello(attempt=2, token=gang_token(it.run.uid, 2)))
    assert pods[0].exit_code() == 78


@pytest.mark.parametrize("how", ["the program loops", "SIGSTOP"])
def test_a_hang_is_noticed_and_its_suspect_named(gang: MakeGang, how: str) -> None:
    behaviour = "1:1:20:hang" if how == "the program loops" else ""
    it = gang(a_run(budgets={"hang_timeout_seconds": 2, "max_restarts": 0}), BEHAVIOUR=behaviour, STEPS=10_000)
    pods = it.start()
    hung_at = it.wait_for_step(19, generation=1)
    if how == "SIGSTOP":
        hung_at = it.kill_rank(1, signal.SIGSTOP)
    print(f"hang → step of all ranks, limit 2 s: {it.wait_for_step(1, 2) - hung_at:.3f} s")
    progress = pods[0].progress
    assert (progress.hang_restarts, progress.program_restarts) == (1, 0)
    incident = progress.incidents[0]
    assert (incident.cause, incident.rank) == ("Hang", 1)
    assert ("is stopped" if how == "SIGSTOP" else "the others wait for it") in incident.message
    assert "steps.py" in pods[0].log  # where the others were
    assert_no_overlap(it)


def test_a_hang_before_the_first_step_is_noticed(gang: MakeGang) -> None:
    """A21, C26: after startDeadlineSeconds, where a step has no limit yet."""
    budgets = {"hang_timeout_seconds": 2, "max_restarts": 0}
    it = gang(a_run(budgets=budgets, start_deadline_seconds=3), BEHAVIOUR="1:1:0:stall", STEPS=10_000)
    pods = it.start()
    it.wait_for_step(1, generation=2)
    (incident,) = pods[0].progress.incidents
    assert (incident.cause, incident.rank) == ("Hang", 1)
    assert "did not get to its first step" in incident.message
    assert "steps.py" in incident.message  # where it was
    assert pods[0].progress.hang_restarts == 1


def test_who_stays_behind_alone_ends_after_the_start_deadline(gang: MakeGang) -> None:
    """A21: a member that index 0 never came back for, and an index 0 that found nobody; by no fault of the program."""
    it = gang(a_run(start_deadline_seconds=2), STEPS=10_000)
    first, second = it.start()
    it.wait_for_step(2, generation=1)
    first.kill()
    assert (second.exit_code(), second.last_word.reason) == (75, "CoordinatorLost")
    (successor,) = it.start(0, incarnation=1)
    assert (successor.exit_code(), successor.last_word.reason) == (75, "MembersLost")


def test_hangs_have_a_budget_of_their_own(gang: MakeGang) -> None:
    it = gang(a_run(budgets={"hang_timeout_seconds": 2, "max_hang_restarts": 0}), BEHAVIOUR="1:*:3:hang", STEPS=10_000)
    pods = it.start()
    assert [pod.exit_code() for pod in pods] == [124, 124]
    word = pods[0].last_word
    assert word.reason == "MaxHangRestartsExceeded"
    assert word.error.rank == 1
    assert "time.sleep" in word.error.traceback or "misbehave" in word.error.traceback


def test_a_pod_told_to_stop_leaves_and_the_gang_goes_on_with_its_successor(gang: MakeGang) -> None:
    it = gang(a_run(budgets={"max_restarts": 0}), STEPS=100)
    first, second = it.start()
    it.wait_for_step(5, generation=1)
    second.process.terminate()
    assert second.exit_code() == 143
    assert second.last_word.reason == "Terminated"
    it.start(1, incarnation=1)
    assert first.exit_code() == 0
    word = first.last_word
    assert word.program_restarts == 0
    assert [i.cause for i in word.progress.incidents] == ["Terminated"]


def test_a_suspended_gang_ends_with_143_everywhere(gang: MakeGang) -> None:
    it = gang(a_run(nodes=3), STEPS=10_000)
    pods = it.start()
    it.wait_for_step(5, generation=1)
    for pod in pods:
        pod.process.terminate()
    assert [pod.exit_code() for pod in pods] == [143] * 3
    assert_gone(it)


def test_a_rank_that_saves_on_the_notice_has_its_time(gang: MakeGang) -> None:
    it = gang(a_run(), STEPS=10_000, ON_SIGTERM="save")
    pods = it.start()
    it.wait_for_step(5, generation=1)
    pods[1].process.terminate()
    assert pods[1].exit_code() == 143
    assert {e["rank"] for e in it.diary("saved")} == {0, 1}
    assert pods[0].process.poll() is None


def test_a_pod_told_to_stop_loses_no_step_and_costs_nothing(gang: MakeGang) -> None:
    """A16, C27: all ranks save and leave, its launcher too; the others wait for its successor, then go on."""
    it = gang(a_run(budgets={"max_restarts": 0}), STEPS=150, PAUSE=0.02, ON_SIGTERM="notice")
    first, second = it.start()
    it.wait_for_step(5, generation=1)
    second.process.terminate()
    assert second.exit_code() == 143
    saved = {e["rank"]: e["step"] for e in it.diary("saved")}
    assert sorted(saved) == [0, 1]
    word = second.last_word
    assert (word.reason, word.checkpoint.step) == ("Terminated", saved[0])
    assert first.process.poll() is None
    assert not [e for e in it.diary("start") if e["generation"] == 2]
    assert first.progress.checkpoint.step == saved[0]
    (successor,) = it.start(1, incarnation=1)
    assert [first.exit_code(), successor.exit_code()] == [0, 0]
    for rank in (0, 1):
        steps = [e["step"] for e in it.diary("step") if e["rank"] == rank]
        assert steps == list(range(1, 151))
    word = first.last_word
    assert (word.generation, word.program_restarts, word.hang_restarts) == (2, 0, 0)
    assert word.progress.ledger.lost_seconds == word.progress.ledger.recovering_seconds == 0
    assert [(i.cause, i.resumed_from_step) for i in word.progress.incidents] == [("Terminated", saved[0])]
    assert_no_overlap(it)


def test_a_suspended_gang_saves_and_every_last_word_names_the_checkpoint(gang: MakeGang) -> None:
    """A29: every pod is told to stop at once; index 0 goes last."""
    it = gang(a_run(nodes=3, processes_per_node=2), STEPS=10_000, PAUSE=0.02, ON_SIGTERM="notice")
    pods = it.start()
    it.wait_for_step(5, generation=1)
    for pod in pods:
        pod.process.terminate()
    assert [pod.exit_code() for pod in pods] == [143] * 3
    assert sorted(e["rank"] for e in it.diary("saved")) == list(range(6))
    (step,) = [e["step"] for e in it.diary("saved") if e["rank"] == 0]
    assert [(pod.last_word.reason, pod.last_word.checkpoint.step) for pod in pods] == [("Terminated", step)] * 3
    assert pods[0].last_word.program_restarts == 0
    first, *others = [pod.termination_log.stat().st_mtime_ns for pod in pods]
    assert first >= max(others)
    assert_gone(it)


def test_a_rank_that_starts_after_the_others_were_told_to_leave_is_told_too(gang: MakeGang) -> None:
    """C27: it would train on alone, and hold up the gang until the grace period is over."""
    programs = Path(__file__).parent / "programs"
    operator = Path(__file__).parents[3] / "operator"
    run = a_run(script=None, recipe={"name": "mlp"}, termination_grace_seconds=3600)
    it = gang(run, STEPS=10_000, PYTHONPATH=f"{programs}:{operator}", STAND_IN_FOR_TRAINER="slow")
    pods = it.start()
    it.wait_for_step(2, generation=1)
    server = int(Path(f"/proc/{it.rank_pid(1)}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)  # the next one takes a while
    it.wait_for("the next generation", lambda: "generation 2: starting" in pods[1].log)
    for pod in pods:
        pod.process.terminate()
    assert [pod.exit_code() for pod in pods] == [143, 143]
    assert_gone(it)


def test_a_gang_of_twelve_pods_heals_and_loses_a_pod(gang: MakeGang) -> None:
    it = gang(a_run(nodes=12, processes_per_node=2), STEPS=400, PAUSE=0.05, BIGMODEL_PRELOAD=1)
    pods = it.start()
    it.wait_for_step(3, generation=1, timeout=120)
    assert {e["rank"]: e["env"]["GROUP_RANK"] for e in it.diary("start")} == {r: str(r // 2) for r in range(24)}
    killed_at = it.kill_rank(21)
    print(f"12 pods: kill → step of all ranks: {it.wait_for_step(1, 2, timeout=120) - killed_at:.3f} s")
    pods[11].kill()
    (successor,) = it.start(11, incarnation=1)
    it.wait_for_step(1, generation=3, timeout=120)
    for pod in (*pods[:11], successor):
        pod.process.terminate()
    assert {pod.exit_code(120) for pod in (*pods[:11], successor)} == {143}
    assert pods[0].last_word.program_restarts == 1
    assert_no_overlap(it)


def test_a_rank_that_ignores_the_notice_is_killed_before_the_grace_period_ends(gang: MakeGang) -> None:
    it = gang(a_run(termination_grace_seconds=2), STEPS=10_000, ON_SIGTERM="ignore")
    pods = it.start()
    it.wait_for_step(5, generation=1)
    for pod in pods:
        pod.process.terminate()
    assert [pod.exit_code() for pod in pods] == [143, 143]
    assert_gone(it)


def test_before_the_gang_is_complete_sigterm_ends_a_launcher_at_once(gang: MakeGang) -> None:
    it = gang(a_run())
    (second,) = it.start(1)
    it.wait_for("it is up", lambda: second.get("/healthz"))
    second.process.terminate()
    assert second.exit_code() == 143


def test_what_a_rank_leaves_behind_dies_with_it(gang: MakeGang) -> None:
    it = gang(a_run(), STEPS=10_000, GRANDCHILD="1")
    it.start()
    it.wait_for_step(5, generation=1)
    grandchildren = [e["pid"] for e in it.diary("grandchild")]
    it.kill_rank(0)
    it.wait_for_step(1, generation=2)
    assert not [pid for pid in grandchildren if Path(f"/proc/{pid}/cmdline").exists()]


def test_a_dead_launcher_takes_its_processes_along(gang: MakeGang) -> None:
    it = gang(a_run(nodes=1), STEPS=10_000)
    (pod,) = it.start()
    it.wait_for_step(5, generation=1)
    pod.kill()
    it.wait_for("the rank is gone", lambda: not os.path.exists(f"/proc/{it.rank_pid(0)}"))


def test_a_paused_coordinator_and_a_paused_member_heal(gang: MakeGang) -> None:
    it = gang(a_run(budgets={"max_restarts": 0}), STEPS=10_000)
    pods = it.start()
    it.wait_for_step(5, generation=1)
    for generation, pod in enumerate(pods, start=2):
        pod.process.send_signal(signal.SIGSTOP)
        time.sleep(2.6)
        pod.process.send_signal(signal.SIGCONT)
        it.wait_for_step(1, generation)
    assert pods[0].progress.program_restarts == 0


def test_without_preloading_ranks_are_spawned(gang: MakeGang) -> None:
    it = gang(a_run(), STEPS=40, BIGMODEL_PRELOAD=0)
    pods = it.start()
    it.wait_for_step(2, generation=1)
    it.kill_rank(1)
    assert [pod.exit_code() for pod in pods] == [0, 0]
    assert pods[0].last_word.generation == 2
    assert_no_overlap(it)


def test_the_fork_server_may_die(gang: MakeGang) -> None:
    it = gang(a_run(), STEPS=60)
    pods = it.start()
    it.wait_for_step(2, generation=1)
    server = int(Path(f"/proc/{it.rank_pid(1)}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    assert [pod.exit_code() for pod in pods] == [0, 0]
    assert pods[0].last_word.generation == 2


def test_pods_of_different_size_make_no_gang(gang: MakeGang) -> None:
    it = gang(a_run(processes_per_node=1))
    (first,) = it.start(0)
    other = it.run.model_copy(update={"processes_per_node": 2})
    (second,) = it.start(1, BIGMODEL_RUN=json.dumps(other.wire()))
    assert [first.exit_code(), second.exit_code()] == [1, 1]
    assert "index 0 runs 1 processes and index 1 runs 2" in first.last_word.message


RECIPES = {
    "with an artefact": ("good", {"ARTIFACT": "1"}, 0, None),
    "without the artefact it promised": ("good", {}, 1, "NoArtifact"),
    "with a trainer that cannot be forked, so it is spawned": ("threaded", {"ARTIFACT": "1"}, 0, None),
    "with a trainer that cannot be imported": ("missing", {}, 1, "CrashLoop"),
}


@pytest.mark.parametrize(("trainer", "environment", "code", "reason"), RECIPES.values(), ids=RECIPES)
def test_a_recipe_ends(gang: MakeGang, trainer: str, environment: dict, code: int, reason: str | None) -> None:
    """The trainer's place is taken by a program that needs no torch (programs/sitecustomize.py)."""
    run = a_run(nodes=1, script=None, recipe={"name": "mlp"})
    programs = Path(__file__).parent / "programs"
    operator = Path(__file__).parents[3] / "operator"
    it = gang(run, STEPS=5, PYTHONPATH=f"{programs}:{operator}", STAND_IN_FOR_TRAINER=trainer, **environment)
    (pod,) = it.start()
    assert pod.exit_code() == code
    word = pod.last_word
    assert word.reason == reason
    assert (word.artifact is not None) == (code == 0)
    if trainer == "threaded":
        assert "started one by one instead of forked: 2 threads" in pod.log
    if trainer == "missing":
        assert "bigmodel.trainer.main" in word.error.message


WAYS = {
    "env://, the launcher's store": ("env", 1, True),
    "a tcp:// store of its own": ("tcp", 1, True),
    "a tcp:// store of its own, without the fork server": ("tcp", 1, False),
    "env:// at a port of its own": ("own-master-port", 1, True),
    "data loaders, forked and spawned": ("workers", [496, 496], True),
    "processes of its own that form a group": ("spawn", "joined", True),
}


@pytest.mark.parametrize(("mode", "want", "fork"), WAYS.values(), ids=WAYS)
def test_programs_of_others_run_as_they_are(gang: MakeGang, mode: str, want: object, fork: bool) -> None:
    """As `python train.py` runs them: their directory in sys.path, their main module, their threads."""
    it = gang(a_run(program="torch_script.py", framework="pytorch", args=["--fast"], budgets={"max_restarts": 0}))
    it.environment |= {"MODE": mode, "OWN_PORT": str(free_port()), "BIGMODEL_PRELOAD": str(int(fork))}
    pods = it.start()
    assert [pod.exit_code(120) for pod in pods] == [0, 0], pods[0].log + pods[1].log
    results = it.diary("result")
    path = str(Path(__file__).parent / "programs" / "torch_script.py")
    assert [(e["value"], e["argv"], e["file"], e["main"]) for e in results] == [
        (want, [path, "--fast"], path, True)
    ] * 2
    assert len(it.diary("last")) == 2
    assert pods[0].last_word.message == "no step was reported"


@pytest.mark.parametrize("code", [0, 3])
def test_a_program_that_is_no_python_runs_by_its_first_line(gang: MakeGang, code: int) -> None:
    it = gang(a_run(program="plain.sh", args=["hello"], budgets={"max_restarts": 0}), CODE=code)
    pods = it.start()
    assert [pod.exit_code() for pod in pods] == [code] * 2
    assert "shell rank 1 of 2: hello\n" in pods[1].log
    assert pods[0].last_word.message == "no step was reported" if code == 0 else True


def test_the_exit_code_of_a_script_is_the_pods(gang: MakeGang) -> None:
    it = gang(a_run(nodes=1, program="torch_script.py", framework="pytorch", budgets={"max_restarts": 0}))
    it.environment |= {"MODE": "env", "OWN_PORT": "0", "CODE": "42"}
    (pod,) = it.start()
    assert pod.exit_code(120) == 42


def free_port() -> int:
    """With two more after it, as far as anybody can tell."""
    with socket.socket() as one:
        one.bind(("127.0.0.2", 0))
        return min(one.getsockname()[1], 65_000)


def test_torch_over_the_store_child(gang: MakeGang) -> None:
    run = a_run(program="torch_steps.py", framework="pytorch", budgets={"hang_timeout_seconds": 3})
    it = gang(run, STEPS=60, HANG="1:2:40")
    pods = it.start()
    it.wait_for_step(5, generation=1, timeout=120)
    killed_at = it.kill_rank(0)
    print(f"kill → step of all ranks, torch and gloo: {it.wait_for_step(1, 2) - killed_at:.3f} s")
    assert [pod.exit_code() for pod in pods] == [0, 0]
    word = pods[0].last_word
    assert (word.generation, word.program_restarts, word.hang_restarts) == (3, 1, 1)
    # Rank 1 died of rank 0's death: it is not to blame, whoever was noticed first. But then rank 0 waited for it.
    assert [(i.cause, i.rank) for i in word.progress.incidents] == [("ProgramError", 0), ("Hang", 1)]
    assert "ranks are started one by one" not in pods[0].log
    assert_no_overlap(it)
