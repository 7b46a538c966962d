"""CRC-32 of packed bytes, as in gzip and zip.

ISA-L's takes a ninth of zlib's time, since it uses the processor's carry-less multiplication; the package ``isal`` has
wheels for the usual platforms. Elsewhere zlib's is used. Both give the same numbers.
"""

try:
    from isal.isal_zlib import crc32

    IS_FAST = True
except ImportError:
    from zlib import crc32

    IS_FAST = False

__all__ = ["IS_FAST", "crc32"]
