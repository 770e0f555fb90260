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

    Example: `meddiff prepare data_manifests/ct.jsonl configs/synthesis_2d_ct.yaml`
    """
    begin(quiet)
    from meddiff.config_file import load_config
    from meddiff.data.manifest import Manifest
    from meddiff.data.store import Store
    from meddiff.engines.processes import join, mine

    join()
    settings = load_config(config, [*(set_ or ()), f"data.manifest={manifest}"])
    cases = Manifest.read(manifest)
    store = Store(settings.data)
    with progress(quiet) as bar:
        own = mine(cases.cases)
        task = bar.add_task("Preprocessing", total=len(own), note="")
        store.prepare(cases, own, lambda case: bar.advance(task))
    tell.print(f"{len(cases.cases)} cases ready in {store.folder}", highlight=False)
