from jobs.states import BATCH_TRANSITIONS, TERMINAL, BatchStatus, is_legal


def test_terminal_states_are_final() -> None:
    assert {"failed", "completed", "expired", "cancelled"} == TERMINAL
    for before in TERMINAL:
        assert not any(is_legal(before, after) for after in BatchStatus)


def test_every_state_can_be_reached() -> None:
    reached = {BatchStatus.VALIDATING}
    for _ in BatchStatus:
        reached |= {after for before in reached for after in BATCH_TRANSITIONS[before]}
    assert reached == set(BatchStatus)


def test_nothing_goes_back() -> None:
    assert not is_legal(BatchStatus.FINALIZING, BatchStatus.IN_PROGRESS)
    assert not is_legal(BatchStatus.CANCELLING, BatchStatus.IN_PROGRESS)
