"""What is written is read back, or not at all."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvasir_protocol.errors import ConfigError
from kvasir_workers.kv.offload.page_file import RECORD_OVERHEAD_BYTES, CorruptPage, PageFile
from tests.unit.workers.kv.offload.pages import name_of

PAGE_BYTES = 1000
CONTENT = bytes(i % 251 for i in range(PAGE_BYTES))
NAME = name_of(1)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[PageFile]:
    file = PageFile.create(tmp_path / "pages", PAGE_BYTES)
    file.write(3, NAME, memoryview(CONTENT))
    yield file
    file.close()


def read(file: PageFile, slot: int = 3) -> bytes:
    content = bytearray(PAGE_BYTES)
    file.read(slot, NAME, memoryview(content))
    return bytes(content)


def test_page_is_read_as_it_was_written(file: PageFile) -> None:
    assert read(file) == CONTENT


def test_slots_do_not_overlap(file: PageFile) -> None:
    for slot in (2, 4):
        file.write(slot, name_of(slot), memoryview(bytes(PAGE_BYTES)))
    assert read(file) == CONTENT


@pytest.mark.parametrize("offset", [0, 4, 8, 12, RECORD_OVERHEAD_BYTES, RECORD_OVERHEAD_BYTES + PAGE_BYTES - 1])
def test_one_wrong_byte_is_found(file: PageFile, offset: int) -> None:
    place = 3 * (RECORD_OVERHEAD_BYTES + PAGE_BYTES) + offset
    (byte,) = os.pread(file.fileno(), 1, place)
    os.pwrite(file.fileno(), bytes([byte ^ 1]), place)
    with pytest.raises(CorruptPage):
        read(file)


def test_another_pages_slot_is_not_this_page(file: PageFile) -> None:
    file.write(3, name_of(2), memoryview(CONTENT))
    with pytest.raises(CorruptPage, match="another page's"):
        read(file)


def test_file_that_became_shorter_is_noticed(file: PageFile) -> None:
    os.truncate(file.fileno(), 3 * (RECORD_OVERHEAD_BYTES + PAGE_BYTES) + 100)
    with pytest.raises(CorruptPage, match="bytes are there"):
        read(file)


def test_nothing_of_it_can_be_seen_or_left_behind(file: PageFile, tmp_path: Path) -> None:
    assert list((tmp_path / "pages").iterdir()) == []


def test_nobody_else_may_read_it(file: PageFile) -> None:
    assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600


def test_disk_without_room_is_an_error_of_the_system() -> None:
    file = PageFile(os.open("/dev/full", os.O_RDWR), PAGE_BYTES)
    with pytest.raises(OSError, match="No space left"):
        file.write(0, NAME, memoryview(CONTENT))
    file.close()


def test_path_that_is_no_folder_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="disk_cache_path"):
        PageFile.create(tmp_path / "file", PAGE_BYTES)
