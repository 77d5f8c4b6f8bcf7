from api.stack.supervisor import BACKOFF_SECONDS, GOOD_SECONDS, MAX_BACKOFF_SECONDS, pause_after


def test_pauses_grow_up_to_a_bound() -> None:
    pauses = [pause_after(None, 0)]
    while pauses[-1] < MAX_BACKOFF_SECONDS:
        pauses.append(pause_after(pauses[-1], 0))
    assert pauses == [BACKOFF_SECONDS, 1, 2, 4, 8, 16, MAX_BACKOFF_SECONDS]
    assert pause_after(MAX_BACKOFF_SECONDS, GOOD_SECONDS) == MAX_BACKOFF_SECONDS


def test_a_program_that_has_run_well_starts_anew() -> None:
    assert pause_after(MAX_BACKOFF_SECONDS, GOOD_SECONDS + 1) == BACKOFF_SECONDS
