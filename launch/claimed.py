"""The studies of many papers one after the other, and what they say of the claims."""

from __future__ import annotations

import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import command
import grid
import session
from papers import Paper
from rich.console import Console

from jrobust.errors import unknown
from jrobust.evaluation.record import config_hash
from jrobust.reporting import claims, run_files, tables
from jrobust.reporting.page import write_text
from jrobust.reporting.study import Study
from jrobust.training.progress import duration


def choose(papers: Sequence[Paper], names: Sequence[str] | None) -> list[Paper]:
    """Return the papers of these names in the order of the table; None for all.

    Raises:
      InputError: a name that there is not; names the nearest.
    """
    known = [paper.name for paper in papers]
    for name in names or ():
        if name not in known:
            raise unknown("paper", name, known)
    return [paper for paper in papers if names is None or paper.name in names]


def conduct(papers: Sequence[Paper], workdir: pathlib.Path, output: pathlib.Path, line: str) -> int:
    """Run the studies that are not done, judge, print and write; return the status of the command.

    Args:
      papers: in the order of the document.
      workdir: the folder of the studies.
      output: the document.
      line: the command that writes it.

    Raises:
      InputError: as `grid.conduct`; every config is read before the first run.
    """
    plans = {paper.name: plan(paper, workdir) for paper in papers}
    minutes = {paper.name: paper.minutes * share_left(plans[paper.name][1], workdir / paper.name) for paper in papers}
    chapters: list[claims.Chapter] = []
    failed, start, planned = [], time.perf_counter(), 0.0
    for i, paper in enumerate(papers):
        pace = (time.perf_counter() - start) / planned if planned else 60.0  # of a planned minute, in seconds
        left = duration(pace * sum(minutes[other.name] for other in papers[i:]))
        print(f"\n{paper.title}: paper {i + 1} of {len(papers)}; about {left} left for all of them", flush=True)
        study, configs = plans[paper.name]
        status = grid.conduct(study, configs, workdir / paper.name)
        if status > 1:
            return status  # of the signal that stopped it
        planned += minutes[paper.name]
        chapters.append(chapter(paper, study, configs, workdir / paper.name))
        failed += [f"{paper.title}: a run failed, see above"] * (status == 1) + claims.failures(chapters[-1])
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, claims.markdown(chapters, line, time.strftime("%Y-%m-%d", time.gmtime())))
    console = Console(width=160) if not Console().is_terminal else Console()
    console.print(tables.rich_table("Claims, differences in points", claims.SUMMARY, claims.summary(chapters)))
    print(f"everything in {duration(time.perf_counter() - start)}\nwrote {output}", flush=True)
    return command.conclude(failed)


def plan(paper: Paper, workdir: pathlib.Path) -> tuple[Study, Mapping[str, Any]]:
    """Return the study of a paper and the config of each run, by its folder in WORKDIR/<paper>."""
    section = dict(command.read_config(paper.config, paper.overrides).get("study") or {})
    given = {"rows": paper.rows, "seeds": paper.seeds, "measures": paper.measures}
    section |= {key: value for key, value in given.items() if value}
    study, configs, _ = grid.of_section(paper.config, paper.overrides, section, str(workdir / paper.name))
    return study, configs


def share_left(configs: Mapping[str, Any], workdir: pathlib.Path) -> float:
    """Return which share of a study's runs is not done."""
    return sum(session.finished(config, workdir / name) is None for name, config in configs.items()) / len(configs)


def chapter(paper: Paper, study: Study, configs: Mapping[str, Any], workdir: pathlib.Path) -> claims.Chapter:
    """Return what the document says of a paper whose study is done."""
    done = [workdir / folder for folder in configs if folder in study.results]
    seconds = sum(session.seconds_of(folder, config_hash(folder)) for folder in done)
    runs = tuple(map(run_files.read, done))
    return claims.Chapter(paper.title, paper.text, command_of(paper), study, paper.claims, runs, seconds)


def command_of(paper: Paper) -> str:
    """Return the command that trains and evaluates the runs of a paper by themselves."""
    words = [f"--config={paper.config}"]
    words += [f"--seeds={','.join(map(str, paper.seeds))}"] if paper.seeds else []
    words += [f"--measures={','.join(paper.measures)}"] if paper.measures else []
    words += [f"--rows={';'.join(paper.rows)}"] if paper.rows else []
    quoted = (f'"{word}"' if re.search(r"[^\w=.,:/-]", word) else word for word in (*words, *paper.overrides))
    return " ".join(["python", "launch/study.py" if paper.rows else "launch/run.py", *quoted])
