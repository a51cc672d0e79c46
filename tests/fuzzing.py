"""How odd input is drawn: the same cases every time, with nothing kept and no clock."""

from hypothesis import HealthCheck, settings


def cases(num: int) -> settings:
    """The settings of a test that tries so many."""
    return settings(
        max_examples=num,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
