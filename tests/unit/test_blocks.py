"""How large the blocks are in which uploads are written."""

import gc
from weakref import WeakSet

import pytest
from sqlalchemy import create_engine

from jobs import blocks
from jobs.blocks import FLUSH_BYTES, LEAST_BYTES, SHARED_BYTES, Blocks
from jobs.settings import Retention

NOBODY = create_engine("postgresql+psycopg://127.0.0.1:1/nothing")


@pytest.fixture(autouse=True)
def _nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_growing", WeakSet())


def begun(count: int) -> list[Blocks]:
    return [Blocks(NOBODY, "proj-x", f"file-{number}") for number in range(count)]


def test_an_upload_that_is_alone_has_large_blocks_and_many_have_small_ones() -> None:
    (alone,) = begun(1)
    assert alone._most == FLUSH_BYTES
    others = begun(200)
    assert others[-1]._most == LEAST_BYTES
    # Those that began when there was more room keep it for one block.
    assert sum(each._most for each in [alone, *others]) < 7 * SHARED_BYTES
    for each in others:
        each.discard()
    assert begun(1)[0]._most == FLUSH_BYTES


def test_uploads_that_were_forgotten_take_no_room() -> None:
    begun(200)
    gc.collect()
    assert begun(1)[0]._most == FLUSH_BYTES


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The kilobytes of each block, in place of Postgres."""
    sizes: list[int] = []
    monkeypatch.setattr(Blocks, "_write", lambda _, rows: sizes.append(sum(map(len, rows)) // 1_000))
    return sizes


def add(upload: Blocks, *kilobytes: int) -> None:
    for number, size in enumerate(kilobytes, 1):
        upload.add(number, f"row-{number}", b"x" * 1_000 * size, b"\n")


def test_a_block_is_written_when_its_share_is_full(written: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "FLUSH_BYTES", 10_000)
    (one,) = begun(1)
    add(one, *[1] * 20)
    one.close()
    # A row of a thousand bytes is taken for 1,300.
    assert written == [8, 8, 4]


def test_the_next_block_is_smaller_when_others_have_come(written: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "FLUSH_BYTES", 10_000)
    monkeypatch.setattr(blocks, "SHARED_BYTES", 10_000)
    monkeypatch.setattr(blocks, "LEAST_BYTES", 1)
    (one,) = begun(1)
    others = begun(1)
    add(one, *[1] * 8)
    add(one, *[1] * 4)
    one.close()
    assert written == [8, 4, 0]
    assert others


def test_a_block_with_a_long_line_is_waited_for(written: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    monkeypatch.setattr(Blocks, "_settle", lambda _: waited.append(1))
    monkeypatch.setattr(blocks, "FLUSH_BYTES", 10_000)
    monkeypatch.setattr(blocks, "LONG_BYTES", 5_000)
    (one,) = begun(1)
    add(one, 11)
    assert len(waited) == 1, "for the block before"
    add(one, 20)
    assert len(waited) == 3


def test_a_slow_upload_is_heard_of_long_before_it_is_taken_for_given_up(
    written: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Retention.model_fields["unfinished_upload_seconds"].default / 2 > blocks.MOST_SECONDS
    monkeypatch.setattr(blocks, "MOST_SECONDS", 0)
    (one,) = begun(1)
    add(one, 1, 1)
    one.close()
    assert written[:2] == [1, 1]
