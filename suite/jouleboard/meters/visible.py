"""The environment in which Zeus finds GPUs: set right in the meter's own process, before Zeus is imported.

CUDA takes UUIDs in `CUDA_VISIBLE_DEVICES`, whole or their beginnings; Zeus (0.16) takes numbers alone and fails at a UUID::

    CUDA_VISIBLE_DEVICES=GPU-8932f937,0   becomes   CUDA_VISIBLE_DEVICES=1,0
"""

from __future__ import annotations

import os

from jouleboard.errors import MeterError

VARIABLE = "CUDA_VISIBLE_DEVICES"
_UUID = "GPU-"
_DAEMON = "ZEUSD_"
_REMEDY = "name each GPU by its whole UUID (nvidia-smi -L) or by its number"


def forget_daemon() -> None:
    """Remove what points Zeus to a daemon of its own.

    A daemon would read the counters for us: another process, perhaps on another machine, with GPUs numbered its own way.
    """
    for name in [name for name in os.environ if name.startswith(_DAEMON)]:
        del os.environ[name]


def number_gpus() -> None:
    """Put NVML's numbers in the place of UUIDs in `CUDA_VISIBLE_DEVICES`; without UUIDs nothing is touched.

    Raises:
        MeterError: a UUID names no GPU, or its beginning several; or NVML does not tell UUIDs.
    """
    words = [word.strip() for word in os.environ.get(VARIABLE, "").split(",")]
    if any(word.startswith(_UUID) for word in words):
        uuids = _uuids()
        os.environ[VARIABLE] = ",".join(_number(word, uuids) if word.startswith(_UUID) else word for word in words)


def _number(word: str, uuids: list[str]) -> str:
    found = [index for index, uuid in enumerate(uuids) if uuid.startswith(word)]
    if len(found) != 1:
        raise MeterError(f"{VARIABLE}: {word!r} names {len(found) or 'none'} of the {len(uuids)} GPUs here", field=VARIABLE,
                         remedy=_REMEDY)
    return str(found[0])


def _uuids() -> list[str]:
    """Return the UUIDs by NVML's numbers; of a GPU that does not tell its own, an empty one."""
    import pynvml  # noqa: PLC0415 - only where a UUID is to be found

    def ask(index: int) -> str:
        try:
            return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
        except pynvml.NVMLError:
            return ""

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise MeterError(f"{VARIABLE} holds a UUID, and NVML does not start: {error}", field=VARIABLE,
                         remedy="run `jouleboard doctor` to see what can be measured here") from error
    try:
        return [ask(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise MeterError(f"{VARIABLE} holds a UUID, and NVML lists no GPU: {error}", field=VARIABLE, remedy=_REMEDY) from error
    finally:
        pynvml.nvmlShutdown()
