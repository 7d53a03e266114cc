"""The plan is data: what a conversion will write, decided before a byte of weights is read."""

from __future__ import annotations

from ckptaudit.plan.choosing import CANDIDATES, FALLBACK, Choice, objection, undecided
from ckptaudit.plan.describing import MODELSPEC_KEYS, check_described
from ckptaudit.plan.duplicates import METADATA_PREFIX, names_an_alias
from ckptaudit.plan.making import comparable_groups, make_plan
from ckptaudit.plan.options import Action, Dedupe, Ema, Layout, OnOverflow, Options, Precision
from ckptaudit.plan.values import Alias, ConversionPlan, Drop, Output, OutputTensor, TensorJob

__all__ = [
    "CANDIDATES",
    "FALLBACK",
    "METADATA_PREFIX",
    "MODELSPEC_KEYS",
    "Action",
    "Alias",
    "Choice",
    "ConversionPlan",
    "Dedupe",
    "Drop",
    "Ema",
    "Layout",
    "OnOverflow",
    "Options",
    "Output",
    "OutputTensor",
    "Precision",
    "TensorJob",
    "check_described",
    "comparable_groups",
    "make_plan",
    "names_an_alias",
    "objection",
    "undecided",
]
