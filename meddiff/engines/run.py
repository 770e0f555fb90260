"""The run folder: one place that holds all there is about a trained model, and can be copied as it is.

config.yaml, manifest.jsonl, weights.safetensors (the EMA weights), model.json, checkpoints/, log.jsonl, quarantine.jsonl
(cases that turned out unreadable), previews/, tensorboard/
"""

import errno
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from meddiff.config import Config
from meddiff.config_file import load_config
from meddiff.data.conditions import stores
from meddiff.data.latents import latents_path
from meddiff.data.manifest import Manifest
from meddiff.diffusion.compose import latent
from meddiff.engines.card import Card, build_model
from meddiff.engines.checkpoint import write_atomic
from meddiff.errors import RunError
from meddiff.networks.autoencoder import Autoencoder


class Run:
    """Paths of a run folder, and what is in them."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config_path = self.folder / "config.yaml"
        self.manifest_path = self.folder / "manifest.jsonl"
        self.weights_path = self.folder / "weights.safetensors"
        self.card_path = self.folder / "model.json"
        self.checkpoints = self.folder / "checkpoints"
        self.log_path = self.folder / "log.jsonl"
        self.quarantine_path = self.folder / "quarantine.jsonl"
        self.lock_path = self.folder / ".lock"
        self.previews = self.folder / "previews"
        self.tensorboard = self.folder / "tensorboard"
        self.autoencoder = self.folder / "autoencoder"  # of a model of latents: what decodes them

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """An existing run; RunError where the folder is none."""
        run = cls(folder)
        if not run.config_path.is_file():
            raise RunError(
                f"{run.folder}: is not a run folder (no config.yaml). Give a folder that `meddiff train` wrote."
            )
        return run

    def refuse_if_taken(self) -> None:
        """RunError where the folder holds anything already."""
        if self.config_path.exists():
            raise RunError(
                f"{self.folder}: holds another run. Choose a new folder with -o, or go on with that run by --resume."
            )
        if self.folder.is_dir() and any(path != self.lock_path for path in self.folder.iterdir()):
            raise RunError(f"{self.folder}: is not empty and is not a run. Choose a new or an empty folder with -o.")
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{self.folder}: is a file, a folder is needed. Choose another name with -o.")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only process that writes this run; RunError where another one is."""
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        with self.lock_path.open("a") as file:
            try:
                # this kind of lock is not inherited by loader processes, which may outlive a killed run for seconds
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as e:
                if e.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                raise RunError(
                    f"{self.folder}: another process is training this run. Wait until it ends, or choose another folder with -o."
                ) from e
            yield

    def begin(self, config: Config, manifest: Manifest, step: int = 0) -> None:
        """Write what a run starts with, or goes on with from a step: what is noted of later ones is dropped."""
        for left in (*self.folder.glob(".*.partial"), *self.checkpoints.glob(".*.partial")):
            left.unlink(missing_ok=True)
        for folder in (self.folder, self.checkpoints, self.previews, self.tensorboard):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.config_path, config.dump().encode())
        manifest.save_copy(self.manifest_path)
        if self.log_path.exists():
            kept = [line for line in self.log_path.read_bytes().splitlines(keepends=True) if _noted_by(line, step)]
            write_atomic(self.log_path, b"".join(kept))

    def config(self) -> Config:
        """The config of the run."""
        return load_config(self.config_path)

    def manifest(self) -> Manifest:
        """The run's copy of the manifest."""
        return Manifest.read(self.manifest_path)

    def save_model(self, weights: Mapping[str, Tensor], card: Card) -> None:
        """The weights and the card that describes them, in this order: the card's hash tells whether both belong together."""
        content = save({name: value.detach().cpu().contiguous() for name, value in weights.items()})
        card = card.model_copy(update={"weights": hashlib.sha256(content).hexdigest()})
        write_atomic(self.weights_path, content)
        write_atomic(self.card_path, card.model_dump_json(indent=2).encode())

    def load_model(self, device: torch.device) -> tuple[nn.Module, Card]:
        """The denoiser, ready to sample from, and its card; RunError where the weights are missing or not the card's."""
        card = Card.read(self.card_path)
        try:
            found = hashlib.sha256(self.weights_path.read_bytes()).hexdigest()
            if found != card.weights:
                raise RunError(
                    f"{self.weights_path}: has SHA-256 {found[:12]}..., model.json says {card.weights[:12]}.... "
                    "One of them is from another run or damaged; copy the folder again."
                )
            self._refuse_larger(card)
            model = self._built(card)
            model.load_state_dict(load_file(self.weights_path))
        except (OSError, SafetensorError, RuntimeError) as e:
            raise RunError(f"{self.weights_path}: cannot be loaded ({e}). Copy the run folder again.") from e
        if card.latents is not None:
            model = latent(model, self._decoder(card), card.latents.mean, card.latents.std)
        return model.to(device).eval().requires_grad_(False), card

    def forget_cache(self) -> int:
        """Delete the preprocessed volumes that this run was trained on, which are made again when needed; how many."""
        config, card, cases = self.config(), Card.read(self.card_path), self.manifest().cases
        kept = stores(config, tuple(card.labels))
        if card.latents is not None:
            for case in cases:
                latents_path(kept[0], case, card.latents.autoencoder).unlink(missing_ok=True)
        return sum(store.forget(case) for store in kept for case in cases)

    def training_seconds(self) -> float:
        """How long the training took, all sessions of it together, from the rates in log.jsonl; NaN without a log."""
        if not self.log_path.is_file():
            return math.nan
        seconds, last = 0.0, 0
        for line in self.log_path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            seconds += max(0, record["step"] - last) / record["steps_per_s"]
            last = record["step"]
        return seconds

    def _refuse_larger(self, card: Card) -> None:
        """RunError where the config is of more weights than there are: they would be made before that is noticed."""
        with torch.device("meta"):
            model = self._built(card)
        needed = sum(value.numel() * value.element_size() for value in model.state_dict().values())
        found = self.weights_path.stat().st_size
        if needed > found:
            raise RunError(
                f"{self.weights_path}: has {found} bytes, the network of config.yaml needs {needed}. One of them is from another "
                "run; copy the folder again."
            )

    def _built(self, card: Card) -> nn.Module:
        return build_model(self.config(), card.sigma_data, tuple(card.labels), card.classes, card.latents)

    def _decoder(self, card: Card) -> Autoencoder:
        """The autoencoder of a model of latents; RunError where it is not the one the model was trained with."""
        run = Run.open(self.autoencoder)
        if run.config().task != "autoencoder":
            raise RunError(f"{run.folder}: is no autoencoder. Copy the run folder again.")
        model, own = run.load_model(torch.device("cpu"))
        assert card.latents is not None
        assert isinstance(model, Autoencoder)
        if (own.weights, model.factor, model.latent_channels) != (
            card.latents.autoencoder, card.latents.factor, len(card.latents.mean)
        ):  # fmt: skip
            raise RunError(
                f"{run.folder}: is another autoencoder than the model was trained with. Copy the run folder again."
            )
        return model


def _noted_by(line: bytes, step: int) -> bool:
    """Whether a line of the log is whole and of no later step."""
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError):
        return False
