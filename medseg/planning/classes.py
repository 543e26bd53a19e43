"""What classification adds to a plan: how common each class is, and which part of a scan is looked at.

The classes themselves are ``plan.labels``: the first name is the first output of the network. Values only, no rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medseg.errors import MedsegError
from medseg.structures import LabelTable


@dataclass(frozen=True)
class Region:
    """A field of one size around the middle of what a mask marks; every scan is cut to it before anything else.

    Args:
        labels: what the mask's values mean; any of them marks the region.
        field: lengths along the plan's axes, in the plan's unit.
        mask_channel: whether the network sees the mask too, as the plan's last channel (0 or 1).
    """

    labels: LabelTable
    field: tuple[float, ...]
    mask_channel: bool = False

    def __post_init__(self) -> None:
        if not self.field or min(self.field) <= 0:
            raise MedsegError(f"plan.classes.region.field: expected lengths above 0, found {list(self.field)}")

    def to_plain(self) -> dict[str, Any]:
        """Plain values; `from_plain` gives the same region back."""
        return {
            "labels": dict(self.labels.names), "ignore": self.labels.ignore, "field": list(self.field),
            "mask_channel": self.mask_channel,
        }  # fmt: skip

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Region:
        names = {int(value): str(name) for value, name in values["labels"].items()}
        field = tuple(float(length) for length in values["field"])
        return cls(LabelTable(names, values["ignore"]), field, bool(values.get("mask_channel", False)))


@dataclass(frozen=True)
class ClassPlan:
    """What a classifier needs beside the grid.

    Args:
        shares: of each class, in the order of ``plan.labels``: the share of the cases that show it.
        multilabel: whether a case may show several classes, or none.
        region: the part of a scan that is looked at; None for all of it.
    """

    shares: tuple[float, ...]
    multilabel: bool = False
    region: Region | None = None
    why: Mapping[str, str] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Lists, numbers and words, as YAML holds them; `from_plain` gives the same value back."""
        region = None if self.region is None else self.region.to_plain()
        return {
            "shares": list(self.shares), "multilabel": self.multilabel, "region": region, "why": dict(self.why)
        }  # fmt: skip

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> ClassPlan:
        """Read what `to_plain` gave. Raises MedsegError that names what is missing or of the wrong type."""
        try:
            return cls(
                tuple(float(share) for share in values["shares"]),
                bool(values["multilabel"]),
                None if values["region"] is None else Region.from_plain(values["region"]),
                {str(name): str(reason) for name, reason in values["why"].items()},
            )
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise MedsegError(
                f"plan.classes: expected shares, multilabel, region and why; a value is missing or of the wrong type: {error!r}"
            ) from None
