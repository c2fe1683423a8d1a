"""The cores of a site are never lent twice, and a wide run gets its turn."""

from __future__ import annotations

import threading
import time

from workflows.parsl_sites import Cores


def test_no_more_cores_are_lent_than_there_are():
    cores, lock, busy, most = Cores(3), threading.Lock(), [0], [0]

    def work(wanted: int) -> None:
        with cores.lent(wanted):
            with lock:
                busy[0] += wanted
                most[0] = max(most[0], busy[0])
            time.sleep(0.01)
            with lock:
                busy[0] -= wanted

    threads = [threading.Thread(target=work, args=(1 + i % 3,)) for i in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert busy == [0]
    assert most == [3]


def test_a_wide_run_is_not_overtaken():
    cores, order, first = Cores(2), [], threading.Event()

    def work(name: str, wanted: int) -> None:
        with cores.lent(wanted):
            order.append(name)

    def hold() -> None:
        with cores.lent(1):
            first.wait(20)

    threads = [threading.Thread(target=hold)]
    threads[0].start()
    for name, wanted in (("wide", 2), ("late", 1)):
        time.sleep(0.1)
        threads.append(threading.Thread(target=work, args=(name, wanted)))
        threads[-1].start()
    time.sleep(0.1)
    assert order == [], "one core is free, but it is the wide run's turn"
    first.set()
    for thread in threads:
        thread.join(20)
    assert order == ["wide", "late"]


def test_a_failing_body_gives_its_cores_back():
    cores = Cores(1)
    for _ in range(2):
        try:
            with cores.lent(1):
                raise ValueError
        except ValueError:
            pass
