"""How a model lies on devices and processes: DDP or FSDP2, compiled or not, in which memory layout. Nothing else knows.

Everything here leaves what is computed as it is, to rounding. What only some runs need of torch is imported by them: it takes
seconds.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import deterministic

from meddiff.config import TrainConfig
from meddiff.diffusion.denoiser import Condition
from meddiff.engines.processes import world
from meddiff.errors import ConfigError
from meddiff.networks.blocks import ResBlock
from meddiff.networks.unet import UNet
from meddiff.tasks.task import Task

if TYPE_CHECKING:
    from torch.distributed.checkpoint.state_dict import StateDictOptions


def lay_out(model: nn.Module, train: TrainConfig, device: torch.device) -> None:
    """Put a model on its device, in the layout and the share that the config asks for; before an optimizer takes its weights.

    ConfigError where FSDP2 is asked for and the model has weights outside of its U-Nets, whose gradients nobody would reduce.
    """
    if train.channels_last:
        volumes = any(p.ndim == 5 for p in model.parameters())
        model.to(memory_format=torch.channels_last_3d if volumes else torch.channels_last)  # type: ignore[call-overload]
    networks = [m for m in model.modules() if isinstance(m, UNet)]
    if train.parallel == "fsdp" and world() > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        if sum(p.numel() for n in networks for p in n.parameters()) != sum(p.numel() for p in model.parameters()):
            raise ConfigError("train.parallel: fsdp shares out U-Nets, and this model is more than that. Use ddp.")
        mesh = init_device_mesh(device.type, (world(),))
        blocks = [m for network in networks for m in network.modules() if isinstance(m, ResBlock)]
        for module in (*blocks, *networks):  # inner ones first; all give their memory back after a forward pass
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    model.to(device)
    if train.compile:
        for network in networks:
            network.compile()


@contextmanager
def repeatable(train: TrainConfig, device: torch.device) -> Iterator[None]:
    """With `train.deterministic`, a GPU sums in the same order each time, as a CPU does anyway: the same bytes from the same run.

    torch raises RuntimeError at an operation that it cannot do so.
    """
    if not train.deterministic or device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it before the first matrix product
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads what was not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        deterministic.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]


class Objective(nn.Module):
    """What training makes smaller, as the forward pass of one module: DDP reduces the gradients of what it wraps."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(
        self, x0: Tensor, cond: Condition | None, sigma: Tensor, generators: Sequence[Generator]
    ) -> Tensor:  # (B,)
        return self.task.losses(self.model, x0, cond, sigma, generators)


def objective(model: nn.Module, task: Task, train: TrainConfig, device: torch.device) -> nn.Module:
    """The `Objective`, whose gradients are the mean over all processes after a backward pass."""
    own = Objective(model, task)
    if world() == 1 or train.parallel == "fsdp":
        return own
    return DistributedDataParallel(own, [device] if device.type == "cuda" else None, broadcast_buffers=False)


@contextmanager
def reduced(own: nn.Module, now: bool) -> Iterator[None]:
    """Reduce the gradients in the backward pass inside, or leave them here until one that does."""
    for module in own.modules():
        switch = getattr(module, "set_requires_gradient_sync", None)  # of FSDP2
        if switch is not None:
            switch(now, recurse=False)
    if now or not isinstance(own, DistributedDataParallel):
        yield
        return
    with own.no_sync():
        yield


def clipped(parameters: Iterable[nn.Parameter], most: float) -> float:
    """The norm of all gradients, which are scaled down to `most` where they are longer."""
    norm = nn.utils.clip_grad_norm_(parameters, most)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # of FSDP2: each process has a part


def _whole() -> "StateDictOptions":
    """A checkpoint does not show how many processes made it: whole tensors, on the CPU, by the names of the weights."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """The weights on the CPU; in the first process, and empty in the others. All processes must call it."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    return get_model_state_dict(model, options=_whole())


def whole_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state by the names of the weights; as `whole_weights`."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return get_optimizer_state_dict(model, optimizer, options=_whole())


def take_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put whole weights into a model, however it is laid out; RuntimeError where they are another network's."""
    from torch.distributed.checkpoint.state_dict import set_model_state_dict

    set_model_state_dict(model, dict(state), options=_whole())


def take_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put the state of `whole_optimizer` into an optimizer, each part in the memory layout of its weight."""
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    set_optimizer_state_dict(model, optimizer, state, options=_whole())
    for weight, parts in optimizer.state.items():
        for name, part in parts.items():
            if part.shape == weight.shape and part.stride() != weight.stride():
                parts[name] = torch.empty_like(weight).copy_(part)
