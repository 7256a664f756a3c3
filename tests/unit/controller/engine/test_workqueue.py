"""A key waits once, is worked on once, and comes back when something happened meanwhile."""

import asyncio

import pytest

from bigmodel.controller.decision import Key
from bigmodel.controller.workqueue import QueueClosed, WorkQueue
from tests.unit.controller.engine.virtual_time import elapsed, run

A, B, C = (Key("BigModelJob", "ml", name) for name in "abc")


def test_a_key_added_many_times_waits_once_and_in_the_order_of_its_first_time() -> None:
    async def main() -> None:
        queue = WorkQueue()
        for key in (A, B, A, A, B):
            queue.add(key)
        assert (len(queue), await queue.get(), await queue.get(), len(queue)) == (2, A, B, 0)

    run(main())


def test_a_key_added_while_it_is_worked_on_is_handed_out_only_after_done() -> None:
    async def main() -> None:
        queue = WorkQueue()
        queue.add(A)
        assert await queue.get() == A
        queue.add(A)
        queue.add(A)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 60)
        queue.done(A)
        assert await asyncio.wait_for(queue.get(), 60) == A
        queue.done(A)
        assert len(queue) == 0

    run(main())


def test_of_two_delays_the_earlier_counts() -> None:
    async def main() -> None:
        for delays in ((30, 5), (5, 30)):
            queue, began = WorkQueue(), elapsed()
            for delay in delays:
                queue.add_after(A, delay)
            assert await queue.get() == A
            assert elapsed() - began == pytest.approx(5)
            assert queue.delayed == 0

    run(main())


def test_handing_a_key_out_forgets_its_delay() -> None:
    async def main() -> None:
        queue = WorkQueue()
        queue.add_after(A, 5)
        queue.add(A)
        queue.done(await queue.get())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 60)

    run(main())


def test_workers_never_share_a_key_and_no_addition_is_lost() -> None:
    async def main() -> None:
        queue, at_work = WorkQueue(), set[Key]()
        generation = dict.fromkeys((A, B, C), 0)
        done_generation = dict.fromkeys((A, B, C), 0)

        async def worker() -> None:
            while True:
                key = await queue.get()
                assert key not in at_work
                at_work.add(key)
                seen = generation[key]
                await asyncio.sleep(0.3)
                done_generation[key] = seen
                at_work.discard(key)
                queue.done(key)

        workers = [asyncio.create_task(worker()) for _ in range(4)]
        for turn in range(50):
            key = (A, B, C)[turn % 3]
            generation[key] += 1
            queue.add(key)
            await asyncio.sleep(0.07)
        await asyncio.sleep(5)
        assert done_generation == generation
        for task in workers:
            task.cancel()

    run(main())


def test_a_woken_worker_that_is_cancelled_passes_the_key_on() -> None:
    async def main() -> None:
        queue = WorkQueue()
        first, second = (asyncio.create_task(queue.get()) for _ in range(2))
        await asyncio.sleep(0)
        queue.add(A)  # wakes the first
        first.cancel()
        assert await asyncio.wait_for(second, 60) == A

    run(main())


def test_a_closed_queue_hands_out_nothing_and_wakes_every_waiter() -> None:
    async def main() -> None:
        queue = WorkQueue()
        waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
        await asyncio.sleep(0)
        queue.add_after(A, 5)
        queue.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [QueueClosed] * 3
        queue.add(B)
        with pytest.raises(QueueClosed):
            await queue.get()

    run(main())


def test_the_oldest_key_tells_how_long_it_waits() -> None:
    async def main() -> None:
        queue = WorkQueue()
        assert queue.oldest_seconds() == 0
        queue.add(A)
        await asyncio.sleep(7)
        queue.add(B)
        await asyncio.sleep(3)
        assert queue.oldest_seconds() == pytest.approx(10)

    run(main())
