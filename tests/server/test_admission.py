import asyncio

import pytest

from emopfx_server.engine.admission import Admission, QueueFull


async def enter(admission: Admission, size: int, name: str, log: list[str], until: asyncio.Event) -> None:
    async with admission.enter(size):
        log.append(name)
        await until.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_bound_holds_and_order_is_kept() -> None:
    async def run() -> None:
        admission, log = Admission(8, 10, 8), list[str]()
        first, rest = asyncio.Event(), asyncio.Event()
        tasks = [asyncio.create_task(enter(admission, 6, "a", log, first))]
        # c would fit beside a, but b came before it
        tasks += [asyncio.create_task(enter(admission, size, name, log, rest)) for name, size in (("b", 9), ("c", 1))]
        await settle()
        assert (log, admission.held, admission.waiting) == (["a"], 6, 2)
        first.set()
        await settle()
        assert (log, admission.held, admission.waiting) == (["a", "b", "c"], 10, 0)
        rest.set()
        await asyncio.gather(*tasks)
        assert (admission.held, admission.running) == (0, 0)

    asyncio.run(run())


def test_a_place_is_given_on_before_the_bytes_are() -> None:
    async def run() -> None:
        admission, log, until = Admission(1, 10, 8), list[str](), asyncio.Event()
        async with admission.enter(4) as admitted:
            waiting = asyncio.create_task(enter(admission, 6, "b", log, until))
            await settle()
            assert log == []
            admission.leave_place(admitted)
            await settle()
            assert (log, admission.held, admission.running) == (["b"], 10, 1)
        assert (admission.held, admission.running) == (6, 1)
        until.set()
        await waiting
        assert (admission.held, admission.running) == (0, 0)

    asyncio.run(run())


def test_whoever_waits_can_be_turned_away() -> None:
    async def run() -> None:
        admission, log, until = Admission(8, 10, 8), list[str](), asyncio.Event()
        running = asyncio.create_task(enter(admission, 10, "a", log, until))
        waiting = asyncio.create_task(enter(admission, 1, "b", log, until))
        await settle()
        admission.turn_away(RuntimeError("closing"))
        with pytest.raises(RuntimeError, match="closing"):
            await waiting
        until.set()
        await running
        assert (log, admission.held) == (["a"], 0)

    asyncio.run(run())


def test_no_more_may_wait_than_the_queue_holds() -> None:
    async def run() -> None:
        admission, log, until = Admission(1, 10, 2), list[str](), asyncio.Event()
        tasks = [asyncio.create_task(enter(admission, 1, name, log, until)) for name in "abc"]
        await settle()
        with pytest.raises(QueueFull):
            await enter(admission, 1, "d", log, until)
        until.set()
        await asyncio.gather(*tasks)
        assert log == ["a", "b", "c"]

    asyncio.run(run())


@pytest.mark.parametrize("let_in_first", [False, True])
def test_giving_up_while_waiting_leaks_nothing(let_in_first: bool) -> None:
    async def run() -> None:
        admission, log, until = Admission(2, 10, 8), list[str](), asyncio.Event()
        running = asyncio.create_task(enter(admission, 10, "a", log, until))
        waiting = asyncio.create_task(enter(admission, 5, "b", log, asyncio.Event()))
        behind = asyncio.create_task(enter(admission, 5, "c", log, until))
        await settle()
        if let_in_first:
            until.set()
            await asyncio.sleep(0)  # a lets go and b's turn is set, but b has not resumed
            await asyncio.sleep(0)
        waiting.cancel()
        until.set()
        await asyncio.gather(running, waiting, behind, return_exceptions=True)
        assert "c" in log
        assert (admission.held, admission.running, admission.waiting) == (0, 0, 0)
        async with admission.enter(10):
            assert admission.held == 10

    asyncio.run(run())
