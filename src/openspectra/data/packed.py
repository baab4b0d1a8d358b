"""Files as they are, or packed: .gz, .bz2, .xz, and .zst of any window."""

import bz2
import gzip
import io
import lzma
from pathlib import Path
from typing import BinaryIO

PACKED = (".gz", ".zst", ".bz2", ".xz")
"""Endings of what is unpacked while it is read."""
ZSTD_WINDOW_BYTES = 2**31
"""The largest window of `zstd --long=31`; a frame takes as much memory as its own window."""
ZSTD_INPUT_BYTES = 1024
"""Packed bytes taken at a time: at most 256 blocks, so that a file which unpacks to 30,000 times its size fills 32 MB."""


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading, unpacked. Reading raises one of `rows.NOT_READABLE` where it is damaged."""
    if path.suffix in PACKED and not path.stat().st_size:
        raise EOFError("an archive has some bytes, even of nothing")
    if path.suffix == ".zst":
        return io.BufferedReader(_Zstd(path), 2**20)
    return {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(path.suffix, open)(path, "rb")


class _Zstd(io.RawIOBase):
    """What the frames of a zstd file hold. The readers of the libraries refuse long windows, or end silently in a cut frame."""

    def __init__(self, path: Path):
        import zstandard

        self._error = zstandard.ZstdError
        self._frames = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
        self._frame = None
        self._file = path.open("rb", buffering=2**20)
        self._packed, self._ready = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            self._packed = self._packed or self._file.read(ZSTD_INPUT_BYTES)
            if not self._packed:
                if self._frame:
                    raise EOFError("the file ends within a frame")
                return 0
            self._frame = self._frame or self._frames.decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(self._packed))
            except self._error as error:
                raise ValueError(str(error)) from None
            self._packed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
