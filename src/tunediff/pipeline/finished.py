"""Finished dictionaries: kept in work_dir/KEY under their content key, copied to where the pipeline reads them.

Apart from `training`, so that copying one needs no torch.
"""

import shutil
from pathlib import Path

from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import building, damage, read_manifest


def is_finished(folder: Path, key: str, checksums: bool = True) -> bool:
    """Return whether work_dir/KEY holds a whole (and, with `checksums`, unchanged) dictionary made for `key`."""
    store = folder / "crosscoder"
    try:
        manifest = read_manifest(store, "crosscoder", key)
    except TunediffError:
        return False
    return (folder / "history.parquet").is_file() and not damage(store, manifest, checksums)


def publish(name: str, folder: Path, key: str, out_dir: Path) -> None:
    """Copy a finished dictionary to out_dir/NAME/ and its history beside it; the manifest comes last.

    Raises
    ------
    TunediffError
        The dictionary is not there, or its name cannot be a file name.
    """
    target = out_dir / name
    if target.with_suffix("").name != name:
        raise TunediffError(f"{name}: a dictionary's name may hold no dot; rename it in the config")
    if not is_finished(folder, key):
        raise TunediffError(
            f"{folder}: the trained dictionary {name} is gone or damaged; delete {out_dir / 'trained.json'} and run "
            "snakemake again to train it"
        )
    with building(out_dir / f"{name}.history.parquet") as partial:
        shutil.copyfile(folder / "history.parquet", partial)
    with building(target) as partial:
        shutil.copytree(folder / "crosscoder", partial)
    for suffix in (".provenance.json", ".json"):
        with building(target.with_suffix(suffix)) as partial:
            shutil.copyfile((folder / "crosscoder").with_suffix(suffix), partial)
