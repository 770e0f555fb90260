"""`meddiff prepare`: preprocess ahead of training."""

from pathlib import Path
from typing import Annotated

import typer

from meddiff.cli.console import Quiet, begin, progress, tell


def command(
    manifest: Annotated[Path, typer.Argument(help="A manifest of `meddiff scan`.")],
    config: Annotated[Path, typer.Argument(help="The config that will be trained.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting, for instance data.axis=coronal.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Preprocess every case of a manifest into the cache; `meddiff train` does so by itself where it is missing.

    What is there already is checked, byte by byte, and made again only where it is damaged. Cases that cannot be read are
    named and left out, as they are in training, up to data.unreadable_limit.

    Example: `meddiff prepare data_manifests/ct.jsonl configs/synthesis_2d_ct.yaml`
    """
    begin(quiet)
    from collections.abc import Sequence

    from meddiff.config_file import load_config
    from meddiff.data.conditions import learn, stores
    from meddiff.data.manifest import Case, Manifest
    from meddiff.engines.processes import join, mine, total
    from meddiff.engines.quarantine import Quarantine

    join()
    settings = load_config(config, [*(set_ or ()), f"data.manifest={manifest}"])
    every = Manifest.read(manifest)
    kept = stores(settings, tuple(learn(settings, every).labels))
    with progress(quiet) as bar:
        task = bar.add_task("Preprocessing", note="")

        def prepared(cases: Sequence[Case]) -> int:
            bar.reset(task, total=len(cases) * len(kept))
            for store in kept:
                store.prepare(every, cases, lambda case: bar.advance(task), verify=True)
            return len(cases)

        ready = Quarantine(settings.data.unreadable_limit, len(every.cases)).readable(mine(every.cases), prepared)
    tell.print(f"{total(ready):.0f} of {len(every.cases)} cases ready in {kept[0].folder}", highlight=False)
