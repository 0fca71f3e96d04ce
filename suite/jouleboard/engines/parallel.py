"""Several worker processes that compute one variant together: tensor parallelism through transformers, a device for each.

Every rank gets every request, and all must do the same steps: each forward pass holds collective operations, in which a rank
waits for the others. So whatever depends on a clock, on free memory or on a file is decided by one and told to all::

    group = join(request.ranks, request.device)            # one rank alone: a group that never waits
    while group.decide(time.perf_counter() < end_s):       # the answer of rank 0, on every rank
        model(ids)

What was run: two processes on a CPU, over gloo. The way over several GPUs (nccl) was never run; `place.launch` is what is tested
of it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import distributed

from jouleboard.engines.inspect import held_here
from jouleboard.engines.place import RankPlace, launch
from jouleboard.errors import RecipeError, UnitError
from jouleboard.journal import Answer
from jouleboard.runtime import PLAIN, Runtime

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

TIMEOUT = dt.timedelta(minutes=30)
"""A rank that waits longer for the others gives up. The driver ends all ranks as soon as one has died or failed, so this is for
ranks whose driver hangs; loading large weights from a slow disk must fit."""
T = TypeVar("T")


class Group:
    """The ranks that compute a variant, seen from one of them. Without arguments: one rank alone."""

    def __init__(self, place: RankPlace | None = None, control: distributed.ProcessGroup | None = None) -> None:
        """Keep the place.

        Args:
            place: of this rank.
            control: group of the same ranks for what is told between hosts, apart from what devices exchange.
        """
        self.rank = 0 if place is None else place.rank
        self.world = 1 if place is None else place.world
        self._control = control

    @property
    def several(self) -> bool:
        """Whether there is more than one rank."""
        return self.world > 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that decides and writes."""
        return self.rank == 0

    def decide(self, mine: bool) -> bool:  # noqa: FBT001 - `decide(now_s < end_s)` reads as a question
        """Return rank 0's answer, on every rank. Over gloo on two busy cores it takes 0.4 ms."""
        if not self.several:
            return mine
        answer = torch.tensor([mine], dtype=torch.uint8)
        distributed.broadcast(answer, src=0, group=self._control)
        return bool(answer.item())

    def told(self, mine: T) -> T:
        """Return rank 0's object, on every rank."""
        if not self.several:
            return mine
        box = [mine]
        distributed.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def gather(self, mine: T) -> list[T]:
        """Return the objects of all ranks in their order, on every rank."""
        if not self.several:
            return [mine]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, mine, group=self._control)
        return found

    def require_same(self, what: str, mine: object) -> None:
        """Make sure that all ranks came to the same.

        Args:
            what: for the message.
            mine: this rank's; compared by the digest of its text.

        Raises:
            UnitError: one differs; every rank raises it.
        """
        if not self.several:
            return
        digests = self.gather(hashlib.sha256(repr(mine).encode()).hexdigest())
        others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise UnitError(f"rank {others[0]} of {self.world} has other {what} than rank 0", field="ranks",
                            remedy="see the logs of all ranks, or compute the variant on one device")


def join(place: RankPlace | None, device: str) -> Group:
    """Join the group of a variant's ranks, and wait until all are there.

    Args:
        place: this rank's place; None: it computes alone, and nothing is joined.
        device: its device.

    Raises:
        UnitError: the device is not there, or the others do not come.
    """
    if place is None:
        return Group()
    if distributed.is_initialized():
        raise UnitError("this process belongs to a group of ranks already", field="ranks",
                        remedy="this is a bug in Jouleboard: please report it")
    how = launch(place, device, os.environ)
    os.environ.update(how.environment)
    if how.backend == "nccl":
        _take(torch.device(device))
    try:
        store = distributed.FileStore(place.rendezvous, place.world)  # type: ignore[attr-defined] # documented, not listed
        distributed.init_process_group(
            how.backend, store=store, rank=place.rank, world_size=place.world, timeout=TIMEOUT,
            device_id=torch.device(device) if how.backend == "nccl" else None,
        )
        control = distributed.new_group(backend="gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UnitError(f"cannot join the other ranks: {_first_line(error)}", field="ranks",
                        remedy="see the logs of all ranks; the loopback interface must be up (`ip link set lo up`)") from error
    return Group(place, control)


def _take(device: torch.device) -> None:
    """Bind this process to its GPU.

    Raises:
        UnitError: torch does not see so many.
    """
    seen = torch.cuda.device_count()
    if device.index is None or device.index >= seen:
        raise UnitError(f"{device} is not there: torch sees {seen} GPU(s)", field="CUDA_VISIBLE_DEVICES",
                        remedy="let CUDA_VISIBLE_DEVICES name all devices of the profile, or leave it unset")
    torch.cuda.set_device(device)


def require_dense(weight_bits: int | None, place: RankPlace | None) -> None:
    """Refuse recipes whose tensors cannot be split.

    Args:
        weight_bits: of the recipe's coarsest quantiser; None where nothing is quantised.
        place: of this rank; None: it computes alone.

    Raises:
        RecipeError: the recipe quantises, and there are several ranks.
    """
    if place is not None and weight_bits is not None:
        raise RecipeError(f"quantised weights are not split over {place.world} devices here", field="steps",
                          remedy="run this recipe with a profile of one device; dense and depth-pruned variants run on several")


def require_plain(runtime: Runtime, place: RankPlace | None) -> None:
    """Refuse recipes that change how the model is run, where several ranks run it.

    Args:
        runtime: of the recipe.
        place: of this rank; None: it computes alone.

    Raises:
        RecipeError: the recipe has steps of stage `runtime`, and there are several ranks.
    """
    if place is not None and runtime != PLAIN:
        raise RecipeError(f"other caches, compiled passes and drafts were not tried over {place.world} devices", field="steps",
                          remedy="run this recipe with a profile of one device")


def load(folder: str, dtype: torch.dtype, group: Group) -> PreTrainedModel:
    """Load this rank's share of the dense weights, by the plan that transformers has for the architecture.

    Args:
        folder: weights and configuration.
        dtype: of the weights.
        group: all ranks call this at the same time.

    Raises:
        UnitError: the model cannot be split over so many ranks, or was not.
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - takes seconds to import
    from transformers.distributed import DistributedConfig  # noqa: PLC0415

    _require_divisible(AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config(), group.world)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False,
            distributed_config=DistributedConfig(tp_size=group.world, tp_plan="auto"),
        )
    except ValueError as error:
        raise UnitError(f"transformers does not split this model: {_first_line(error)}", field="ranks", kind="unsupported",
                        remedy="run this model with a profile of one device") from error
    require_split(model, group)
    return model


def _require_divisible(config: Any, world: int) -> None:
    heads = int(config.num_attention_heads)
    for name, count in (("attention heads", heads), ("key-value heads", int(getattr(config, "num_key_value_heads", None) or heads))):
        if count % world:
            raise UnitError(f"{count} {name} cannot be shared by {world} devices", field="ranks", kind="unsupported",
                            remedy="declare a profile whose count divides the model's heads")


def shares(model: nn.Module, group: Group, *, layers_only: bool = False) -> list[float]:
    """Return which share of the weights' bytes each rank holds. What all hold counts for each, so the sum is above 1.

    Args:
        model: this rank's part of it.
        group: all ranks call this at the same time.
        layers_only: leave out the input embedding and the output head.
    """
    apart = {id(weight) for weight in _ends(model)} if layers_only else set()
    weights = [weight for weight in model.parameters() if id(weight) not in apart]
    here = sum(held_here(weight).numel() * weight.element_size() for weight in weights)
    return group.gather(here / sum(weight.numel() * weight.element_size() for weight in weights))


def _ends(model: nn.Module) -> Iterator[nn.Parameter]:
    for find in ("get_input_embeddings", "get_output_embeddings"):
        module = getattr(model, find)()
        if module is not None:
            yield from module.parameters()


def require_split(model: nn.Module, group: Group) -> None:
    """Make sure that a loaded model is really split: no rank holds most of the layers' weights.

    Raises:
        UnitError: a rank holds more than half-way between its even share and the whole.
    """
    most = (1 + 1 / group.world) / 2
    found = shares(model, group, layers_only=True)
    if max(found) > most:
        raise UnitError(f"the layers are not split over {group.world} devices: rank {found.index(max(found))} holds "
                        f"{max(found):.0%} of their weights", field="ranks", kind="unsupported",
                        remedy="transformers has no plan for this architecture: run it with a profile of one device")


def claim(model: nn.Module, group: Group) -> tuple[str, ...]:
    """Say which share of the weights each rank holds; nothing where there is one rank alone."""
    if not group.several:
        return ()
    return (f"{group.world} devices hold {', '.join(f'{share:.1%}' for share in shares(model, group))} of the weights",)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


class Keeps(Protocol):
    """Keeps computed batches: a `journal.Journal`, or one that several ranks share."""

    def answers(self, batch: int, asked_sha256: str) -> tuple[Answer, ...] | None:
        """Return what a batch gave, or None where it must be computed."""

    def append(self, asked_sha256: str, answers: Sequence[Answer]) -> None:
        """Keep the next batch."""

    def close(self) -> None:
        """Make sure that everything is on the disk."""


class SharedJournal:
    """A journal that rank 0 alone reads and writes: what it holds, no rank computes, so that all do the same steps."""

    def __init__(self, own: Keeps | None, group: Group) -> None:
        """Keep both.

        Args:
            own: the journal on rank 0, None on the others.
            group: all ranks ask for the same batches at the same time.
        """
        self._own = own
        self._group = group

    def answers(self, batch: int, asked_sha256: str) -> tuple[Answer, ...] | None:
        """Return what a batch gave, or None where it must be computed: the same on every rank."""
        return self._group.told(None if self._own is None else self._own.answers(batch, asked_sha256))

    def append(self, asked_sha256: str, answers: Sequence[Answer]) -> None:
        """Keep the next batch."""
        if self._own is not None:
            self._own.append(asked_sha256, answers)

    def close(self) -> None:
        """Make sure that everything is on the disk."""
        if self._own is not None:
            self._own.close()


def shared(open_own: Callable[[], Keeps], group: Group) -> Keeps:
    """Return the journal of a group: on rank 0 its own is opened, and where there are several ranks they share it."""
    if not group.several:
        return open_own()
    return SharedJournal(open_own() if group.first else None, group)
