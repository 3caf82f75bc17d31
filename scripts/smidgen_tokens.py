"""Token files, as `smidgen data TEXT -m MODEL.gguf --out FILE.tokens` writes them."""

import numpy as np

HEADER_BYTES = 168
MAGIC = b"SMDGTOK\0"
VERSION = 2
COUNT_AT = 80
SAMPLES_AT = 96
TARGET_BIT = 1 << 31


def read_words(path):
    """(ids with their target bits, uint32 [N]; where samples begin and end, int64 [S + 1], [1] for one long text)."""
    with open(path, "rb") as file:
        header = file.read(HEADER_BYTES)
        if header[:8] != MAGIC or int.from_bytes(header[8:12], "little") != VERSION:
            raise ValueError(f"{path} is no token file of version {VERSION}")
        count = int.from_bytes(header[COUNT_AT : COUNT_AT + 8], "little")
        held = int.from_bytes(header[SAMPLES_AT : SAMPLES_AT + 8], "little")
        words = np.fromfile(file, dtype="<u4", count=count)
        offsets = np.fromfile(file, dtype="<i8", count=held + 1)
    if len(words) != count or (held and len(offsets) != held + 1):
        raise ValueError(f"{path} ends after {len(words)} of {count} ids")
    return words, offsets


def read_tokens(path):
    """Ids of a token file, int64 [N]."""
    return (read_words(path)[0] & (TARGET_BIT - 1)).astype(np.int64)


def samples(path, length, count):
    """The first `count` samples, each cut to `length`: ids, int64 [T], and whether each is a loss target, bool [T]."""
    words, offsets = read_words(path)
    chosen = [words[a : min(b, a + length)] for a, b in zip(offsets[:count], offsets[1 : count + 1])]
    return [((w & (TARGET_BIT - 1)).astype(np.int64), w >= TARGET_BIT) for w in chosen]


def windows(path, length, count):
    """The first `count` whole windows of `length` ids, [count, length]."""
    ids = read_tokens(path)
    if len(ids) < count * length:
        raise ValueError(f"{path} has {len(ids)} ids, fewer than {count} windows of {length}")
    return ids[: count * length].reshape(count, length)
