"""Template filters that give small stretches of HTML, thousands of them a page: a macro would take several times as long. Pure.

    {{ row.cost | interval("J", "measured") }}     <span class="num">4.107</span> <span class="unit">J</span> ... <span class="ci">4.025 to 4.189</span>
    {{ probe.first_token_s | seconds(2) }}         <span class="num">0.14</span> s
    {{ none | missing }}                           <span class="none">not measured</span>

The words are those of `pieces.j2`, in the language of the environment. Numbers come from `formats`; what else comes from a record is made visible and escaped here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jinja2 import Environment
from markupsafe import escape

from jouleboard import formats
from jouleboard.estimates import Estimate
from jouleboard.printing import Made
from jouleboard.rows import Latency
from jouleboard.windows import Energy, Window

__all__ = ["install"]
TEMPLATE = "pieces.j2"


def install(env: Environment) -> None:
    """Give an environment its filters; its loader must know the template of their words."""
    known: Mapping[str, object] = vars(env.get_template(TEMPLATE).make_module())
    env.filters |= _Pieces(**{name: _safe(known[name]) for name in _Pieces.__dataclass_fields__}).filters()


def _safe(value: object) -> str:
    """Make visible and escape; what is markup already stays."""
    return str(escape(formats.finalize(value)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pieces:
    """The words of one language, escaped."""

    not_measured: str
    not_recorded: str
    no_interval: str
    to: str
    measured: str
    simulated: str
    cpu_s: str
    estimate: str

    def filters(self) -> dict[str, Callable[..., Made]]:
        """Return the filters by name."""
        return {"bytes": self.bytes, "digest": self.digest, "energy": self.energy, "interval": self.interval, "median_p95": self.median_p95,
                "missing": self.missing, "seconds": self.seconds, "text": self.text, "whole": self.whole, "window_cells": self.window_cells}

    def missing(self, words: str | None = None) -> Made:
        """Say that there is no value, and why."""
        return Made(self._missing(words))

    def _missing(self, words: str | None = None) -> str:
        return f'<span class="none">{self.not_measured if words is None else _safe(words)}</span>'

    def whole(self, value: int | None) -> Made:
        """Give a whole number."""
        return Made(self._missing() if value is None else f'<span class="num">{formats.count(value)}</span>')

    def seconds(self, value: float | None, digits: int = 3) -> Made:
        """Give seconds."""
        return Made(self._seconds(value, digits))

    def _seconds(self, value: float | None, digits: int) -> str:
        return self._missing() if value is None else f'<span class="num">{formats.sig(value, digits)}</span> s'

    def bytes(self, value: int | None) -> Made:
        """Give bytes as megabytes."""
        return Made(self._missing() if value is None
                      else f'<span class="num">{formats.megabytes(value)}</span> <span class="unit">MB</span>')

    def text(self, value: str | None) -> Made:
        """Give somebody's text, or say that there is none."""
        return Made(self._missing(self.not_recorded) if value is None or value == "" else _safe(value))

    def digest(self, value: str | None) -> Made:
        """Give a digest."""
        return Made(self._missing(self.not_recorded) if value is None else f'<code class="digest">{_safe(value)}</code>')

    def median_p95(self, found: Latency) -> Made:
        """Give the median of a latency and its 95th percentile."""
        high = "" if found.p95_s is None else f", {formats.sig(found.p95_s, 2)}"
        return Made(f'<span class="num">{formats.sig(found.median_s, 2)}</span>{high} s')

    def interval(self, estimate: Estimate | None, unit: str = "", kind: str = "") -> Made:
        """Give an estimate, its unit, what kind of figure it is, and its interval."""
        if estimate is None:
            return self.missing()
        found = formats.shown(estimate)
        parts = [f'<span class="num">{found.value}</span>']
        if unit:
            parts.append(f'<span class="unit">{_safe(unit)}</span>')
        if kind:
            parts.append(f'<span class="kind">{_safe(kind)}</span>')
        parts.append(f'<span class="ci">{self.no_interval if found.low is None else f"{found.low} {self.to} {found.high}"}</span>')
        return Made(" ".join(parts))

    def energy(self, found: Energy | None, digits: int = 3) -> Made:
        """Give joules with what they are: measured, simulated, or estimated."""
        return Made(self._energy(found, digits))

    def _energy(self, found: Energy | None, digits: int) -> str:
        if found is not None and found.measured_j is not None:
            joules, kind = found.measured_j, self.simulated if found.method == "simulated" else self.measured
        elif found is not None and found.estimate_j is not None:
            spread = found.estimate_relative_uncertainty
            joules, kind = found.estimate_j, self.estimate + ("" if spread is None else f" ±{formats.percent(spread)} %")
        else:
            return self._missing()
        return f'<span class="energy"><span class="num">{formats.sig(joules, digits)}</span> J <span class="kind">{kind}</span></span>'

    def window_cells(self, window: Window, digits: int = 3) -> Made:
        """Give the cells of a table that say what one window took: time, CPU time, energy."""
        cpu = self._missing() if window.cpu_s is None else f'<span class="num">{formats.sig(window.cpu_s, digits)}</span> {self.cpu_s}'
        return Made(f"<td>{self._seconds(window.duration_s, digits)}</td>\n<td>{cpu}</td>\n<td>{self._energy(window.energy, digits)}</td>\n")
