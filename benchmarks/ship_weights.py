"""Add weights to the package: ``python benchmarks/ship_weights.py ideal --run RUN [--bench FOLDER] ...``.

Without a run, those that are there get new figures, and new limits if some are given. With one, it takes
``best.safetensors`` of the training's folder, gives it a card and writes it to ``src/rismusic/weights``.
The page there is made from the cards of all weights. Figures are the misses of the row ``hybrid`` of a
benchmark.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from rismusic.benchmark.summary import read_table
from rismusic.nn.checkpoint import read_network, save_network
from rismusic.nn.run_folder import BEST
from rismusic.nn.spec import SHIPPED, TrainSpec, WeightsCard, card_of, weights_path
from rismusic.spec import limits

HEAD = """# Weights of the hybrid estimator

Files of `safetensors`, loaded with `rismusic.load_network("{first}")` and used by
`rismusic locate --method hybrid --weights {first}`. Scenes outside the conditions of a card are located
by SBL, and their warnings say so. Made by `python benchmarks/ship_weights.py`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=SHIPPED)
    parser.add_argument("--run", type=Path, help="folder of a training")
    parser.add_argument("--scenes", type=int, help="scenes seen; those of the log if not given")
    parser.add_argument("--hours", type=float, default=0.0)
    parser.add_argument("--device", default="")
    parser.add_argument("--limit", action="append", default=[])
    parser.add_argument("--bench", type=Path, help="folder of a benchmark with a row hybrid")
    given = parser.parse_args()
    path = weights_path(given.name)
    network, metadata = read_network(path if given.run is None else given.run / BEST)
    spec = TrainSpec(**json.loads(metadata["training"]))
    figures = {
        f"misses, K = {row.sources}, {row.snr_db:g} dB": row.misses.value
        for row in (read_table(given.bench / "results.csv") if given.bench else [])
        if row.method == "hybrid"
    }
    card = card_of(given.name, metadata).replace(figures=figures)
    if given.run is not None:
        epochs = int(metadata["epoch"]) + 1
        seen = given.scenes if given.scenes is not None else epochs * spec.scenes_per_epoch
        card = card.replace(name=given.name, scenes=seen, hours=given.hours, device=given.device)
    if given.run is not None or given.limit:
        card = card.replace(limits=tuple(given.limit))
    save_network(path, network, training=spec, card=card)
    write_page()


def write_page() -> None:
    """The cards of all weights that are there, one after the other."""
    parts = []
    there = [name for name in SHIPPED if weights_path(name).exists()]
    for name in there:
        path = weights_path(name)
        card = card_of(name, read_network(path)[1])
        data = path.read_bytes()
        parts.append(card_text(card, checksum=hashlib.sha256(data).hexdigest(), size=len(data)))
    page = weights_path(SHIPPED[0]).parent / "README.md"
    page.write_text("\n".join([HEAD.format(first=there[0]), *parts]), encoding="utf-8")


def card_text(card: WeightsCard, *, checksum: str, size: int) -> str:
    """A card as a Markdown table, as in ``weights/README.md``.

    Args:
        card: the card.
        checksum: SHA-256 of the file.
        size: size of the file in bytes.
    """
    system, (low, high) = card.system, limits(card.system.snr_db)
    panel, scene, hardware = system.panel, system.scene, system.hardware
    errors = [f"{name} {value:g}" for name, value in hardware.model_dump().items() if value]
    rows = {
        "panel": f"{panel.rows} x {panel.columns} elements, {panel.spacing_wavelengths:g} wavelengths apart, "
        f"trained at a wavelength of {panel.wavelength_m:g} m (others by scaling)",
        "link": f"{system.channel.kind}, {system.channel.antennas} antennas, {system.codebook.snapshots} "
        f"snapshots, {system.codebook.kind} codes, a new link in each scene",
        "sources": f"{' to '.join(map(str, dict.fromkeys(limits(system.sources))))}",
        "SNR": f"{low:g} to {high:g} dB",
        "volume": f"azimuth within {scene.azimuth_max_deg:g} deg, elevation within "
        f"{scene.elevation_max_deg:g} deg, {scene.range_min_m:g} to {scene.range_max_m:g} m",
        "hardware errors": ", ".join(errors) or "none",
        "share of R_samp (beta)": f"{card.beta:g}",
        "scenes seen": f"{card.scenes:,}",
        "training": f"{card.hours:.1f} hours on {card.device or 'a machine that was not named'}",
        **{name: f"{value:.3g}" for name, value in card.figures.items()},
        **{"limit" + " " * place: text for place, text in enumerate(card.limits)},
        "file": f"{size / 2**20:.1f} MiB, SHA-256 `{checksum}`",
        "licence": card.licence,
    }
    lines = [f"## {card.name}", "", "| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name.strip()} | {text} |" for name, text in rows.items())]) + "\n"


if __name__ == "__main__":
    main()
