"""`meddiff evaluate` of runs of synthesis: sets of samples, and sets with label maps, beside held-out images."""

import json
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from meddiff.cli.console import show, tell

if TYPE_CHECKING:
    from meddiff.engines.evaluate_cases import Method
    from meddiff.engines.run import Run


def synthesis(
    opened: "Run", others: list["Run"], output: Path, split: str, seed: int, device: str, synthetic: Path | None
) -> None:
    """Everything that is measured of a run of synthesis and of the runs beside it."""
    from rich.table import Table

    from meddiff.data.manifest import Manifest
    from meddiff.engines.checkpoint import write_atomic
    from meddiff.engines.evaluate import compare, refuse_unlike
    from meddiff.engines.evaluate_cases import method
    from meddiff.engines.tissues import tissues
    from meddiff.engines.trainer import choose_device
    from meddiff.report.figures import save_panels
    from meddiff.report.quality import plain, rows, write_quality, write_tissues

    where = choose_device(device)
    own = method("samples", opened, where)
    beside = [method(f"baseline {other.folder.name}", other, where) for other in others]
    for other in beside:
        refuse_unlike(own, other)
    manifest = opened.manifest()
    table = tissues(own.config, manifest, split, Manifest.read(synthetic)) if synthetic else {}
    with tell.status("Sampling and measuring"):
        result = compare(own.model, own.config, manifest, split, seed, beside)
    output.mkdir(parents=True, exist_ok=True)
    facts = {
        "split": split,
        "seed": seed,
        "weights": own.card.weights,
        "step": own.card.step,
        "sample": own.config.sample.model_dump(mode="json"),
        "encoder": result.encoder,
        "methods": plain(result.quality),
        "tissues": plain(table),
    }
    content = json.dumps({**result.numbers, **facts}, indent=2, allow_nan=False)
    write_atomic(output / "metrics.json", content.encode())
    write_quality(output / "methods.csv", result.quality)
    count = 32 if own.config.network.spatial_dims == 2 else 2
    panels = [
        *((name.capitalize(), images) for name, images in result.sets.items()),
        (f"Held-out ({split})", result.held_out),
        ("Nearest training", result.closest),
    ]
    every = max(1, len(result.samples) // count)
    shown = [(title, images[::every][:count]) for title, images in panels]
    save_panels(output / "comparison.png", shown, 4 if count == 32 else 1)
    known = {m.name: _facts(m, run) for m, run in zip((own, *beside), (opened, *others), strict=True)}
    titles, lines = rows(result.quality, known)
    quality = Table(*titles)
    for line in lines:
        quality.add_row(*line)
    show(quality)
    if table:
        write_tissues(output / "tissues.csv", table)
        by_tissue = Table("tissue", "real", "synthetic", "difference", "95 %", "training images differ by")
        for name, of in table.items():
            d = of["synthetic"]
            by_tissue.add_row(
                name,
                f"{d.real:.1f}",
                f"{d.synthetic:.1f}",
                f"{d.difference:+.1f}",
                f"{d.low:+.1f} to {d.high:+.1f}",
                f"{of['training'].difference:+.1f}",
            )
        show(by_tissue)
    tell.print(
        f"n = {result.numbers['n']}: sliced Wasserstein {result.numbers['sliced_wasserstein']:.4f}, of the training images "
        f"{result.numbers['sliced_wasserstein_train']:.4f}, ratio {result.numbers['ratio']:.3f}; {output / 'metrics.json'}",
        highlight=False,
    )


def _facts(method: "Method", run: "Run") -> dict[str, str]:
    """How large a model is, how long it was trained, and the share of copies that `meddiff audit -o RUN/audit` found."""
    count = sum(p.numel() for p in method.model.parameters())
    seconds = run.training_seconds()
    known = {
        "parameters": f"{count / 1e6:.2f} M",
        "trained": "unknown" if isnan(seconds) else f"{seconds / 60:.1f} min",
    }
    path = run.folder / "audit" / "audit.json"
    if path.is_file():
        audit = json.loads(path.read_text(encoding="utf-8"))
        if audit["weights"] == method.card.weights:
            known["copies"] = f"{audit['copies']['count']}/{audit['copies']['of']}"
    return known
