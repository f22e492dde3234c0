from __future__ import annotations

import pytest

from ray_sched.core.utilization import Utilization


def test_utilization_is_the_busy_share_of_each_period() -> None:
    utilization = Utilization(0.0)
    utilization.begin(1.0)
    utilization.end(3.0)
    assert utilization.take(4.0) == 0.5
    assert utilization.take(5.0) == 0.0
    assert utilization.take(5.0) == 0.0


def test_work_that_goes_on_counts_for_each_period_that_it_touches() -> None:
    utilization = Utilization(0.0)
    utilization.begin(5.0)
    assert utilization.take(10.0) == 0.5
    assert utilization.take(20.0) == 1.0
    utilization.end(21.0)
    assert utilization.take(30.0) == pytest.approx(0.1)
