"""Token files, as `smidgen data TEXT -m MODEL.gguf --out FILE.tokens` writes them."""

import numpy as np

HEADER_BYTES = 168
MAGIC = b"SMDGTOK\0"
VERSION = 2
COUNT_AT = 80
TARGET_BIT = 1 << 31


def read_tokens(path):
    """Ids of a token file, int64 [N]."""
    with open(path, "rb") as file:
        header = file.read(HEADER_BYTES)
        if header[:8] != MAGIC or int.from_bytes(header[8:12], "little") != VERSION:
            raise ValueError(f"{path} is no token file of version {VERSION}")
        count = int.from_bytes(header[COUNT_AT : COUNT_AT + 8], "little")
        ids = np.fromfile(file, dtype="<u4", count=count)
    if len(ids) != count:
        raise ValueError(f"{path} ends after {len(ids)} of {count} ids")
    return (ids & (TARGET_BIT - 1)).astype(np.int64)


def windows(path, length, count):
    """The first `count` whole windows of `length` ids, [count, length]."""
    ids = read_tokens(path)
    if len(ids) < count * length:
        raise ValueError(f"{path} has {len(ids)} ids, fewer than {count} windows of {length}")
    return ids[: count * length].reshape(count, length)
