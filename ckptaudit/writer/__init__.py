"""Safetensors files, and files and folders that appear whole or not at all."""

from __future__ import annotations

from ckptaudit.writer.file import (
    PAGE,
    Draft,
    Slot,
    check_destination,
    check_spares,
    header_of,
    write_text,
)
from ckptaudit.writer.folder import DraftFolder, check_folder, settle_folder

__all__ = [
    "PAGE",
    "Draft",
    "DraftFolder",
    "Slot",
    "check_destination",
    "check_folder",
    "check_spares",
    "header_of",
    "settle_folder",
    "write_text",
]
