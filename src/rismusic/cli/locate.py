"""``rismusic locate``: positions of the sources in a recording, with error bars."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, ClassVar, TypedDict

from pydantic import Field
from rich.table import Table

from rismusic.cli.command import Command, Option, SafeConsole, note, number_table, progress_bar, resumable
from rismusic.errors import InputError, in_file
from rismusic.files import TABLE_ENDINGS, read_small, writing
from rismusic.interruption import interrupts_held
from rismusic.parallel import check_workers, default_division, run_all, usable_cores
from rismusic.partial import PartialFile, part_files
from rismusic.registry import CLASSICAL_METHODS, ESTIMATORS, SPECTRA, load_plugins
from rismusic.spec import MAX_POSE_STD_DEG, MAX_POSE_STD_M, Count, FigureWidth, LocateSpec
from rismusic.text import command_line, counted, csv_text, decimals_of, plain, spans
from rismusic.version import __version__

if TYPE_CHECKING:
    from rismusic.estimation.estimate import Estimate
    from rismusic.io import Recording, RecordingFile
    from rismusic.io.calibration import PanelCalibration
    from rismusic.metrics import Truth
    from rismusic.report import LocateReport


# Bytes that are read at a time.
_PIECE = 2**20


class PartialOutput(PartialFile):
    """A table of positions, .csv or .json, under construction; see :class:`~rismusic.partial.PartialFile`."""

    def __init__(
        self,
        path: Path,
        recording: Path,
        settings: Mapping[str, object],
        *,
        name: str,
        resume: bool,
        overwrite: bool,
        columns: Sequence[str],
    ) -> None:
        super().__init__(
            path, "locate", recording, settings, resume=resume, overwrite=overwrite, columns=columns
        )
        self._head = {"version": __version__, "recording": name}
        with contextlib.ExitStack() as stack:
            stack.push(self)
            if not self.is_complete:
                with writing(self.part):
                    self._file = stack.enter_context(self.part.open("r+b"))
                    self._continue()
            stack.pop_all()

    def append(self, estimate: Estimate) -> None:
        """Write the estimates of the next scenes and wait until they are on the disk."""
        first = self.progress.scenes
        self._write(
            self._text(estimate, first),
            scenes=first + len(estimate),
            sources=self.progress.sources + int(estimate.n_sources.sum()),
        )

    def finish(self) -> None:
        """Complete the file and give it its name."""
        with writing(self.path):
            if self.path.suffix == ".json":
                self._file.write(b"\n ]\n}\n")
            self._file.close()
        self.publish()

    def __enter__(self) -> PartialOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After a failed write, closing tries to write the rest again.
        with contextlib.suppress(OSError, AttributeError):  # or it could not be opened
            self._file.close()
        super().__exit__(kind, error, trace)

    def _continue(self) -> None:
        """Write the head of a new table; check what is complete of an earlier one, and drop the rest."""
        self._digest = hashlib.sha256()
        if not self.scenes:
            head = csv_text(self.progress.columns, [])
            if self.path.suffix == ".json":
                head = json.dumps(self._head, indent=1)[:-2] + ',\n "scenes": ['
            self._write(head)
            return
        while chunk := self._file.read(min(_PIECE, self.progress.bytes - self._file.tell())):
            self._digest.update(chunk)
        if self._digest.hexdigest() != self.progress.digest:
            raise self.changed()
        self._file.truncate(self.progress.bytes)

    def _write(self, text: str, **progress: int) -> None:
        content = text.encode()
        # What is on the disk is what the progress says, whenever Ctrl-C comes.
        with interrupts_held():
            with writing(self.part):
                self._file.write(content)
                self._file.flush()
                os.fsync(self._file.fileno())
            self._digest.update(content)
            self.keep(digest=self._digest.hexdigest(), bytes=self._file.tell(), **progress)

    def _text(self, estimate: Estimate, first: int) -> str:
        from rismusic.estimation.table import position_rows, scene_records

        if self.path.suffix == ".csv":
            rows = position_rows(estimate, first_scene=first)
            return csv_text(self.progress.columns, map(asdict, rows), header=False)
        records = scene_records(estimate, first_scene=first)
        texts = [textwrap.indent(json.dumps(record, indent=1, allow_nan=False), "  ") for record in records]
        return (",\n" if first else "\n") + ",\n".join(texts)


class PoseStdOptions(TypedDict):
    """Accuracy of the poses of several panels, as options of :func:`rismusic.room.locate_room`."""

    pose_std_deg: float
    pose_std_m: float


@dataclass(frozen=True)
class Block:
    """Scenes that are located together, from number ``first`` on, as each panel recorded them."""

    first: int
    recordings: list[Recording]

    def __str__(self) -> str:
        return f"scenes {self.first} to {self.first + len(self.recordings[0]) - 1}"


def locate_in_worker(
    block: Block,
    *,
    spec: LocateSpec,
    device: str,
    calibration: PanelCalibration | None,
    pose_std: PoseStdOptions,
    files: Sequence[Path],
    single_thread: bool,
    one_scene: bool,
) -> Estimate:
    """Locate one block of these files, perhaps in another thread or process.

    For a recording of one scene, loading Numba takes longer than it saves.
    """
    from rismusic.devices import one_thread
    from rismusic.estimation.maximum_likelihood import without_compiled_fits
    from rismusic.hybrid import locate

    load_plugins(spec.plugins)
    with ExitStack() as stack:
        if single_thread:
            stack.enter_context(one_thread())
        if one_scene:
            stack.enter_context(without_compiled_fits())
        if len(block.recordings) > 1:
            from rismusic.room import locate_room

            try:
                return locate_room(block.recordings, spec=spec, device=device, **pose_std)
            except InputError as error:
                of = re.fullmatch(r"recordings\[(\d+)\]\.?(.*)", error.field)
                if of is None:
                    raise
                raise InputError(str(files[int(of[1])]), f"{of[2]}: {error.problem}") from None
        return locate(block.recordings[0], spec=spec, device=device, calibration=calibration)


class Locate(Command):
    """Locate the sources of every scene of a recording (.h5, .npz or .mat)."""

    FLAT: ClassVar[str] = "settings"
    POSITIONAL: ClassVar[str] = "file"
    FURTHER: ClassVar[str] = "further"
    RESUMES_OUTPUT: ClassVar[bool] = True
    NEEDS: ClassVar[Mapping[str, str]] = {
        "scene": "plot",
        "figure_width": "plot",
        "report_scenes": "report",
        "pose_std_deg": "fuse",
        "pose_std_m": "fuse",
    }

    file: Path
    """The recording, or several."""
    further: Annotated[tuple[Path, ...], Option(hidden=True)] = ()
    """Further recordings."""
    settings: LocateSpec = LocateSpec()
    config: Annotated[Path | None, Option("FILE")] = None
    """TOML file with these settings; options win."""
    calibration: Annotated[Path | None, Option("FILE")] = None
    """Calibration of the panel, written by 'calibrate'."""
    fuse: Annotated[tuple[Path, ...], Option("FILE")] = ()
    """Recordings of the same scenes by other panels, located together; each needs its pose."""
    pose_std_deg: Annotated[float, Field(ge=0, le=MAX_POSE_STD_DEG)] = 0.0
    """Standard deviation of the rotations in the poses; above 0, they are estimated too (with --fuse)."""
    pose_std_m: Annotated[float, Field(ge=0, le=MAX_POSE_STD_M)] = 0.0
    """The same for the displacements."""
    output: Annotated[Path | None, Option("FILE", short="-o")] = None
    """Write a .csv or .json file in place of a table; for several recordings, a folder of .csv files."""
    plot: Annotated[Path | None, Option("FILE")] = None
    """Plot a scene with its estimates and error ellipsoids (.png, .pdf or .svg)."""
    figure_width: Annotated[FigureWidth | None, Option("MM")] = None
    """Width of the plot in mm (a column is 88.9 mm wide)."""
    scene: Annotated[int, Field(ge=0)] = 0
    """Scene to plot, counted from 0."""
    report: Annotated[Path | None, Option("FILE")] = None
    """Write a self-contained HTML report."""
    report_scenes: Count = 8
    """Number of scenes that the report shows in full (fewer if it would exceed 1 MB)."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Worker processes; 0: a thread per core."""
    cluster: Annotated[str | None, Option("ADDRESS")] = None
    """Use the workers of a Dask cluster, such as tcp://host:8786, not processes of this machine."""
    device: str = "cpu"
    """Device, such as cpu or cuda."""
    overwrite: bool = False
    """Replace output files that exist."""
    resume: bool = False
    """Continue an output file (-o) whose writing was interrupted, with the same settings."""

    def without_effect(self, typed: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Options of outputs that are not written, of a network that is not used, or of a search not made."""
        yield from super().without_effect(typed)
        method = self.settings.method
        without_network = method in CLASSICAL_METHODS or method in SPECTRA  # an estimator may have one
        for name in typed:
            if without_network and (name == "weights" or name.startswith("hybrid.")):
                yield name, f"--method {method} uses no network"
        if "sources_max" in typed and self.settings.sources != "auto":
            yield "sources_max", f"--sources {self.settings.sources} gives the number"
        if not self.settings.polish and method in CLASSICAL_METHODS and method not in SPECTRA:
            yield from ((name, f"--method {method} is a fit itself") for name in typed if name == "polish")

    def writes(self) -> list[tuple[str, Path]]:
        """The given files, the tables of several recordings, and what is beside a table until its end."""
        given = [(option, path) for option, path in super().writes() if path != self.output]
        tables = [] if self.output is None else [self.output]
        if self.output is not None and self.further:
            tables = [self.output / f"{file.stem}.csv" for file in (self.file, *self.further)]
        beside = [one for table in tables for one in (table, *part_files(table))]
        return given + [("--output", one) for one in dict.fromkeys(beside)]

    def check_outputs(self) -> None:
        """Check the outputs; those of several recordings are tables in a folder, which are checked later."""
        if not self.further:
            super().check_outputs()

    def run(self) -> int:
        """Locate block by block, so that the file may be larger than memory."""
        if self.further:
            return self._locate_each()
        if self.resume and (self.output is None or self.plot is not None or self.report is not None):
            raise InputError("--resume", "needs --output, and cannot be combined with --plot or --report")
        if self.fuse and self.calibration is not None:
            raise InputError("--calibration", "is of one panel and cannot be combined with --fuse")
        check_workers(self.workers or None, self.cluster)
        from rismusic.estimation.estimate import join_estimates
        from rismusic.io import open_recording
        from rismusic.io.calibration import PanelCalibration
        from rismusic.metrics import truth_rows

        report: LocateReport | None = None
        if self.report is not None:
            from rismusic.report import LocateReport

            report = LocateReport(details=self.report_scenes)
        panel = None if self.calibration is None else PanelCalibration.load(self.calibration)
        parts: list[Estimate] = []
        truth: list[Truth] = []
        drawn: tuple[Recording, Estimate] | None = None
        with ExitStack() as stack:
            file = stack.enter_context(open_recording(self.file))
            others = [stack.enter_context(open_recording(path)) for path in self.fuse]
            self._check_fused([file, *others])
            if panel is not None:
                with in_file(str(self.calibration)):
                    panel.check_panel(file.panel)
            output = None
            if self.output is not None:
                drawn_too = self.plot is not None or self.report is not None
                without = ", without --plot and --report," if drawn_too else ""
                part = self._partial(self.output, file, others)
                output = stack.enter_context(resumable(part, len(file), without=without))
                if output.is_complete:
                    note(f"{self.output} is complete")
                    return 0
            progress = stack.enter_context(progress_bar())
            if self.plot is not None and self.scene >= len(file):
                raise InputError(
                    "--scene", f"the recording has scenes 0 to {len(file) - 1}; got {self.scene}"
                )
            first = 0 if output is None else output.scenes
            task = progress.add_task("locating", total=len(file), completed=first)
            for block, estimate in stack.enter_context(closing(self._located([file, *others], first, panel))):
                recording = block.recordings[0]
                for line in warning_lines(estimate, first):
                    progress.console.print(plain(line), soft_wrap=True)
                if output is not None:
                    output.append(estimate)
                else:
                    parts.append(estimate)
                    if recording.truth is not None:
                        truth += truth_rows(recording.truth, estimate.sources, first_scene=first)
                if first <= self.scene < first + len(recording):
                    place = self.scene - first
                    drawn = recording[place], estimate[place]
                if report is not None:
                    report.add(recording, estimate)
                first += len(recording)
                progress.advance(task, len(recording))
            if output is not None:
                output.finish()
        if output is None:
            self._print(join_estimates(parts), truth)
            if self.fuse:
                note(f"fused from {len(self.fuse) + 1} panels; angles and ranges as {self.file} sees them")
        else:
            sources, scenes = counted(output.progress.sources, "source"), counted(output.scenes, "scene")
            note(f"{sources} in {scenes} written to {self.output}")
        if self.plot is not None and drawn is not None:
            from rismusic.plots import plot_scene, save

            save(plot_scene(*drawn, width_mm=self.figure_width), self.plot, overwrite=self.overwrite)
            note(f"plot of scene {self.scene} written to {self.plot}")
        if self.report is not None and report is not None:
            self._write(report, self.report)
        return 0

    def _locate_each(self) -> int:
        """Locate several recordings, each into a table of its own, after all of them have been opened."""
        if self.output is None or self.plot is not None or self.report is not None or self.fuse:
            names = ", ".join(map(str, (self.file, *self.further)))
            raise InputError(
                "--output",
                f"several recordings ({names}) need a folder (-o FOLDER), and no --plot, --report or --fuse",
            )
        if self.output.suffix in TABLE_ENDINGS or (self.output.exists() and not self.output.is_dir()):
            raise InputError(
                "--output",
                f"several recordings need a folder for a table of each; {self.output} is the name of a file",
            )
        outputs: dict[Path, Path] = {}
        for file in (self.file, *self.further):
            output = self.output / f"{file.stem}.csv"
            if output in outputs:
                raise InputError(str(file), f"and {outputs[output]} would both be written to {output}")
            outputs[output] = file
        from rismusic.io import open_recording

        for file in outputs.values():
            with open_recording(file):
                pass
        with writing(self.output):
            self.output.mkdir(parents=True, exist_ok=True)
        runs = [self.replace(file=file, further=(), output=output) for output, file in outputs.items()]
        for one in runs:
            one.check_outputs()
        for one in runs:
            one.run()
        return 0

    def _located(
        self, files: list[RecordingFile], first: int, calibration: PanelCalibration | None
    ) -> Generator[tuple[Block, Estimate], None, None]:
        """Blocks of scenes in their order, and their estimates."""
        from rismusic.hybrid import BLOCK_SCENES

        scenes = len(files[0])
        step = min(BLOCK_SCENES, *(file.scenes_at_a_time for file in files))
        blocks = (
            Block(start, [file[start : start + step] for file in files])
            for start in range(first, scenes, step)
        )
        left, cores = (
            math.ceil((scenes - first) / step),
            usable_cores() if self.device == "cpu" else 1,
        )
        workers, threads = min(self.workers, max(1, left)), 1
        if not self.workers:
            is_builtin = ESTIMATORS.is_builtin(self.settings.method)
            workers, threads = default_division(left, cores, threaded=is_builtin)
        work = partial(
            locate_in_worker,
            spec=self.settings,
            device=self.device,
            calibration=calibration,
            pose_std=self._pose_std(),
            files=(self.file, *self.fuse),
            # The same for any number of workers, so that the estimates are the same to the last bit.
            single_thread=scenes > step,
            one_scene=scenes == 1,
        )
        return run_all(work, blocks, workers=workers, threads=threads, cluster=self.cluster, ordered=True)

    def _partial(self, path: Path, file: RecordingFile, others: list[RecordingFile]) -> PartialOutput:
        from rismusic.estimation.table import COLUMNS, ROOM_COLUMNS
        from rismusic.partial import fingerprint

        settings = self.settings.model_dump(mode="json")
        if others:
            settings["fuse"] = [fingerprint(other.path) for other in others]
            settings |= self._pose_std()
        if self.calibration is not None:
            settings["calibration"] = hashlib.sha256(read_small(self.calibration)).hexdigest()
        return PartialOutput(
            path,
            file.path,
            settings,
            name=str(self.file),
            resume=self.resume,
            overwrite=self.overwrite,
            columns=ROOM_COLUMNS if "pose" in file.fields else COLUMNS,
        )

    def _pose_std(self) -> PoseStdOptions:
        return {"pose_std_deg": self.pose_std_deg, "pose_std_m": self.pose_std_m}

    def _check_fused(self, files: list[RecordingFile]) -> None:
        """Refuse to fuse recordings without a pose or of other scenes, before anything is located."""
        seen = [self.file.resolve()]
        for path in self.fuse:
            if path.resolve() in seen:
                raise InputError("--fuse", f"{path} is fused already; each panel counts once")
            seen.append(path.resolve())
        for file in files if len(files) > 1 else ():
            if "pose" not in file.fields:
                raise InputError(
                    str(file.path),
                    "pose: missing; panels of one room need the transform from the panel frame to the room "
                    "frame",
                )
            if len(file) != len(files[0]):
                raise InputError(
                    str(file.path),
                    f"has {len(file)} scenes, {self.file} has {len(files[0])}; scene i of all recordings is "
                    "of the same sources",
                )

    def _write(self, report: LocateReport, path: Path) -> None:
        from rismusic.checks import check

        checked = check(self.file)
        report.write(
            path,
            name=self.file.name,
            facts=checked.facts,
            remarks=[f"{one.meaning}: {one.value:.3g}. {one.remedy}" for one in checked.findings],
            command=command_line(),
            overwrite=self.overwrite,
        )
        note(f"report written to {path}")

    def _print(self, estimate: Estimate, truth: list[Truth]) -> None:
        console = SafeConsole()
        console.print(results_table(estimate, truth))
        if estimate.pose is not None:
            console.print(room_table(estimate))
        console.print(scenes_table(estimate))
        if truth:
            hits = sum(row.found is not None for row in truth)
            false_alarms = int(estimate.n_sources.sum()) - hits
            alarms = counted(false_alarms, "false alarm")
            note(f"{hits} of {len(truth)} true sources hit (within 5 deg), {alarms}")


def warning_lines(estimate: Estimate, first_scene: int) -> list[str]:
    """Warnings of scenes that follow each other; one of several scenes is a single line."""
    scenes = defaultdict(list)
    for scene, sentences in enumerate(estimate.warnings, start=first_scene):
        for sentence in dict.fromkeys(sentences):
            scenes[sentence].append(scene)
    return [
        f"{'scene' if len(found) == 1 else 'scenes'} {spans(found)}: {sentence}"
        for sentence, found in scenes.items()
    ]


def results_table(estimate: Estimate, truth: list[Truth]) -> Table:
    """The table that ``rismusic locate`` prints: a row per source or miss."""
    from rismusic.estimation.table import position_rows

    title, with_error = table_title(estimate)
    names = ["scene", "#", "azimuth\ndeg", "elevation\ndeg", "range\nm", "power\ndB"]
    names += ["true\nazim.", "true\nelev.", "true\nrange"] if truth else []
    table = number_table(names, title=title)
    beside = {(row.scene, row.found): row for row in truth if row.found is not None}
    rows, missing = defaultdict(list), defaultdict(list)
    for found in position_rows(estimate):
        rows[found.scene].append(found)
    for one in truth:
        if one.found is None:
            missing[one.scene].append(one)
    for scene in range(len(estimate)):
        lines = []
        for row in rows[scene]:
            bars = (row.azimuth_std_deg, row.elevation_std_deg, row.range_std_m)
            values = (row.azimuth_deg, row.elevation_deg, row.range_m)
            cells = [
                _with_bar(value, bar if with_error[scene] else None)
                for value, bar in zip(values, bars, strict=True)
            ]
            if math.isinf(row.range_m) and row.range_lower_m > 0:
                cells[2] = f"far field (> {row.range_lower_m:.3g})"
            cells = [str(row.source), *cells, f"{row.power_db:.1f}"]
            lines.append([*cells, *(_true_cells(beside.get((scene, row.source))) if truth else [])])
        lines += [["", "missed", "", "", "", *_true_cells(row)] for row in missing[scene]]
        lines = lines or [["", "no source", "", "", "", *([""] * 3 if truth else [])]]
        for line in lines:
            table.add_row(str(scene), *line)
        table.add_section()
    return table


def room_table(estimate: Estimate) -> Table:
    """Positions in the room frame, a row per source."""
    from rismusic.estimation.table import RoomPosition, position_rows

    _, with_error = table_title(estimate)
    table = number_table(("scene", "#", "x\nm", "y\nm", "z\nm"), title="room frame")
    for row in position_rows(estimate):
        assert isinstance(row, RoomPosition)
        values = (row.x_room_m, row.y_room_m, row.z_room_m)
        bars = (row.x_room_std_m, row.y_room_std_m, row.z_room_std_m)
        cells = [
            "far field" if math.isnan(value) else _with_bar(value, bar if with_error[row.scene] else None)
            for value, bar in zip(values, bars, strict=True)
        ]
        table.add_row(str(row.scene), str(row.source), *cells)
    return table


def table_title(estimate: Estimate) -> tuple[str, list[bool]]:
    """Title of the table, and for each scene whether its error bars apply.

    The title names the methods that were used. The bound is the error of a maximum-likelihood estimate, so
    it does not apply to peaks of a spectrum that were not polished.
    """
    used = Counter(estimate.method)
    title = ", ".join(
        name if len(used) == 1 else f"{name} in {counted(count, 'scene')}" for name, count in used.items()
    )
    if estimate.spec.method not in used:
        title += f" instead of {estimate.spec.method} (the warnings say why)"
    peaks = {"hybrid", *SPECTRA.names()}
    with_error = [estimate.spec.polish or name not in peaks for name in estimate.method]
    return title + (": ± Cramer-Rao bound" if any(with_error) else ": peaks, not polished"), with_error


def scenes_table(estimate: Estimate) -> Table:
    """The second table of ``rismusic locate``: a row per scene."""
    probability, impulses = estimate.n_sources_probability, estimate.impulses
    names = ["scene", "sources", *["P(K)"] * (probability is not None), "p-value", "status", "warnings"]
    table = number_table(names + ["impulses"] * (impulses is not None))
    table.add_column("method")
    status = estimate.status
    for scene, count in enumerate(estimate.n_sources.tolist()):
        cells = [str(scene), str(count)]
        if probability is not None:
            cells.append(f"{probability[scene, count]:.2f}")
        p_value = float(estimate.p_value[scene])
        cells += ["-" if math.isnan(p_value) else f"{p_value:.2g}", status[scene]]
        cells.append(str(len(estimate.warnings[scene])))
        if impulses is not None:
            cells.append(str(int(impulses[scene])))
        table.add_row(*cells, f" {estimate.method[scene]}")
    return table


def _with_bar(value: float, bar: float | None) -> str:
    """A value and its error bar, with two significant figures of the bar and three decimals at most."""
    if math.isinf(value):
        return "far field"
    if bar is None:
        return f"{value:.2f}"
    if not math.isfinite(bar):
        return f"{value:.2f} ±?"
    places = decimals_of(bar)
    return f"{value:.{places}f} ±{bar:.{places}f}"


def _true_cells(true: Truth | None) -> list[str]:
    if true is None:
        return ["false", "alarm", ""]
    return [f"{true.azimuth_deg:.2f}", f"{true.elevation_deg:.2f}", f"{true.range_m:.2f}"]
