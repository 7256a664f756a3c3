"""Any sequence of faults, in virtual time: the gang trains to its end, never two generations at once, no fault charged
to the wrong budget."""

from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigmodel.api.run import Budgets
from bigmodel.launcher.coordinator import FAREWELL_SECONDS, Gang
from bigmodel.launcher.member import Terminating
from bigmodel.launcher.message import Exit
from tests.unit.launcher.simulation import ARTIFACT, Launcher, World

STEPS = 40
FAULTS_END = 30.0


@dataclass(frozen=True)
class Fault:
    at: float
    kind: str
    index: int
    seconds: float


FAULTS = st.builds(
    Fault,
    at=st.floats(0.5, FAULTS_END),
    kind=st.sampled_from(["kill rank", "hang rank", "pod lost", "node lost", "pause", "cut off", "SIGTERM", "usurp"]),
    index=st.integers(0, 11),
    seconds=st.floats(0.01, 6),
)


def inject(world: World, fault: Fault) -> None:
    launcher = world.launchers.get(fault.index % world.gang.nodes)
    if launcher is None or not launcher.alive:
        return
    if launcher.coordinator is not None and launcher.coordinator.outcome is not None:
        return  # it is over and written down; what the cluster makes of a loss now is the controller's to say
    ranks = world.ranks_of(launcher)
    match fault.kind:
        case "kill rank":
            for rank in ranks[:1]:
                world.end_rank(rank, 137)
        case "hang rank":
            for rank in ranks[:1]:
                rank.hangs = rank.trained  # before its first step a rank may take as long as it likes
        case "pod lost" | "node lost":
            world.end_launcher(launcher, Exit(code=137), silently=fault.kind == "node lost")
            world.replace(launcher.index, fault.seconds)
        case "pause":
            launcher.paused_until = world.now + fault.seconds
        case "cut off":
            launcher.unreachable_until = world.now + fault.seconds
        case "SIGTERM":
            terminate(world, launcher)
        case "usurp":  # the cluster lost sight of a pod that lives; its processes are its own
            world.end_launcher(launcher, Exit(code=137), silently=True)
            world.launch(launcher.index, launcher.incarnation + 1)


def terminate(world: World, launcher: Launcher) -> None:
    launcher.told_to_stop_at = world.now
    launcher.to_member(Terminating())


def keep_pods_alive(world: World) -> None:
    """What the controller does: a pod that ended, but not with 0, gets a successor."""
    for launcher in list(world.launchers.values()):
        if launcher.outcome is not None and launcher.outcome.code in (75, 143) and launcher.told_to_stop_at is not None:
            launcher.told_to_stop_at = None
            world.replace(launcher.index, 0.5)
    world.after(0.2, lambda: keep_pods_alive(world))


def check(nodes: int, processes: int, seed: int, faults: list[Fault]) -> None:
    budgets = Budgets(max_restarts=100, max_hang_restarts=100, hang_timeout_seconds=5)
    gang = Gang("uid", 1, nodes, 0, "10.0.0.1", budgets, 900, artifact_promised=True, store=True)
    world = World(nodes, seed, STEPS, gang, processes=processes)
    world.after(0.2, lambda: keep_pods_alive(world))
    for fault in faults:
        world.at(fault.at, lambda fault=fault: inject(world, fault))
    world.run_until(FAULTS_END + 120, done=lambda: world.finished)

    assert {index: launcher.outcome for index, launcher in world.launchers.items()} == dict.fromkeys(
        range(nodes), Exit(code=0, artifact=ARTIFACT)
    ), f"not finished at {world.now}"
    first = world.launchers[0]
    went_last = first.exited_at == max(launcher.exited_at for launcher in world.launchers.values())
    assert went_last or first.exited_at >= first.decided_at + FAREWELL_SECONDS
    charged = first.coordinator.spent
    # A hang is charged to the hangs; whatever a lost pod does to other ranks is charged to nobody.
    assert charged.program <= sum(fault.kind == "kill rank" for fault in faults)
    assert charged.hang <= sum(fault.kind == "hang rank" for fault in faults)
    ledger = first.coordinator.progress().ledger
    assert ledger.lost_seconds + ledger.recovering_seconds <= world.now


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(nodes=st.integers(1, 4), seed=st.integers(0, 2**32), faults=st.lists(FAULTS, max_size=6))
def test_whatever_happens_the_gang_ends_with_an_artefact(nodes: int, seed: int, faults: list[Fault]) -> None:
    check(nodes, 1, seed, faults)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    size=st.sampled_from([(12, 1), (3, 4), (12, 4)]), seed=st.integers(0, 2**32), faults=st.lists(FAULTS, max_size=8)
)
def test_so_it_does_with_many_pods_and_processes(size: tuple[int, int], seed: int, faults: list[Fault]) -> None:
    """Twelve pods, four processes in each."""
    check(*size, seed, faults)
