#!/usr/bin/env python3
"""Writes `assets/o200k_base.bin`, the vocabulary that `src/providers/tokenizer.rs` reads.

    python3 assets/make-vocabulary.py PATH/TO/o200k_base.tiktoken

The input is the file of OpenAI's tiktoken, as the crate tiktoken-rs ships it in its `assets`. The
output is a raw deflate stream of: the number of tokens (u32, little endian); for each token in byte
order, the number of bytes that it shares with the one before (one byte each); then the numbers of
added bytes (one byte each); the ranks (three planes: low, middle and high bytes); the added bytes.
"""

import base64
import os.path
import pathlib
import struct
import sys
import zlib

OUTPUT = pathlib.Path(__file__).resolve().parent / "o200k_base.bin"


def main(path):
    lines = (line.split() for line in pathlib.Path(path).read_text().splitlines())
    tokens = sorted((base64.b64decode(token), int(rank)) for token, rank in lines)
    if sorted(rank for _, rank in tokens) != list(range(len(tokens))):
        sys.exit("the ranks have gaps")
    shared, added, suffixes, before = bytearray(), bytearray(), bytearray(), b""
    for token, _ in tokens:
        common = len(os.path.commonprefix([before, token]))
        shared.append(common)
        added.append(len(token) - common)
        suffixes += token[common:]
        before = token
    ranks = b"".join(struct.pack("<I", rank) for _, rank in tokens)
    plain = struct.pack("<I", len(tokens)) + shared + added
    plain += ranks[0::4] + ranks[1::4] + ranks[2::4] + suffixes
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    OUTPUT.write_bytes(deflate.compress(plain) + deflate.flush())


main(*sys.argv[1:])
