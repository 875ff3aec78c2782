"""nova delta: what makes one file of another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from nova.cli.output import Json, print_facts, print_json
from nova.delta import LEVEL_MAX, level_for
from nova.delta.files import decode_file, encode_file, stat_file

delta = typer.Typer(
    help="Make, apply and look into deltas between files.",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)

Base = Annotated[Path, typer.Argument(help="The old file.", show_default=False)]
DeltaFile = Annotated[Path, typer.Argument(metavar="DELTA", help="The delta.", show_default=False)]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Threads; as many as there are processors if not given.", show_default=False)
]


@delta.command("encode")
def delta_encode(
    base: Base,
    new: Annotated[Path, typer.Argument(help="The new file.", show_default=False)],
    out: DeltaFile,
    level: Annotated[int, typer.Option(min=0, max=LEVEL_MAX, help="zstd's level; 0: no compression.")] = 1,
    link_bps: Annotated[
        float | None, typer.Option(help="Choose the level for a link of so many bits a second.", show_default=False)
    ] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Write what makes NEW of BASE to DELTA.

    Images of memory and disks, snapshots, any files: what is equal, zero, moved or nearly the same costs little.

    Example: nova delta encode monday.img tuesday.img tuesday.delta
    """
    if link_bps is not None:
        level = level_for(link_bps)
    size, image = encode_file(base, new, out, level=level, workers=workers), new.stat().st_size
    if as_json:
        print_json({"delta_bytes": size, "image_bytes": image, "ratio": image / size, "level": level})
    else:
        print(f"{out}: {size:,} bytes for {image:,}, {image / size:,.1f} times smaller")


@delta.command("decode")
def delta_decode(
    base: Base,
    patch: DeltaFile,
    new: Annotated[Path, typer.Argument(help="Where the new file goes.", show_default=False)],
    size_max: Annotated[int, typer.Option(min=0, help="Make no file of more bytes.")] = 1 << 40,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Write what DELTA makes of BASE to NEW, which is whole under its name or not there.

    Example: nova delta decode monday.img tuesday.delta tuesday.img
    """
    size = decode_file(base, patch, new, size_max=size_max, workers=workers)
    print_json({"image_bytes": size}) if as_json else print(f"{new}: {size:,} bytes")


@delta.command("stat")
def delta_stat(patch: DeltaFile, as_json: Json = False) -> None:
    """Show what a delta consists of, without its base.

    Example: nova delta stat tuesday.delta
    """
    found = stat_file(patch)
    if as_json:
        print_json(msgspec.to_builtins(found) | {"ratio": found.ratio})
        return
    print_facts(
        {
            "image": f"{found.image_bytes:,} bytes",
            "base": f"{found.base_bytes:,} bytes",
            "delta": f"{found.delta_bytes:,} bytes, {found.ratio:,.1f} times smaller",
            "spans": found.spans,
            "frames": found.frames,
            **{f"  {kind} pages": count for kind, count in found.pages.items() if count},
            "tokens": f"{found.tokens_raw:,} bytes, stored as {found.tokens_stored:,}",
            "literals": f"{found.literals_raw:,} bytes, stored as {found.literals_stored:,}",
            "from": " ".join(found.base_identities[:4]),
            "to": " ".join(found.identities[:4]),
        }
    )
