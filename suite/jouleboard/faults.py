"""What an error in a worker means: which kind of failure it is, or that a file could not be written, which is none.

Errors of libraries have no class of their own for most of this, so some are known by their words only.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from jouleboard import protocol
from jouleboard.errors import FailureCode, JouleboardError, StorageError

MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED",
                "CUDNN_STATUS_ALLOC_FAILED", "OutOfMemory")
"""torch's allocators, mmap, the C++ library, cuBLAS and cuDNN. A class of torch's is known by its name, without importing it."""
NATIVE_WORDS = (*MEMORY_WORDS, "memory allocation of")
"""What native code prints before it aborts for want of memory; the last is Rust's, of tokenizers and safetensors."""
KERNEL_WORDS = ("not implemented for", "no kernel image", "not compiled with", "not supported on this device",
                "could not run 'aten::", "illegal instruction")
"""What torch says when a kernel is missing for the device, the dtype or the architecture."""
STORAGE_WORDS = ("no space left on device", "read-only file system", "disk quota exceeded", "os error 28", "os error 30",
                 "os error 122")
"""What libraries say that keep the kernel's error in their text: safetensors, torch's zip writer."""
STORAGE_NUMBERS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO}
"""Only writing fails so; a disk with errors is as little the variant's fault."""
MEMORY_REMEDY = ("use a smaller batch or model, a device with more memory, or a higher --worker-memory where one is given")
KERNEL_REMEDY = "choose a recipe whose kernels exist for this device, or install the package that holds them"
STORAGE_REMEDY = "free space or make the folder writable, then run the same command again: what is finished is kept"


def failed(error: Exception) -> protocol.Failed:
    """Say of an error what kind of failure it is, and what to do.

    Args:
        error: what ended the work.
    """
    if storage(error):
        remedy = error.remedy if isinstance(error, JouleboardError) else None
        return protocol.Failed(reason=_words(error), remedy=remedy or STORAGE_REMEDY, storage=True, file=_file(error))
    if isinstance(error, JouleboardError):
        return protocol.Failed(reason=error.problem, remedy=error.remedy, code=error.kind)
    code = kind(error)
    remedy = {"out-of-memory": MEMORY_REMEDY, "unsupported": KERNEL_REMEDY}.get(code)
    return protocol.Failed(reason=_words(error), remedy=remedy, code=code)


def kind(error: Exception) -> FailureCode:
    """Tell the kind of failure that an error of a library is."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM) or (
        isinstance(error, RuntimeError | OSError) and any(word.lower() in text for word in MEMORY_WORDS)
    ) or type(error).__name__ == "OutOfMemoryError":
        return "out-of-memory"
    if isinstance(error, NotImplementedError | ImportError) or (
        isinstance(error, RuntimeError) and any(word in text for word in KERNEL_WORDS)
    ):
        return "unsupported"
    # A header or a length that does not fit: a library's class, known by its name like torch's above.
    return "data" if type(error).__name__ == "SafetensorError" else "error"


def native_memory(text: str) -> bool:
    """Tell whether native code that has aborted said that it got no memory.

    Args:
        text: the end of what the process printed.
    """
    return any(word.lower() in text.lower() for word in NATIVE_WORDS)


def storage(error: Exception) -> bool:
    """Tell whether a file could not be written."""
    if isinstance(error, StorageError):
        return True
    if isinstance(error, JouleboardError):
        return False
    if isinstance(error, OSError):
        if error.errno in STORAGE_NUMBERS:
            return True
        if error.errno in {errno.EACCES, errno.EPERM}:
            # Reading a file that may be read is not refused, so it was written; one that may not be read is bad data.
            file = _file(error)
            return file is not None and (not Path(file).exists() or os.access(file, os.R_OK))
    text = str(error).lower()
    return any(word in text for word in STORAGE_WORDS)


def _words(error: Exception) -> str:
    if isinstance(error, JouleboardError):
        return error.problem
    return f"{type(error).__name__}: {error}"


def _file(error: Exception) -> str | None:
    if isinstance(error, JouleboardError):
        return error.file
    named = error.filename2 or error.filename if isinstance(error, OSError) else None
    return None if named is None else os.fsdecode(named) if isinstance(named, str | bytes) else str(named)
